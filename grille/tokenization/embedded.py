"""Tokens made in this process, from keys that the caller has loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from grille.tokenization.provider import ReadOnly, TokenizationError, TokenRequest, Unfit
from grille.tokenization.siv import KEY_BYTES, SIV
from grille.tokenization.transformation import FPE, Key, OldFPE, Template, TemplateError, Transformation

_Batch = Callable[[Sequence[str]], Sequence[str | Unfit]]


class EmbeddedProvider:
    """A `TokenProvider` over FF1 and AES-SIV, and over FF3-1 for decoding.

    Raises ValueError (`TemplateError` for a template or alphabet) if a name is used twice, a key is missing or has the
    wrong length or serves two algorithms, a template cannot be used, or two transformations of one token domain would
    give one value two tokens.  No message holds key bytes.
    """

    def __init__(self, transformations: Iterable[Transformation], keys: Iterable[Key]) -> None:
        by_name: dict[str, Key] = {}
        for key in keys:
            if key.name in by_name:
                raise ValueError(f"the key {key.name!r} is given twice")
            if key.version < 1:
                raise ValueError(f"the key {key.name!r} has version {key.version}; versions begin at 1")
            by_name[key.name] = key
        self._encode: dict[str, _Batch] = {}
        self._decode: dict[str, _Batch] = {}
        domains: dict[str, Transformation] = {}
        uses: dict[str, str] = {}
        for transformation in transformations:
            name = transformation.name
            if name in self._encode:
                raise ValueError(f"the transformation {name!r} is given twice")
            if transformation.key not in by_name:
                raise ValueError(f"the transformation {name!r} names a key {transformation.key!r} that is not there")
            if not transformation.token_domain:
                raise ValueError(f"the transformation {name!r} has an empty token domain")
            first = domains.setdefault(transformation.token_domain, transformation)
            if _terms(first) != _terms(transformation):
                raise ValueError(
                    f"the transformations {first.name!r} and {name!r} share the token domain "
                    f"{first.token_domain!r} but differ in kind, alphabet, key, algorithm or tweak"
                )
            if uses.setdefault(transformation.key, transformation.fpe_algorithm) != transformation.fpe_algorithm:
                raise ValueError(f"the key {transformation.key!r} serves ff1 and ff3-1; give ff1 a key of its own")
            self._encode[name], self._decode[name] = _batches(transformation, by_name[transformation.key])

    def __repr__(self) -> str:
        return f"EmbeddedProvider({', '.join(self._encode)})"

    async def encode(self, batch: Sequence[TokenRequest]) -> Sequence[str | Unfit]:
        """Values to tokens, in order.

        Raises `TokenizationError` for a transformation that is not configured, `ReadOnly` for one that only reads.
        """
        return _grouped(batch, self._encode)

    async def decode(self, batch: Sequence[TokenRequest]) -> Sequence[str | Unfit]:
        """Tokens to values, in order.  Raises `TokenizationError` for a transformation that is not configured."""
        return _grouped(batch, self._decode)


def _terms(transformation: Transformation) -> tuple[str, str, str, str, bytes]:
    return (
        transformation.kind,
        transformation.alphabet if transformation.kind == "fpe" else "",
        transformation.key,
        transformation.fpe_algorithm,
        transformation.supplied_tweak,
    )


def _read_only(name: str) -> _Batch:
    def refuse(values: Sequence[str]) -> Sequence[str | Unfit]:
        raise ReadOnly(f"the transformation {name!r} only reads")

    return refuse


def _batches(transformation: Transformation, key: Key) -> tuple[_Batch, _Batch]:
    name, old = transformation.name, transformation.fpe_algorithm == "ff3-1"
    if transformation.supplied_tweak and not old:
        raise ValueError(f"the transformation {name!r} has a tweak of its own, which only ff3-1 has")
    if transformation.kind == "fpe":
        try:
            template = Template(transformation.template, transformation.alphabet)
            if old:
                return _read_only(name), OldFPE(key, transformation.supplied_tweak, template).decode
        except ValueError as error:
            raise type(error)(f"the transformation {name!r}: {error}") from None
        fpe = FPE(key, transformation.token_domain, template)
        return fpe.encode, fpe.decode
    if old:
        raise ValueError(f"the transformation {name!r}: ff3-1 is an algorithm of fpe, not of siv")
    if transformation.template:
        raise TemplateError(f"the transformation {name!r}: siv encodes whole texts and has no template")
    if len(key.material) != KEY_BYTES:
        raise ValueError(f"the key {key.name!r} has {len(key.material)} bytes; a siv key has {KEY_BYTES}")
    siv = SIV(key.material, transformation.token_domain, key.version)
    return (
        lambda values: [siv.encode(value) for value in values],
        lambda tokens: [siv.decode(token) for token in tokens],
    )


def _grouped(batch: Sequence[TokenRequest], by_name: dict[str, _Batch]) -> Sequence[str | Unfit]:
    """One call for each transformation of the batch; replies in the order of the requests."""
    if len(batch) == 1:
        return _function(batch[0].transformation, by_name)([batch[0].value])
    if len(names := {request.transformation for request in batch}) == 1:
        return _function(names.pop(), by_name)([request.value for request in batch])
    positions: dict[str, list[int]] = {}
    for position, request in enumerate(batch):
        positions.setdefault(request.transformation, []).append(position)
    replies: list[str | Unfit] = [Unfit("no reply")] * len(batch)
    for name, places in positions.items():
        function = _function(name, by_name)
        for place, reply in zip(places, function([batch[place].value for place in places]), strict=True):
            replies[place] = reply
    return replies


def _function(name: str, by_name: dict[str, _Batch]) -> _Batch:
    function = by_name.get(name)
    if function is None:
        raise TokenizationError(f"the transformation {name!r} is not configured")
    return function
