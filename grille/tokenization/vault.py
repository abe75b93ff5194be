"""Vault Transform without input or output: bodies and replies, which values share a request, when to stop asking, and
what may be remembered.

Every request carries one item more than was asked for: a value that is the same for all time, whose token the
configuration may hold (``check``).  FF1 has no check value, so a Vault with another key answers with other digits that
look as good; that item is how it shows.  It also tells an item that Vault cannot do for its value from one that it
cannot do at all.

Source: HashiCorp, "Transform secrets engine (API)": ``/encode/:role``, ``/decode/:role``, batches.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections import OrderedDict, deque
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, Generic, Literal, Protocol, TypeVar

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from grille.tokenization.provider import TokenizationError, TokenizationRefused, Unfit
from grille.tokenization.transformation import Template, TemplateError, tweak

Direction = Literal["encode", "decode"]

_SHORTEST_WAIT: Final = 0.05
_LONGEST_WAIT: Final = 2.0


# transformations


class VaultTransformation:
    """One transformation as Vault is asked for it.  Raises `TemplateError`.

    ``version`` counts the keys that the transformation has had: in Vault each is a transformation of its own (``NAME``,
    then ``NAME-v2``), and it is part of the tweak.  ``check`` is the token of `example`, or empty if it is not known.
    """

    def __init__(
        self, name: str, token_domain: str, template: str, alphabet: str, version: int = 1, check: str = ""
    ) -> None:
        self.name = name
        self.vault_name = name if version == 1 else f"{name}-v{version}"
        """Its name in Vault."""
        try:
            self.template = Template(template, alphabet)
            if check and self.template.split(check) is None:
                raise TemplateError("its check is not a token of the template")
        except TemplateError as error:
            raise TemplateError(f"the transformation {name!r}: {error}") from None
        self.alphabet = alphabet
        self.example = self.template.example
        """The value that goes with every request."""
        self.check = check
        self.tweak = base64.b64encode(tweak(token_domain, version)).decode()
        self._fixed = b'"transformation":%s,"tweak":%s' % (
            msgspec.json.encode(self.vault_name),
            msgspec.json.encode(self.tweak),
        )

    def __repr__(self) -> str:
        return f"VaultTransformation({self.name!r})"

    def fits(self, value: str) -> bool:
        """Whether Vault need be asked at all."""
        return self.template.split(value) is not None

    def item(self, value: str) -> bytes:
        """A value as an item of a batch, but for its reference."""
        return b'{"value":%s,%s,"reference":"' % (msgspec.json.encode(value), self._fixed)

    def body(self, items: Sequence[bytes], direction: Direction) -> bytes:
        """The request for these items (of `item`), and for the one that checks the key."""
        last = self.item(self.example if direction == "encode" else self.check or self.example)
        return b'{"batch_input":[%s]}' % b",".join(
            b'%s%d"}' % (item, number) for number, item in enumerate((*items, last))
        )

    def read(self, raw: bytes, values: Sequence[str], direction: Direction) -> list[str | Unfit]:
        """What the reply to `body` says of each value.

        Raises `TokenizationRefused` if Vault has another key or template or cannot do the transformation at all, and
        `TokenizationError` if the reply is not one to this request.
        """
        results = _results(raw)
        if len(results) != len(values) + 1:
            raise TokenizationError("Vault's reply has another number of results than were asked for")
        for number, result in enumerate(results):
            if result.reference is not None and result.reference != str(number):
                raise TokenizationError("Vault's reply is not in the order of the request")
        last = results.pop()
        if last.error:
            raise TokenizationRefused(f"Vault cannot {direction} by the transformation {self.vault_name!r}")
        if self.check:
            wanted = self.check if direction == "encode" else self.example
            if last.value(direction) != wanted:
                raise TokenizationRefused(
                    f"Vault's key for the transformation {self.vault_name!r} is not that of its check"
                )
        return [self._answer(value, result, direction) for value, result in zip(values, results, strict=True)]

    def _answer(self, value: str, result: _Result, direction: Direction) -> str | Unfit:
        if result.error:
            return Unfit(f"Vault cannot {direction} it")
        answer = result.value(direction)
        if answer is None or not self.template.same_form(value, answer):
            raise TokenizationRefused(
                f"Vault's template for the transformation {self.vault_name!r} is not that of the configuration"
            )
        return answer


class _Result(msgspec.Struct):
    encoded_value: str | None = None
    decoded_value: str | None = None
    error: str = ""
    reference: str | None = None

    def value(self, direction: Direction) -> str | None:
        """What came of it; a decoded value is also seen under the other name."""
        if direction == "decode" and self.decoded_value is not None:
            return self.decoded_value
        return self.encoded_value


class _Data(msgspec.Struct):
    batch_results: list[_Result]


class _Reply(msgspec.Struct):
    data: _Data


_REPLIES: Final = msgspec.json.Decoder(_Reply)


def _results(raw: bytes) -> list[_Result]:
    try:
        return _REPLIES.decode(raw).data.batch_results
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # its text may hold a value
        raise TokenizationError("Vault's reply is not understood") from None


# replies


class Answer(Enum):
    """What to do after a reply."""

    DONE = auto()
    """Read it."""
    STALE = auto()
    """A replica has not heard yet of what was written: ask again."""
    BUSY = auto()
    """Ask again, more slowly."""
    FORBIDDEN = auto()
    """Log in anew."""
    WRONG = auto()
    """Asking again does not help."""


def judge(status: int, raw: bytes) -> Answer:
    """What a reply means.  A batch of which items failed has 200, or 400 and results all the same."""
    if status == 200 or (status == 400 and b'"batch_results"' in raw):
        return Answer.DONE
    if status == 412:
        return Answer.STALE
    if status in (307, 429, 472, 473) or status >= 500:  # 307: a standby that cannot forward; the next may
        return Answer.BUSY
    return Answer.FORBIDDEN if status in (401, 403) else Answer.WRONG


def wait_before(attempt: int, chance: float, wanted: float = 0.0) -> float:
    """Seconds before the next attempt: from 50 ms doubled up to 2 s, less up to a half by ``chance`` (0 to 1).

    Not less than ``wanted``, which is what the server asked for (``Retry-After``).
    """
    most: float = min(_SHORTEST_WAIT * 2 ** min(attempt, 16), _LONGEST_WAIT)
    return max(most * (1 - chance / 2), wanted)


def renew_after(ttl: float, chance: float) -> float:
    """Seconds after which a token that lives ``ttl`` seconds is renewed: at two thirds, less up to a tenth of that."""
    return ttl * 2 / 3 * (1 - chance / 10)


# which values share a request


class Sized(Protocol):
    """Something that takes bytes of a request."""

    @property
    def size(self) -> int:
        """Bytes."""


T = TypeVar("T", bound=Sized)


class Queue(Generic[T]):
    """What has come while a request was in flight: the next request takes all of it that may go together."""

    def __init__(self, most: int, most_bytes: int) -> None:
        """At most ``most`` entries and, but for a single one, ``most_bytes`` bytes go together."""
        self._most = most
        self._most_bytes = most_bytes
        self._entries: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: T) -> None:
        """Put it behind the others."""
        self._entries.append(entry)

    def withdraw(self, entries: set[T]) -> None:
        """Forget those of these that still wait."""
        if self._entries:
            self._entries = deque(entry for entry in self._entries if entry not in entries)

    def take(self) -> list[T]:
        """What goes next, oldest first."""
        taken: list[T] = []
        size = 0
        while self._entries and len(taken) < self._most:
            size += self._entries[0].size
            if taken and size > self._most_bytes:
                break
            taken.append(self._entries.popleft())
        return taken


# when to stop asking


class Breaker:
    """After so many failures in a row nothing is asked for some seconds, then one question, which decides.

    It has no clock: ``now`` is in seconds of any clock that does not go back.
    """

    def __init__(self, failures: int, seconds: float) -> None:
        self._failures = failures
        self._seconds = seconds
        self._row = 0
        self._until = 0.0

    def blocks(self, now: float) -> bool:
        """Whether nothing may be asked now."""
        return self._row >= self._failures and now < self._until

    def allows(self, now: float) -> bool:
        """Whether to ask now.  After the pause that is so for one question, until it has succeeded or failed."""
        if self._row < self._failures:
            return True
        if now < self._until:
            return False
        self._until = now + self._seconds
        return True

    def succeeded(self) -> None:
        """It answers."""
        self._row = 0

    def failed(self, now: float) -> None:
        """It did not."""
        self._row += 1
        if self._row >= self._failures:
            self._until = now + self._seconds


# what is remembered


class Cache:
    """Answers by direction, transformation (as it is named in Vault: one name, one key) and value, the oldest use
    forgotten first.

    Neither a value nor a token is kept in clear: an entry is found by a keyed BLAKE2b of what was asked, and sealed
    with AES-256-GCM under a key of this process alone, which is never written and is thrown away by `clear`.  That
    keeps them out of what is dumped or swapped in pieces; who reads the whole memory has the key too.

    It has no clock either.  An answer is given until its end, which is not after the lease under which it was got.
    """

    def __init__(self, most: int, seconds: float) -> None:
        """``most`` 0: nothing is kept."""
        self._most = most
        self._seconds = seconds
        self._kept: OrderedDict[bytes, tuple[bytes, bytes, float]] = OrderedDict()
        """Nonce, what is sealed, and its end."""
        self.clear()

    def __repr__(self) -> str:
        return f"Cache({len(self._kept)} of {self._most})"

    def __len__(self) -> int:
        return len(self._kept)

    def _found_by(self, direction: Direction, name: str, value: str) -> bytes:
        asked = "\0".join((direction, name, value)).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(asked, key=self._finding, digest_size=32).digest()

    def get(self, direction: Direction, name: str, value: str, now: float) -> str | None:
        """The answer, if there is one whose time has not come."""
        if not self._kept:
            return None
        key = self._found_by(direction, name, value)
        found = self._kept.get(key)
        if found is None:
            return None
        nonce, sealed, end = found
        if now >= end:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return self._sealing.decrypt(nonce, sealed, key).decode("utf-8", "surrogatepass")

    def put(self, direction: Direction, name: str, value: str, answer: str, now: float, lease_end: float) -> None:
        """Keep an answer, if anything is kept."""
        end = min(now + self._seconds, lease_end)
        if not self._most or end <= now:
            return
        key = self._found_by(direction, name, value)
        self._count += 1
        nonce = self._count.to_bytes(12, "big")
        self._kept[key] = (nonce, self._sealing.encrypt(nonce, answer.encode("utf-8", "surrogatepass"), key), end)
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget all, and what it was sealed with."""
        self._kept.clear()
        self._finding, self._sealing, self._count = os.urandom(32), AESGCM(os.urandom(32)), 0
