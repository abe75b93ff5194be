"""The messages of PostgreSQL's protocol: fields to bytes, bytes to fields, strictly.

Decoding accepts exactly what the protocol chapter describes: each string ends with one NUL, nothing follows the last
field, text is UTF-8.  Anything else raises `ProtocolViolation`, so that two readers can never see two messages.
Encoding raises ValueError where a field cannot be carried (a NUL in a string, a count above 65,535).

Source: PostgreSQL documentation, "Message Formats" and "Error and Notice Message Fields".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Literal, TypeAlias

import msgspec

from grille.protocols.postgres.framing import OVERSIZED, ProtocolViolation

_INT16 = struct.Struct("!h")
_UINT16 = struct.Struct("!H")
_INT32 = struct.Struct("!i")
_UINT32 = struct.Struct("!I")
_TWO_INT32 = struct.Struct("!ii")
_FIELD = struct.Struct("!IhIhih")

PROTOCOL_3_0: Final = 3 << 16
SSL_REQUEST_CODE: Final = 80_877_103
GSSENC_REQUEST_CODE: Final = 80_877_104
CANCEL_REQUEST_CODE: Final = 80_877_102

TEXT: Final = 0
BINARY: Final = 1

TransactionStatus: TypeAlias = Literal["I", "T", "E"]


def _frame(kind: int, payload: bytes) -> bytes:
    return b"%c%s%s" % (kind, _INT32.pack(len(payload) + 4), payload)


def _zero_terminated(text: str) -> bytes:
    encoded = text.encode()
    if 0 in encoded:
        raise ValueError("a string of the protocol cannot hold a NUL")
    return encoded + b"\0"


def _count(number: int) -> bytes:
    if number > 65_535:
        raise ValueError("more than 65,535 elements in one message")
    return _UINT16.pack(number)


class _Cursor:
    """Reads one payload from front to back."""

    __slots__ = ("errors", "payload", "position")

    def __init__(self, payload: bytes, errors: str = "strict") -> None:
        self.payload = payload
        self.position = 0
        self.errors = errors

    def take(self, size: int) -> bytes:
        start = self.position
        if size < 0 or size > len(self.payload) - start:
            raise ProtocolViolation("insufficient data left in message")
        self.position = start + size
        return self.payload[start : self.position]

    def byte(self) -> int:
        return self.take(1)[0]

    def count(self) -> int:
        return int(_UINT16.unpack(self.take(2))[0])

    def int32(self) -> int:
        return int(_INT32.unpack(self.take(4))[0])

    def oid(self) -> int:
        return int(_UINT32.unpack(self.take(4))[0])

    def string(self) -> str:
        start = self.position
        end = self.payload.find(0, start)
        if end < 0:
            raise ProtocolViolation("invalid string in message")
        self.position = end + 1
        try:
            return self.payload[start:end].decode("utf-8", self.errors)
        except UnicodeDecodeError:
            raise ProtocolViolation('invalid byte sequence for encoding "UTF8"', sqlstate="22021") from None

    def oids(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"!{count}I", self.take(4 * count))

    def formats(self, count: int) -> tuple[int, ...]:
        codes = struct.unpack(f"!{count}h", self.take(2 * count))
        for code in codes:
            if code not in (TEXT, BINARY):
                raise ProtocolViolation(f"unsupported format code: {code}", fatal=False)
        return codes

    def values(self, count: int) -> tuple[bytes | None, ...]:
        payload = self.payload
        position = self.position
        size = len(payload)
        unpack = _INT32.unpack_from
        values: list[bytes | None] = []
        for _ in range(count):
            if size - position < 4:
                raise ProtocolViolation("insufficient data left in message")
            (length,) = unpack(payload, position)
            position += 4
            if length == -1:
                values.append(None)
                continue
            if length < 0 or length > size - position:
                raise ProtocolViolation("insufficient data left in message")
            values.append(payload[position : position + length])
            position += length
        self.position = position
        return tuple(values)

    def rest(self) -> bytes:
        return self.take(len(self.payload) - self.position)

    def finish(self) -> None:
        if self.position != len(self.payload):
            raise ProtocolViolation("invalid message format")


def _encode_values(values: Sequence[bytes | None]) -> bytes:
    pack = _INT32.pack
    return b"".join([b"\xff\xff\xff\xff" if value is None else pack(len(value)) + value for value in values])


# Messages before the first typed one


class StartupMessage(msgspec.Struct, frozen=True):
    """The client's first message: protocol version and the settings it asks for."""

    parameters: dict[str, str]
    major: int = 3
    minor: int = 0

    def encode(self) -> bytes:
        """The whole message, its length included."""
        pairs = b"".join(_zero_terminated(name) + _zero_terminated(value) for name, value in self.parameters.items())
        payload = _INT32.pack(self.major << 16 | self.minor) + pairs + b"\0"
        return _INT32.pack(len(payload) + 4) + payload


