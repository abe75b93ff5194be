import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grille.protocols.postgres.framing import Frames, ProtocolViolation, StartupFrames, frontend_limits
from grille.protocols.postgres.messages import (
    AUTHENTICATION_OK,
    BINARY,
    CLOSE_COMPLETE,
    FRONTEND,
    TEXT,
    Authentication,
    BackendKeyData,
    Bind,
    CancelRequest,
    Close,
    CommandComplete,
    CopyData,
    CopyDone,
    CopyFail,
    DataRow,
    Describe,
    ErrorResponse,
    Execute,
    Field,
    Flush,
    FunctionCall,
    GSSENCRequest,
    NegotiateProtocolVersion,
    NoticeResponse,
    Oversized,
    ParameterDescription,
    ParameterStatus,
    Parse,
    PasswordMessage,
    Query,
    ReadyForQuery,
    RowDescription,
    SSLRequest,
    StartupMessage,
    Sync,
    Terminate,
    decode_frontend,
    decode_startup,
    error_fields,
)

FRONTEND_EXAMPLES = [
    (Query("select 'é'"), b"Q\0\0\0\x10select '\xc3\xa9'\0"),
    (Parse("a", "select $1", (23, 0)), b"P\0\0\0\x1aa\0select $1\0\0\2\0\0\0\x17\0\0\0\0"),
    (
        Bind("p", "a", (1,), (b"\0\0\0\7", None, b""), (0, 1)),
        b"B\0\0\0\x24p\0a\0\0\1\0\1\0\3\0\0\0\4\0\0\0\7\xff\xff\xff\xff\0\0\0\0\0\2\0\0\0\1",
    ),
    (Describe("S", "a"), b"D\0\0\0\7Sa\0"),
    (Describe("P", ""), b"D\0\0\0\6P\0"),
    (Execute("p", 5), b"E\0\0\0\x0ap\0\0\0\0\5"),
    (Close("S", "a"), b"C\0\0\0\7Sa\0"),
    (Sync(), b"S\0\0\0\4"),
    (Flush(), b"H\0\0\0\4"),
    (Terminate(), b"X\0\0\0\4"),
    (CopyData(b"1\t2\n"), b"d\0\0\0\x081\t2\n"),
    (CopyDone(), b"c\0\0\0\4"),
    (CopyFail("no"), b"f\0\0\0\7no\0"),
    (FunctionCall(89, (0,), (b"1",), 1), b"F\0\0\0\x15\0\0\0\x59\0\1\0\0\0\1\0\0\0\x011\0\1"),
    (PasswordMessage.password("x"), b"p\0\0\0\6x\0"),
    (PasswordMessage.sasl_initial("M", b"n,,"), b"p\0\0\0\x0dM\0\0\0\0\3n,,"),
]
STARTUP_EXAMPLES = [
    (SSLRequest(), b"\0\0\0\x08\x04\xd2\x16\x2f"),
    (GSSENCRequest(), b"\0\0\0\x08\x04\xd2\x16\x30"),
    (CancelRequest(7, b"abcd"), b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\7abcd"),
    (StartupMessage({"user": "u", "options": ""}), b"\0\0\0\x19\0\3\0\0user\0u\0options\0\0\0"),
]
BACKEND_EXAMPLES = [
    (Authentication(0), AUTHENTICATION_OK),
    (Authentication.sasl(["A", "B"]), b"R\0\0\0\x0d\0\0\0\x0aA\0B\0\0"),
    (ParameterStatus("TimeZone", "UTC"), b"S\0\0\0\x11TimeZone\0UTC\0"),
    (BackendKeyData(258, b"abcd"), b"K\0\0\0\x0c\0\0\1\2abcd"),
    (BackendKeyData(258, bytes(32)), b"K\0\0\0\x28\0\0\1\2" + bytes(32)),
    (NegotiateProtocolVersion(0, ("_pq_.x",)), b"v\0\0\0\x13\0\0\0\0\0\0\0\1_pq_.x\0"),
    (ReadyForQuery("T"), b"Z\0\0\0\5T"),
    (
        RowDescription((Field("id", 23, 4, -1, 16384, 1, BINARY),)),
        b"T\0\0\0\x1b\0\1id\0\0\0\x40\0\0\1\0\0\0\x17\0\4\xff\xff\xff\xff\0\1",
    ),
    (DataRow((b"1", None, b"")), b"D\0\0\0\x13\0\3\0\0\0\x011\xff\xff\xff\xff\0\0\0\0"),
    (CommandComplete("INSERT 0 3"), b"C\0\0\0\x0fINSERT 0 3\0"),
    (ParameterDescription((23, 25)), b"t\0\0\0\x0e\0\2\0\0\0\x17\0\0\0\x19"),
    (
        ErrorResponse({"S": "ERROR", "C": "42501", "M": "no"}),
        b"E\0\0\0\x17SERROR\0C42501\0Mno\0\0",
    ),
    (NoticeResponse({"S": "NOTICE"}), b"N\0\0\0\x0dSNOTICE\0\0"),
]


@pytest.mark.parametrize(("message", "wire"), FRONTEND_EXAMPLES)
def test_frontend_messages_have_the_documented_bytes(message, wire: bytes) -> None:
    assert message.encode() == wire
    assert decode_frontend(wire[0], wire[5:]) == message


@pytest.mark.parametrize(("message", "wire"), STARTUP_EXAMPLES)
def test_startup_messages_have_the_documented_bytes(message, wire: bytes) -> None:
    assert message.encode() == wire
    frames = StartupFrames()
    frames.feed(wire)
    assert decode_startup(next(frames)) == message


@pytest.mark.parametrize(("message", "wire"), BACKEND_EXAMPLES)
def test_backend_messages_have_the_documented_bytes(message, wire: bytes) -> None:
    assert message.encode() == wire
    assert type(message).decode(wire[5:]) == message


# A message with any bytes means something, so trailing bytes make another message of it.
OPAQUE = (CopyData, PasswordMessage, Authentication, BackendKeyData)


@pytest.mark.parametrize(("message", "wire"), FRONTEND_EXAMPLES + BACKEND_EXAMPLES)
def test_every_truncation_and_any_trailing_byte_is_a_violation(message, wire: bytes) -> None:
    payload = wire[5:]
    if isinstance(message, OPAQUE):
        return
    for end in range(len(payload)):
        with pytest.raises(ProtocolViolation):
            type(message).decode(payload[:end])
    for extra in (b"\0", b"x", b"\xff\xff\xff\xff"):
        with pytest.raises(ProtocolViolation):
            type(message).decode(payload + extra)


@pytest.mark.parametrize(("message", "wire"), STARTUP_EXAMPLES)
def test_every_truncation_of_a_startup_message_is_a_violation(message, wire: bytes) -> None:
    for end in range(len(wire) - 4):
        with pytest.raises(ProtocolViolation):
            decode_startup(wire[4:][:end])
    if not isinstance(message, CancelRequest):
        with pytest.raises(ProtocolViolation):
            decode_startup(wire[4:] + b"x")


@pytest.mark.parametrize(
    ("kind", "payload", "sqlstate"),
    [
        ("Q", b"select 1; \0 drop table t\0", "08P01"),
        ("Q", b"select 1", "08P01"),
        ("Q", b"", "08P01"),
        ("Q", b"select '\xff'\0", "22021"),
        ("Q", b"select '\xed\xa0\x80'\0", "22021"),
        ("Q", b"select '\xc0\xaf'\0", "22021"),
        ("P", b"a\0select 1\0\0\1", "08P01"),
        ("P", b"\xff\0select 1\0\0\0", "22021"),
        ("P", b"a\0select 1\0\xff\xff", "08P01"),
        ("B", b"\0\0\0\0\0\1\xff\xff\xff\xfe\0\0", "08P01"),
        ("B", b"\0\0\0\0\0\1\xff\xff\0\0\0\0", "08P01"),
        ("B", b"\0\0\0\0\0\1\x80\0\0\0\0\0", "08P01"),
        ("B", b"\0\0\0\0\0\1\x7f\xff\xff\xff\0\0", "08P01"),
        ("B", b"\0\0\0\0\xff\xff\0\0", "08P01"),
        ("B", b"\0\0\0\1\0\0\0\0\0\0extra", "08P01"),
        ("S", b"x", "08P01"),
        ("f", b"a\0b\0", "08P01"),
    ],
)
def test_what_two_readers_could_read_differently_ends_the_connection(kind: str, payload: bytes, sqlstate: str) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        decode_frontend(ord(kind), payload)
    assert (caught.value.sqlstate, caught.value.fatal) == (sqlstate, True)


@pytest.mark.parametrize(
    ("kind", "payload", "text"),
    [
        ("D", b"Xa\0", "invalid DESCRIBE message subtype 88"),
        ("C", b"xa\0", "invalid CLOSE message subtype 120"),
        ("B", b"\0\0\0\1\0\2\0\0\0\0", "unsupported format code: 2"),
        ("B", b"\0\0\0\2\0\0\0\1\0\1\xff\xff\xff\xff\0\0", "2 parameter formats but 1 parameters"),
        ("B", b"\0\0\0\0\0\0\0\1\xff\xff", "unsupported format code: -1"),
    ],
)
def test_a_wrong_field_in_a_whole_message_is_recoverable(kind: str, payload: bytes, text: str) -> None:
    with pytest.raises(ProtocolViolation, match=text) as caught:
        decode_frontend(ord(kind), payload)
    assert not caught.value.fatal


def test_65535_parameters_can_be_carried_and_one_more_cannot() -> None:
    values = (b"1",) * 65_535
    bind = Bind("", "s", (0,) * 65_535, values, (0,))
    assert decode_frontend(ord("B"), bind.encode()[5:]) == bind
    parse = Parse("s", "select", (23,) * 65_535)
    assert decode_frontend(ord("P"), parse.encode()[5:]) == parse
    for message in (
        Bind("", "s", (), (*values, b"1"), ()),
        Parse("s", "", (23,) * 65_536),
        DataRow((None,) * 65_536),
        ParameterDescription((0,) * 65_536),
    ):
        with pytest.raises(ValueError, match="65,535"):
            message.encode()


def test_1600_columns() -> None:
    description = RowDescription(tuple(Field(f"c{i}", 25) for i in range(1600)))
    assert RowDescription.decode(description.encode()[5:]) == description


def test_a_string_with_a_nul_is_never_encoded() -> None:
    for message in (Query("a\0b"), Parse("a\0", ""), Describe("S", "\0"), StartupMessage({"a": "b\0"})):
        with pytest.raises(ValueError, match="NUL"):
            message.encode()
    fields = error_fields("ERROR", "42501", "a\0b", hint="c", detail="d", position=3)
    assert ErrorResponse.decode(ErrorResponse(fields).encode()[5:]).fields == {
        "S": "ERROR", "V": "ERROR", "C": "42501", "M": "a\ufffdb", "D": "d", "H": "c", "P": "3",
    }  # fmt: skip


def test_a_startup_parameter_given_twice_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation, match="twice"):
        decode_startup(b"\0\3\0\0user\0a\0user\0b\0\0")


