"""The bytes of a statement's event, put together from pieces that a session or a plan encodes once.

Every piece is cut out of what ``encode`` writes, so the bytes are those of ``encode(Event(...))``.  An event is kept in
two parts, up to its sequence and after it, since only the spool knows the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from grille.audit.chain import leaf_hash
from grille.audit.encoding import encode, encode_text, salted
from grille.audit.event import Chain, Event, Level, Relation, Verdict
from grille.audit.records import EVENT, MAX_PAYLOAD, header

Entry = tuple[bytes, bytes, str, str, str]
"""An event for the spool: what precedes its sequence, what follows it, its ``time``, the id of the intent that it
completes, and its own id if it is an intent itself; the last two are mostly empty."""

LARGEST: Final = MAX_PAYLOAD - 20
"""The most bytes of an event's two parts together; a sequence has at most 20 digits."""

_SEQUENCE: Final = b',"sequence":'


def split(event: Event, worker: int) -> Entry:
    """An event for the spool; ``event.sequence`` and ``event.worker`` are not used.

    Raises ValueError or TypeError if it cannot be encoded.
    """
    data = encode(msgspec.structs.replace(event, sequence=0, worker=worker))
    # A quotation mark inside a text is escaped, so the first place is the key itself.
    end = data.index(_SEQUENCE) + len(_SEQUENCE)
    return data[:end], data[end + 1 :], event.time, event.intent, intent_id(event)


def intent_id(event: Event) -> str:
    """The event's id if it is an intent, else empty."""
    return event.id if event.outcome is not None and event.outcome.status == "intent" else ""


def session_piece(
    level: Level,
    spiffe_id: str,
    certificate_serial: str,
    certificate_sha256: str,
    session: str,
    client: str,
    protocol: str,
    database: str,
    application: str,
    chain: Chain,
) -> bytes:
    """The fields from ``level`` to ``chain``: what is the same for all events of a session at one level.

    Raises ValueError if a text cannot be encoded, as do the other pieces.
    """
    return _piece(
        level=level,
        spiffe_id=spiffe_id,
        certificate_serial=certificate_serial,
        certificate_sha256=certificate_sha256,
        session=session,
        client=client,
        protocol=protocol,
        database=database,
        application=application,
        chain=chain,
    )


def statement_piece(
    template: str,
    template_sha256: str,
    action: str,
    relations: tuple[Relation, ...],
    functions: tuple[str, ...],
    verdict: Verdict | None,
) -> tuple[bytes, bytes]:
    """The template with its hash, and ``action`` to ``verdict``: what is the same for one plan and decision."""
    return (
        _piece(template=template, template_sha256=template_sha256)[_LEVEL:],
        _piece(action=action, relations=relations, functions=functions, verdict=verdict)[_LEVEL:],
    )


def values_piece(types: Sequence[str], values: Sequence[bytes | None]) -> bytes:
    """The commitments to these values (see ``commit``); a value beyond the last type has the type ``unknown``."""
    if not values:
        return b""
    parts = []
    known = len(types)
    for number, value in enumerate(values):
        name = encode_text(types[number] if number < known else "unknown")
        if value is None:
            parts.append(b'{"type":' + name + b',"null":true}')
        else:
            salt, commitment = salted(value)
            parts.append(b'{"type":' + name + f',"salt":"{salt}","commitment":"{commitment}"}}'.encode())
    return b',"values":[' + b",".join(parts) + b"]"


def statement_event(
    session: bytes,
    template: bytes,
    verdict: bytes,
    ident: str,
    time: str,
    worker: int,
    statement_bytes: int,
    values: bytes,
    status: str,
    tag: str,
    rows: int,
    nbytes: int,
    encoded: int,
    decoded: int,
    understand: int,
    decide: int,
    tokenize: int,
    upstream: int,
    total: int,
    intent: str = "",
) -> tuple[bytes, bytes]:
    """The two parts of a statement's event, from the pieces of its session, its plan and its values.

    ``ident`` and ``time`` are as ``event_id`` and ``timestamp`` give them, ``intent`` as ``event_id`` gives it, and
    ``status`` is one of ``Outcome.status``; ``error`` and ``sqlstate`` of the outcome are empty.  The stages are in
    microseconds; all numbers are below 2**63.  Raises ValueError if the tag cannot be encoded.
    """
    head = f'{{"id":"{ident}","time":"{time}","kind":"statement","name":"statement","worker":{worker},"sequence":'
    size = f',"statement_bytes":{statement_bytes}' if statement_bytes else ""
    outcome = f',"outcome":{{"status":"{status}"'
    if tag:
        outcome += f',"tag":{encode_text(tag).decode()}'
    if rows:
        outcome += f',"rows":{rows}'
    if nbytes:
        outcome += f',"bytes":{nbytes}'
    if encoded:
        outcome += f',"encoded":{encoded}'
    if decoded:
        outcome += f',"decoded":{decoded}'
    completes = f'}},"intent":"{intent}"' if intent else "}"
    end = (
        f'{outcome}{completes},"stages":{{"decide":{decide},"tokenize":{tokenize},"total":{total},'
        f'"understand":{understand},"upstream":{upstream}}}}}'
    )
    return head.encode(), b"".join((session, template, size.encode(), values, verdict, end.encode()))


def frame_events(entries: Sequence[Entry], first: int) -> tuple[bytes, list[bytes]]:
    """The records of these events, numbered from ``first`` on, and their leaf hashes.

    Raises ValueError if one is larger than a record may be.
    """
    framed = []
    leaves = []
    sequence = first
    for entry in entries:
        before, after = entry[0], entry[1]
        data = before + str(sequence).encode() + after
        if len(data) > MAX_PAYLOAD:
            raise ValueError("the event is larger than a record may be")
        framed.append(header(EVENT, data))
        framed.append(data)
        leaves.append(leaf_hash(data))
        sequence += 1
    return b"".join(framed), leaves


def _encode_fields(fields: dict[str, object]) -> bytes:
    basis: dict[str, object] = {
        "id": "", "time": "", "kind": "statement", "name": "statement", "worker": 0, "sequence": 0, "level": "process",
    }  # fmt: skip
    return encode(Event(**(basis | fields)))  # type: ignore[arg-type]


_BEFORE: Final = len(_encode_fields({}).partition(b',"level"')[0])
_LEVEL: Final = len(b',"level":"process"')


def _piece(**fields: object) -> bytes:
    """What ``encode`` writes for these fields, ``level`` before them."""
    return _encode_fields(fields)[_BEFORE:-1]