class SSLRequest(msgspec.Struct, frozen=True):
    """The client asks for TLS; the answer is one byte, ``S`` or ``N``."""

    def encode(self) -> bytes:
        """The whole message, its length included."""
        return _TWO_INT32.pack(8, SSL_REQUEST_CODE)


class GSSENCRequest(msgspec.Struct, frozen=True):
    """The client asks for GSSAPI encryption; the answer is one byte, ``G`` or ``N``."""

    def encode(self) -> bytes:
        """The whole message, its length included."""
        return _TWO_INT32.pack(8, GSSENC_REQUEST_CODE)


class CancelRequest(msgspec.Struct, frozen=True):
    """On a connection of its own: cancel what runs on the connection that got this key."""

    process_id: int
    secret: bytes
    """4 bytes in protocol 3.0, 4 to 256 in 3.2."""

    def __repr__(self) -> str:
        return f"CancelRequest(process_id={self.process_id}, secret=...)"

    def encode(self) -> bytes:
        """The whole message, its length included."""
        payload = _INT32.pack(CANCEL_REQUEST_CODE) + _INT32.pack(self.process_id) + self.secret
        return _INT32.pack(len(payload) + 4) + payload


Startup: TypeAlias = StartupMessage | SSLRequest | GSSENCRequest | CancelRequest


def decode_startup(payload: bytes) -> Startup:
    """The message in a payload of `StartupFrames`.  Raises ProtocolViolation."""
    cursor = _Cursor(payload)
    code = cursor.int32()
    if code == SSL_REQUEST_CODE:
        cursor.finish()
        return SSLRequest()
    if code == GSSENC_REQUEST_CODE:
        cursor.finish()
        return GSSENCRequest()
    if code == CANCEL_REQUEST_CODE:
        process_id = cursor.int32()
        secret = cursor.rest()
        if not 4 <= len(secret) <= 256:
            raise ProtocolViolation("invalid length of cancel request")
        return CancelRequest(process_id, secret)
    major, minor = code >> 16, code & 0xFFFF
    if major != 3:
        raise ProtocolViolation(
            f"unsupported frontend protocol {major}.{minor}: Grille speaks 3.0", sqlstate="0A000", control="WP-02"
        )
    parameters: dict[str, str] = {}
    while name := cursor.string():
        if name in parameters:
            raise ProtocolViolation("a startup parameter is given twice")
        parameters[name] = cursor.string()
    cursor.finish()
    return StartupMessage(parameters, major, minor)


# What a client sends


class Query(msgspec.Struct, frozen=True):
    """Simple query: any number of statements in one text."""

    kind: ClassVar[int] = ord("Q")
    text: str

    @classmethod
    def decode(cls, payload: bytes, errors: str = "strict") -> Query:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload, errors)
        text = cursor.string()
        cursor.finish()
        return cls(text)

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, _zero_terminated(self.text))


class Parse(msgspec.Struct, frozen=True):
    """Prepare one statement."""

    kind: ClassVar[int] = ord("P")
    name: str
    text: str
    types: tuple[int, ...] = ()
    """OIDs of the parameters' types; 0 leaves one to the server, which also infers what is missing at the end."""

    @classmethod
    def decode(cls, payload: bytes, errors: str = "strict") -> Parse:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload, errors)
        name = cursor.string()
        text = cursor.string()
        types = cursor.oids(cursor.count())
        cursor.finish()
        return cls(name, text, types)

    def encode(self) -> bytes:
        """The whole message."""
        count = _count(len(self.types))
        types = struct.pack(f"!{len(self.types)}I", *self.types)
        return _frame(self.kind, _zero_terminated(self.name) + _zero_terminated(self.text) + count + types)