@pytest.mark.parametrize("version", [b"\0\2\0\0", b"\0\4\0\0", b"\x04\xd2\x16\x31", b"GET "])
def test_another_protocol_version_is_refused(version: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="unsupported frontend protocol") as caught:
        decode_startup(version + b"user\0a\0\0")
    assert caught.value.sqlstate == "0A000"


def test_a_newer_minor_version_is_left_to_negotiation() -> None:
    message = decode_startup(b"\0\3\0\2user\0a\0\0")
    assert isinstance(message, StartupMessage)
    assert (message.major, message.minor) == (3, 2)


@pytest.mark.parametrize("length", [0, 3, 257])
def test_a_cancel_key_has_4_to_256_bytes(length: int) -> None:
    with pytest.raises(ProtocolViolation):
        decode_startup(b"\x04\xd2\x16\x2e\0\0\0\7" + bytes(length))
    with pytest.raises(ProtocolViolation):
        BackendKeyData.decode(b"\0\0\0\7" + bytes(length))


def test_secrets_and_values_hide_in_repr() -> None:
    for message in (
        PasswordMessage(b"secret"),
        CancelRequest(1, b"secret"),
        BackendKeyData(1, b"secret"),
        Bind("", "", (), (b"secret",), ()),
        CopyData(b"secret"),
        FunctionCall(1, (), (b"secret",), 0),
        DataRow((b"secret",)),
    ):
        assert "secret" not in repr(message).replace("secret=...", "")


