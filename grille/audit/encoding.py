"""How an event becomes bytes, and a value a commitment.

The bytes of an event are its leaf in the Merkle tree, so the encoding is deterministic: fields in the order of their
declaration, defaults left out, keys of mappings sorted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from datetime import UTC, datetime
from typing import Final

import msgspec

from grille.audit.event import Event, Level, Value

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_DECODER: Final = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """The bytes of an event, as they are hashed and stored.

    Raises ValueError or TypeError for what JSON cannot hold (a lone surrogate).
    """
    return _ENCODER.encode(event)


def decode(data: bytes) -> Event:
    """The event of these bytes; raises msgspec.DecodeError if they hold none."""
    return _DECODER.decode(data)


def encode_text(text: str) -> bytes:
    """A text as it stands in an event, in quotation marks; raises ValueError for what JSON cannot hold."""
    return _ENCODER.encode(text)


class _Noise:
    """Random bytes, fetched many at a time; each is handed out once."""

    def __init__(self) -> None:
        self._pool = b""
        self._next = 0
        os.register_at_fork(after_in_child=self.forget)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, at most `_POOL`."""
        start = self._next
        end = start + count
        if end > len(self._pool):
            self._pool = os.urandom(_POOL)
            start, end = 0, count
        self._next = end
        return self._pool[start:end]

    def forget(self) -> None:
        """Let go of what is left: the parent process goes on handing it out."""
        self._next = len(self._pool)


_POOL: Final = 4096
_NOISE: Final = _Noise()


class _Clock:
    """The texts of the second and the millisecond that were asked for last."""

    def __init__(self) -> None:
        self._second = -1
        self._second_text = ""
        self._millisecond = -1
        self._millisecond_text = ""

    def time(self, seconds: float) -> str:
        """See ``timestamp``."""
        if not 0 <= seconds < _YEAR_9999:
            return _timestamp(seconds)
        second = int(seconds)
        # Adding and taking away 2**52 rounds half to even, as datetime does.
        microseconds = int((seconds - second) * 1e6 + _ROUNDER - _ROUNDER)
        if microseconds > 999_999:
            return _timestamp(seconds)
        if second != self._second:
            self._second_text = _timestamp(second)[:-7]
            self._second = second
        return f"{self._second_text}{microseconds:06d}Z"

    def identifier(self, seconds: float) -> str:
        """See ``event_id``."""
        millisecond = int(seconds * 1000)
        if millisecond != self._millisecond:
            text = f"{millisecond:012x}"
            self._millisecond_text = f"{text[:8]}-{text[8:]}-7"
            self._millisecond = millisecond
        random = _NOISE.take(10)
        noise = random.hex()
        variant = "89ab"[random[0] >> 6]  # two bits of the one digit that goes nowhere else
        return f"{self._millisecond_text}{noise[1:4]}-{variant}{noise[4:7]}-{noise[7:19]}"


_CLOCK: Final = _Clock()
_YEAR_9999: Final = 253_370_764_800.0
_ROUNDER: Final = 4_503_599_627_370_496.0


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def timestamp(seconds: float) -> str:
    """RFC 3339 with microseconds, UTC, of seconds since 1970."""
    return _CLOCK.time(seconds)


def event_id(seconds: float) -> str:
    """A new UUID version 7 (RFC 9562 section 5.7) for an event at this time, seconds since 1970."""
    return _CLOCK.identifier(seconds)


def lifecycle(name: str, text: str, seconds: float, *, worker: int, level: Level) -> Event:
    """A lifecycle record: ``start``, ``stop``, ``recovery``, ...; the spool sets its sequence."""
    return Event(
        id=event_id(seconds),
        time=timestamp(seconds),
        kind="lifecycle",
        name=name,
        worker=worker,
        sequence=0,
        level=level,
        text=text,
    )


def commit(value: bytes | None, type: str) -> Value:
    """The commitment of one value: SHA-256 over 16 random bytes and the value, both as hexadecimal text.

    None is SQL's NULL, which is recorded as such.
    """
    if value is None:
        return Value(type=type, null=True)
    salt, commitment = salted(value)
    return Value(type=type, salt=salt, commitment=commitment)


def salted(value: bytes) -> tuple[str, str]:
    """A new salt, and the commitment to this value under it; see ``commit``."""
    salt = _NOISE.take(16)
    return salt.hex(), hashlib.sha256(salt + value).hexdigest()


def reveals(committed: Value, value: bytes | None) -> bool:
    """Whether ``value`` is what was committed to."""
    if value is None or committed.null:
        return value is None and committed.null
    digest = hashlib.sha256(bytes.fromhex(committed.salt) + value).hexdigest()
    return hmac.compare_digest(digest, committed.commitment)