class Bind(msgspec.Struct, frozen=True):
    """Make a portal of a prepared statement and its parameters' values."""

    kind: ClassVar[int] = ord("B")
    portal: str
    statement: str
    formats: tuple[int, ...] = ()
    """None: all text; one: holds for all; else one a parameter."""
    values: tuple[bytes | None, ...] = ()
    result_formats: tuple[int, ...] = ()
    """None: all text; one: holds for all; else one a result column."""

    def __repr__(self) -> str:
        return f"Bind(portal={self.portal!r}, statement={self.statement!r}, values=<{len(self.values)}>)"

    @classmethod
    def decode(cls, payload: bytes, errors: str = "strict") -> Bind:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload, errors)
        portal = cursor.string()
        statement = cursor.string()
        formats = cursor.formats(cursor.count())
        values = cursor.values(cursor.count())
        result_formats = cursor.formats(cursor.count())
        cursor.finish()
        if len(formats) > 1 and len(formats) != len(values):
            raise ProtocolViolation(
                f"bind message has {len(formats)} parameter formats but {len(values)} parameters", fatal=False
            )
        return cls(portal, statement, formats, values, result_formats)

    def encode(self) -> bytes:
        """The whole message."""
        formats, values, results = self.formats, self.values, self.result_formats
        return _frame(
            self.kind,
            b"".join(
                (
                    _zero_terminated(self.portal),
                    _zero_terminated(self.statement),
                    _count(len(formats)),
                    struct.pack(f"!{len(formats)}h", *formats),
                    _count(len(values)),
                    _encode_values(values),
                    _count(len(results)),
                    struct.pack(f"!{len(results)}h", *results),
                )
            ),
        )


class Describe(msgspec.Struct, frozen=True):
    """Ask for the shape of a prepared statement or a portal."""

    kind: ClassVar[int] = ord("D")
    target: Literal["S", "P"]
    name: str

    @classmethod
    def decode(cls, payload: bytes, errors: str = "strict") -> Describe:
        """Raises ProtocolViolation."""
        return cls(*_decode_target(payload, "DESCRIBE", errors))

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, self.target.encode() + _zero_terminated(self.name))


class Close(msgspec.Struct, frozen=True):
    """Forget a prepared statement or a portal."""

    kind: ClassVar[int] = ord("C")
    target: Literal["S", "P"]
    name: str

    @classmethod
    def decode(cls, payload: bytes, errors: str = "strict") -> Close:
        """Raises ProtocolViolation."""
        return cls(*_decode_target(payload, "CLOSE", errors))

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, self.target.encode() + _zero_terminated(self.name))


def _decode_target(payload: bytes, verb: str, errors: str) -> tuple[Literal["S", "P"], str]:
    cursor = _Cursor(payload, errors)
    target = cursor.byte()
    name = cursor.string()
    cursor.finish()
    if target == ord("S"):
        return "S", name
    if target == ord("P"):
        return "P", name
    raise ProtocolViolation(f"invalid {verb} message subtype {target}", fatal=False)


class Execute(msgspec.Struct, frozen=True):
    """Run a portal."""

    kind: ClassVar[int] = ord("E")
    portal: str
    max_rows: int = 0
    """0 or less: all rows."""

    @classmethod
    def decode(cls, payload: bytes, errors: str = "strict") -> Execute:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload, errors)
        portal = cursor.string()
        max_rows = cursor.int32()
        cursor.finish()
        return cls(portal, max_rows)

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, _zero_terminated(self.portal) + _INT32.pack(self.max_rows))


class _Empty(msgspec.Struct, frozen=True):
    """A message without fields."""

    kind: ClassVar[int]

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, b"")


class Sync(_Empty, frozen=True):
    """End of a unit: commit what is not in an explicit transaction, and answer ReadyForQuery."""

    kind: ClassVar[int] = ord("S")

    @classmethod
    def decode(cls, payload: bytes) -> Sync:
        """Raises ProtocolViolation."""
        _Cursor(payload).finish()
        return cls()