def test_the_fields_of_an_error() -> None:
    error = ErrorResponse({"S": "FEHLER", "V": "ERROR", "C": "22012", "M": "durch null"})
    assert (error.severity, error.sqlstate, error.message) == ("ERROR", "22012", "durch null")
    assert ErrorResponse({"S": "FATAL"}).severity == "FATAL"
    assert ErrorResponse.decode(b"M\xff\0\0").message == "\ufffd"


@pytest.mark.parametrize(("tag", "rows"), [("SELECT 5", 5), ("INSERT 0 3", 3), ("BEGIN", 0), ("", 0), ("X \u00b2", 0)])
def test_rows_of_a_command_tag(tag: str, rows: int) -> None:
    assert CommandComplete(tag).rows == rows


def test_what_was_discarded_is_told_by_its_kind() -> None:
    frames = Frames(frontend_limits(1024, 1024))
    frames.feed(Query("x" * 2000).encode())
    assert decode_frontend(*next(frames)) == Oversized(ord("Q"))


def test_fixed_messages() -> None:
    assert CLOSE_COMPLETE == b"3\0\0\0\4"
    assert ReadyForQuery.decode(b"I").status == "I"
    with pytest.raises(ProtocolViolation):
        ReadyForQuery.decode(b"X")


def test_an_unknown_kind_is_a_violation() -> None:
    for kind in set(range(256)) - set(FRONTEND):
        with pytest.raises(ProtocolViolation, match="invalid frontend message type"):
            decode_frontend(kind, b"")


