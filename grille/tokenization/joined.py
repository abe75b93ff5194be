"""Several providers as one: each transformation has its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grille.tokenization.provider import TokenizationError, TokenProvider, TokenRequest, Unfit


class JoinedProvider:
    """A `TokenProvider` that asks, for each request, the provider of its transformation."""

    def __init__(self, by_transformation: Mapping[str, TokenProvider]) -> None:
        self._by_name = dict(by_transformation)

    async def encode(self, batch: Sequence[TokenRequest]) -> Sequence[str | Unfit]:
        """Values to tokens, in order.  Raises `TokenizationError` if one of the providers does not answer."""
        parts = self._parts(batch)
        return _in_order(len(batch), [(places, await each.encode(part)) for each, places, part in parts])

    async def decode(self, batch: Sequence[TokenRequest]) -> Sequence[str | Unfit]:
        """Tokens to values, in order.  Raises `TokenizationError` if one of the providers does not answer."""
        parts = self._parts(batch)
        return _in_order(len(batch), [(places, await each.decode(part)) for each, places, part in parts])

    def _parts(self, batch: Sequence[TokenRequest]) -> list[tuple[TokenProvider, list[int], list[TokenRequest]]]:
        parts: dict[int, tuple[TokenProvider, list[int], list[TokenRequest]]] = {}
        for place, request in enumerate(batch):
            provider = self._by_name.get(request.transformation)
            if provider is None:
                raise TokenizationError(f"the transformation {request.transformation!r} is not configured")
            _, places, part = parts.setdefault(id(provider), (provider, [], []))
            places.append(place)
            part.append(request)
        return list(parts.values())


def _in_order(count: int, answers: Sequence[tuple[Sequence[int], Sequence[str | Unfit]]]) -> Sequence[str | Unfit]:
    replies: list[str | Unfit] = [Unfit("no reply")] * count
    for places, part in answers:
        for place, reply in zip(places, part, strict=True):
            replies[place] = reply
    return replies