class Flush(_Empty, frozen=True):
    """Answer now what is asked so far."""

    kind: ClassVar[int] = ord("H")

    @classmethod
    def decode(cls, payload: bytes) -> Flush:
        """Raises ProtocolViolation."""
        _Cursor(payload).finish()
        return cls()


class Terminate(_Empty, frozen=True):
    """The client goes."""

    kind: ClassVar[int] = ord("X")

    @classmethod
    def decode(cls, payload: bytes) -> Terminate:
        """Raises ProtocolViolation."""
        _Cursor(payload).finish()
        return cls()


class CopyData(msgspec.Struct, frozen=True):
    """A piece of COPY data."""

    kind: ClassVar[int] = ord("d")
    data: bytes

    def __repr__(self) -> str:
        return f"CopyData(<{len(self.data)} bytes>)"

    @classmethod
    def decode(cls, payload: bytes) -> CopyData:
        """Any payload is legal."""
        return cls(payload)

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, self.data)


class CopyDone(_Empty, frozen=True):
    """End of COPY data."""

    kind: ClassVar[int] = ord("c")

    @classmethod
    def decode(cls, payload: bytes) -> CopyDone:
        """Raises ProtocolViolation."""
        _Cursor(payload).finish()
        return cls()


class CopyFail(msgspec.Struct, frozen=True):
    """The client gives a COPY up."""

    kind: ClassVar[int] = ord("f")
    reason: str

    @classmethod
    def decode(cls, payload: bytes, errors: str = "strict") -> CopyFail:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload, errors)
        reason = cursor.string()
        cursor.finish()
        return cls(reason)

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, _zero_terminated(self.reason))


class FunctionCall(msgspec.Struct, frozen=True):
    """Call a function by OID: an old interface that Grille refuses."""

    kind: ClassVar[int] = ord("F")
    function: int
    formats: tuple[int, ...]
    values: tuple[bytes | None, ...]
    result_format: int

    def __repr__(self) -> str:
        return f"FunctionCall(function={self.function}, values=<{len(self.values)}>)"

    @classmethod
    def decode(cls, payload: bytes) -> FunctionCall:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload)
        function = cursor.oid()
        formats = cursor.formats(cursor.count())
        values = cursor.values(cursor.count())
        (result_format,) = cursor.formats(1)
        cursor.finish()
        return cls(function, formats, values, result_format)

    def encode(self) -> bytes:
        """The whole message."""
        formats = _count(len(self.formats)) + struct.pack(f"!{len(self.formats)}h", *self.formats)
        values = _count(len(self.values)) + _encode_values(self.values)
        return _frame(self.kind, _UINT32.pack(self.function) + formats + values + _INT16.pack(self.result_format))


class PasswordMessage(msgspec.Struct, frozen=True):
    """An answer to an authentication request: a password, or a step of SASL or GSSAPI."""

    kind: ClassVar[int] = ord("p")
    data: bytes

    def __repr__(self) -> str:
        return "PasswordMessage(...)"

    @classmethod
    def decode(cls, payload: bytes) -> PasswordMessage:
        """Any payload is legal: what it means depends on what was asked."""
        return cls(payload)

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, self.data)

    @classmethod
    def password(cls, text: str) -> PasswordMessage:
        """A clear text or hashed password."""
        return cls(_zero_terminated(text))

    @classmethod
    def sasl_initial(cls, mechanism: str, response: bytes) -> PasswordMessage:
        """SASLInitialResponse: the chosen mechanism and the client's first message."""
        return cls(_zero_terminated(mechanism) + _INT32.pack(len(response)) + response)


class Oversized(msgspec.Struct, frozen=True):
    """Not on the wire: stands for a Query, Parse or Bind that was discarded because it was too long."""

    kind: ClassVar[int] = OVERSIZED
    discarded: int
    """Type byte of the discarded message."""

    @classmethod
    def decode(cls, payload: bytes) -> Oversized:
        """What `Frames` yields under `OVERSIZED`."""
        return cls(payload[0])


FrontendMessage: TypeAlias = (
    Query
    | Parse
    | Bind
    | Describe
    | Close
    | Execute
    | Sync
    | Flush
    | Terminate
    | CopyData
    | CopyDone
    | CopyFail
    | FunctionCall
    | PasswordMessage
    | Oversized
)