@given(st.sampled_from([k for k in FRONTEND if k]), st.binary(max_size=64))
@example(ord("B"), b"\0\0\x80\0")
@example(ord("P"), b"\0\0\x80\0")
def test_garbage_decodes_to_a_message_that_encodes_to_the_same_bytes_or_is_a_violation(
    kind: int, payload: bytes
) -> None:
    try:
        message = decode_frontend(kind, payload)
    except ProtocolViolation:
        return
    assert not isinstance(message, Oversized)
    assert message.encode()[5:] == payload


@given(st.sampled_from([type(message) for message, _ in BACKEND_EXAMPLES]), st.binary(max_size=64))
def test_garbage_from_the_database_is_a_message_or_a_violation(kind, payload: bytes) -> None:
    try:
        message = kind.decode(payload)
    except ProtocolViolation:
        return
    if kind not in (ErrorResponse, NoticeResponse):
        assert message.encode()[5:] == payload


@given(st.binary(max_size=64), st.sampled_from([b"", b"\0\3\0\0", b"\x04\xd2\x16\x2e", b"\x04\xd2\x16\x2f"]))
def test_garbage_at_startup_is_a_message_or_a_violation(data: bytes, prefix: bytes) -> None:
    try:
        message = decode_startup(prefix + data)
    except ProtocolViolation:
        return
    assert message.encode()[4:] == prefix + data


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
FORMATS = st.sampled_from([TEXT, BINARY])


@given(
    portal=TEXTS,
    statement=TEXTS,
    values=st.lists(st.none() | st.binary(max_size=20), max_size=5),
    results=st.lists(FORMATS, max_size=5),
    data=st.data(),
)
def test_any_bind_survives_a_round_trip(portal, statement, values, results, data) -> None:
    formats = data.draw(st.lists(FORMATS, max_size=1) | st.lists(FORMATS, min_size=len(values), max_size=len(values)))
    bind = Bind(portal, statement, tuple(formats), tuple(values), tuple(results))
    assert decode_frontend(ord("B"), bind.encode()[5:]) == bind