FRONTEND: Final[dict[int, Callable[[bytes], FrontendMessage]]] = {
    Query.kind: Query.decode,
    Parse.kind: Parse.decode,
    Bind.kind: Bind.decode,
    Describe.kind: Describe.decode,
    Close.kind: Close.decode,
    Execute.kind: Execute.decode,
    Sync.kind: Sync.decode,
    Flush.kind: Flush.decode,
    Terminate.kind: Terminate.decode,
    CopyData.kind: CopyData.decode,
    CopyDone.kind: CopyDone.decode,
    CopyFail.kind: CopyFail.decode,
    FunctionCall.kind: FunctionCall.decode,
    PasswordMessage.kind: PasswordMessage.decode,
    Oversized.kind: Oversized.decode,
}


_WITH_TEXT: Final[dict[int, Callable[[bytes, str], FrontendMessage]]] = {
    Query.kind: Query.decode,
    Parse.kind: Parse.decode,
    Bind.kind: Bind.decode,
    Describe.kind: Describe.decode,
    Close.kind: Close.decode,
    Execute.kind: Execute.decode,
    CopyFail.kind: CopyFail.decode,
}


def decode_in_any_encoding(kind: int, payload: bytes) -> FrontendMessage:
    """As `decode_frontend`, for a client whose encoding is not known: bytes that are not UTF-8 become surrogates."""
    decode = _WITH_TEXT.get(kind)
    return decode_frontend(kind, payload) if decode is None else decode(payload, "surrogateescape")


def decode_frontend(kind: int, payload: bytes) -> FrontendMessage:
    """The client's message.  Raises ProtocolViolation, and nothing else."""
    decode = FRONTEND.get(kind)
    if decode is None:
        raise ProtocolViolation(f"invalid frontend message type {kind}")
    return decode(payload)


# What the server sends

PARSE_COMPLETE: Final = b"1\x00\x00\x00\x04"
BIND_COMPLETE: Final = b"2\x00\x00\x00\x04"
CLOSE_COMPLETE: Final = b"3\x00\x00\x00\x04"
NO_DATA: Final = b"n\x00\x00\x00\x04"
PORTAL_SUSPENDED: Final = b"s\x00\x00\x00\x04"
EMPTY_QUERY_RESPONSE: Final = b"I\x00\x00\x00\x04"
AUTHENTICATION_OK: Final = b"R\x00\x00\x00\x08\x00\x00\x00\x00"


class Authentication(msgspec.Struct, frozen=True):
    """One step of authentication; what ``data`` holds depends on the code."""

    OK: ClassVar[int] = 0
    CLEARTEXT_PASSWORD: ClassVar[int] = 3
    MD5_PASSWORD: ClassVar[int] = 5
    SASL: ClassVar[int] = 10
    SASL_CONTINUE: ClassVar[int] = 11
    SASL_FINAL: ClassVar[int] = 12

    kind: ClassVar[int] = ord("R")
    code: int
    data: bytes = b""

    @classmethod
    def decode(cls, payload: bytes) -> Authentication:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload)
        code = cursor.int32()
        return cls(code, cursor.rest())

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, _INT32.pack(self.code) + self.data)

    @classmethod
    def sasl(cls, mechanisms: Sequence[str]) -> Authentication:
        """AuthenticationSASL: the mechanisms that the server offers."""
        return cls(cls.SASL, b"".join(_zero_terminated(name) for name in mechanisms) + b"\0")

    def mechanisms(self) -> tuple[str, ...]:
        """The names in an AuthenticationSASL.  Raises ProtocolViolation."""
        cursor = _Cursor(self.data)
        names: list[str] = []
        while name := cursor.string():
            names.append(name)
        cursor.finish()
        return tuple(names)


class ParameterStatus(msgspec.Struct, frozen=True):
    """The value of a setting that the server reports."""

    kind: ClassVar[int] = ord("S")
    name: str
    value: str

    @classmethod
    def decode(cls, payload: bytes) -> ParameterStatus:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload)
        name = cursor.string()
        value = cursor.string()
        cursor.finish()
        return cls(name, value)

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, _zero_terminated(self.name) + _zero_terminated(self.value))


class BackendKeyData(msgspec.Struct, frozen=True):
    """The key with which this connection's work can be cancelled."""

    kind: ClassVar[int] = ord("K")
    process_id: int
    secret: bytes
    """4 bytes in protocol 3.0, 4 to 256 in 3.2."""

    def __repr__(self) -> str:
        return f"BackendKeyData(process_id={self.process_id}, secret=...)"

    @classmethod
    def decode(cls, payload: bytes) -> BackendKeyData:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload)
        process_id = cursor.int32()
        secret = cursor.rest()
        if not 4 <= len(secret) <= 256:
            raise ProtocolViolation("invalid length of cancel key")
        return cls(process_id, secret)

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, _INT32.pack(self.process_id) + self.secret)


class NegotiateProtocolVersion(msgspec.Struct, frozen=True):
    """The newest minor version that the server speaks, and protocol options that it does not know."""

    kind: ClassVar[int] = ord("v")
    minor: int
    options: tuple[str, ...] = ()

    @classmethod
    def decode(cls, payload: bytes) -> NegotiateProtocolVersion:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload)
        minor = cursor.int32()
        count = cursor.int32()
        if not 0 <= count <= len(payload):
            raise ProtocolViolation("invalid message format")
        options = tuple(cursor.string() for _ in range(count))
        cursor.finish()
        return cls(minor, options)

    def encode(self) -> bytes:
        """The whole message."""
        names = b"".join(_zero_terminated(name) for name in self.options)
        return _frame(self.kind, _TWO_INT32.pack(self.minor, len(self.options)) + names)


class ReadyForQuery(msgspec.Struct, frozen=True):
    """End of the replies to one unit."""

    kind: ClassVar[int] = ord("Z")
    status: TransactionStatus
    """``I``: idle; ``T``: in a transaction; ``E``: in a failed transaction."""

    @classmethod
    def decode(cls, payload: bytes) -> ReadyForQuery:
        """Raises ProtocolViolation."""
        status = _STATUS.get(payload)
        if status is None:
            raise ProtocolViolation("invalid message format")
        return cls(status)

    def encode(self) -> bytes:
        """The whole message."""
        return b"Z\x00\x00\x00\x05" + self.status.encode()


_STATUS: Final[dict[bytes, TransactionStatus]] = {b"I": "I", b"T": "T", b"E": "E"}


class Field(msgspec.Struct, frozen=True):
    """One result column."""

    name: str
    type_oid: int
    type_size: int = -1
    typmod: int = -1
    table_oid: int = 0
    column: int = 0
    """Number of the table's column, or 0."""
    format: int = TEXT


class RowDescription(msgspec.Struct, frozen=True):
    """The result columns of what is described or about to be returned."""

    kind: ClassVar[int] = ord("T")
    fields: tuple[Field, ...]

    @classmethod
    def decode(cls, payload: bytes) -> RowDescription:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload)
        fields: list[Field] = []
        for _ in range(cursor.count()):
            name = cursor.string()
            table_oid, column, type_oid, type_size, typmod, code = _FIELD.unpack(cursor.take(_FIELD.size))
            fields.append(Field(name, type_oid, type_size, typmod, table_oid, column, code))
        cursor.finish()
        return cls(tuple(fields))

    def encode(self) -> bytes:
        """The whole message."""
        parts = [_count(len(self.fields))]
        for field in self.fields:
            parts.append(_zero_terminated(field.name))
            parts.append(
                _FIELD.pack(field.table_oid, field.column, field.type_oid, field.type_size, field.typmod, field.format)
            )
        return _frame(self.kind, b"".join(parts))


class DataRow(msgspec.Struct, frozen=True):
    """One row: a value a column, None for NULL."""

    kind: ClassVar[int] = ord("D")
    values: tuple[bytes | None, ...]

    def __repr__(self) -> str:
        return f"DataRow(<{len(self.values)}>)"

    @classmethod
    def decode(cls, payload: bytes) -> DataRow:
        """Raises ProtocolViolation."""
        return cls(decode_data_row(payload))

    def encode(self) -> bytes:
        """The whole message."""
        return encode_data_row(self.values)


def decode_data_row(payload: bytes) -> tuple[bytes | None, ...]:
    """The values of a DataRow.  Raises ProtocolViolation."""
    cursor = _Cursor(payload)
    values = cursor.values(cursor.count())
    cursor.finish()
    return values


def encode_data_row(values: Sequence[bytes | None]) -> bytes:
    """A whole DataRow message."""
    return _frame(ord("D"), _count(len(values)) + _encode_values(values))


class CommandComplete(msgspec.Struct, frozen=True):
    """A statement ended well."""

    kind: ClassVar[int] = ord("C")
    tag: str
    """``SELECT 5``, ``INSERT 0 1``, ``BEGIN``, ..."""

    @classmethod
    def decode(cls, payload: bytes) -> CommandComplete:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload)
        tag = cursor.string()
        cursor.finish()
        return cls(tag)

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, _zero_terminated(self.tag))

    @property
    def rows(self) -> int:
        """Rows returned or changed, 0 where the command has no such number."""
        last = self.tag.rpartition(" ")[2]
        return int(last) if last.isascii() and last.isdigit() else 0


class ParameterDescription(msgspec.Struct, frozen=True):
    """The parameter types of a prepared statement."""

    kind: ClassVar[int] = ord("t")
    types: tuple[int, ...]

    @classmethod
    def decode(cls, payload: bytes) -> ParameterDescription:
        """Raises ProtocolViolation."""
        cursor = _Cursor(payload)
        types = cursor.oids(cursor.count())
        cursor.finish()
        return cls(types)

    def encode(self) -> bytes:
        """The whole message."""
        return _frame(self.kind, _count(len(self.types)) + struct.pack(f"!{len(self.types)}I", *self.types))


class _Fields(msgspec.Struct, frozen=True):
    """The fields of an error or a notice, by their one-letter codes."""

    kind: ClassVar[int]
    fields: dict[str, str]

    @property
    def severity(self) -> str:
        """ERROR, FATAL, PANIC, WARNING, NOTICE, ..., never translated where the server is 9.6 or newer."""
        return self.fields.get("V") or self.fields.get("S", "")

    @property
    def sqlstate(self) -> str:
        """Five characters."""
        return self.fields.get("C", "")

    @property
    def message(self) -> str:
        """The primary sentence."""
        return self.fields.get("M", "")

    def encode(self) -> bytes:
        """The whole message."""
        parts = [code.encode() + _zero_terminated(text) for code, text in self.fields.items()]
        return _frame(self.kind, b"".join(parts) + b"\0")


class ErrorResponse(_Fields, frozen=True):
    """A statement, or the connection, failed."""

    kind: ClassVar[int] = ord("E")

    @classmethod
    def decode(cls, payload: bytes) -> ErrorResponse:
        """Raises ProtocolViolation.  Text in another encoding (before authentication) is replaced by U+FFFD."""
        return cls(_decode_fields(payload))


class NoticeResponse(_Fields, frozen=True):
    """A warning or a piece of information."""

    kind: ClassVar[int] = ord("N")

    @classmethod
    def decode(cls, payload: bytes) -> NoticeResponse:
        """Raises ProtocolViolation.  Text in another encoding (before authentication) is replaced by U+FFFD."""
        return cls(_decode_fields(payload))


def _decode_fields(payload: bytes) -> dict[str, str]:
    cursor = _Cursor(payload, "replace")
    fields: dict[str, str] = {}
    while code := cursor.byte():
        if not 0x41 <= code <= 0x7A:
            raise ProtocolViolation("invalid message format")
        fields[chr(code)] = cursor.string()
    cursor.finish()
    return fields


def error_fields(
    severity: str,
    sqlstate: str,
    message: str,
    *,
    detail: str | None = None,
    hint: str | None = None,
    position: int | None = None,
) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse that Grille says itself.

    A NUL in a text, which the protocol cannot carry, becomes U+FFFD.
    """
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": message}
    if detail is not None:
        fields["D"] = detail
    if hint is not None:
        fields["H"] = hint
    if position is not None:
        fields["P"] = str(position)
    return {code: text.replace("\0", "\ufffd") for code, text in fields.items()}
