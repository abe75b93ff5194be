import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grille.protocols.postgres.framing import ProtocolViolation
from grille.protocols.postgres.messages import (
    Bind,
    CancelRequest,
    Close,
    CopyData,
    CopyDone,
    CopyFail,
    Describe,
    Execute,
    Flush,
    FrontendMessage,
    FunctionCall,
    GSSENCRequest,
    Oversized,
    Parse,
    PasswordMessage,
    Query,
    SSLRequest,
    Startup,
    StartupMessage,
    Sync,
    Terminate,
)
from grille.protocols.postgres.state import READY, TABLE, ClientState, Event, State

MESSAGES = [
    Query(""),
    Parse("", ""),
    Bind("", ""),
    Describe("S", ""),
    Execute(""),
    Close("S", ""),
    Flush(),
    Sync(),
    Terminate(),
    CopyData(b""),
    CopyDone(),
    CopyFail(""),
    FunctionCall(1, (), (), 0),
    PasswordMessage(b""),
    SSLRequest(),
    GSSENCRequest(),
    CancelRequest(1, b"abcd"),
    StartupMessage({}),
]

# One row a state; columns as in MESSAGES, then the events.  ".": a violation (message) or a mistake (event).
COLUMNS = [type(message).__name__ for message in MESSAGES] + [event.name for event in Event]
EXPECTED = """
                   Q P B D E C H S X d c f F p ssl gss can sta enc fail I  T  E  ci ce closed
CONNECTED          . . . . . . . . . . . . . . HS  GR  CL  .   EN  .    .  .  .  .  .  CL
GSSENC_REFUSED     . . . . . . . . . . . . . . HS  .   CL  .   .   .    .  .  .  .  .  CL
HANDSHAKE          . . . . . . . . . . . . . . .   .   .   .   EN  .    .  .  .  .  .  CL
ENCRYPTED          . . . . . . . . . . . . . . .   .   CL  ST  .   .    .  .  .  .  .  CL
STARTING           . . . . . . . . . . . . . . .   .   .   .   .   .    ID .  .  .  .  CL
IDLE               A X X X X X X A CL . . . . . .  .   .   .   .   .    .  .  .  .  .  CL
TRANSACTION        A X X X X X X A CL . . . . . .  .   .   .   .   .    .  .  .  .  .  CL
FAILED_TRANSACTION A X X X X X X A CL . . . . . .  .   .   .   .   .    .  .  .  .  .  CL
EXTENDED           A X X X X X X A CL . . . . . .  .   .   .   .   SK   .  .  .  .  CE CL
SKIPPING           SK SK SK SK SK SK SK A CL . . . . . . . .   .   .   .    .  .  .  .  .  CL
ANSWERING          . . . . . . . . . . . . . . .   .   .   .   .   A    ID TR FT CI CE CL
COPY_IN            . . . . . . CI CI CL CI A A . . . . . .     .   A    .  .  .  .  .  CL
COPY_IN_EXTENDED   . . . . . . CE CE CL CE X X . . . . . .     .   SK   .  .  .  .  .  CL
CLOSED             . . . . . . . . . . . . . . .   .   .   .   .   .    .  .  .  .  .  CL
"""
# What a session that carries COPY does otherwise: the same columns d, c and f.
LEFT_OVER = {"IDLE": "ID", "TRANSACTION": "TR", "FAILED_TRANSACTION": "FT", "EXTENDED": "X", "SKIPPING": "SK"}
SHORT = {
    "HS": State.HANDSHAKE,
    "GR": State.GSSENC_REFUSED,
    "EN": State.ENCRYPTED,
    "ST": State.STARTING,
    "ID": State.IDLE,
    "TR": State.TRANSACTION,
    "FT": State.FAILED_TRANSACTION,
    "X": State.EXTENDED,
    "SK": State.SKIPPING,
    "A": State.ANSWERING,
    "CI": State.COPY_IN,
    "CE": State.COPY_IN_EXTENDED,
    "CL": State.CLOSED,
    ".": None,
}
ROWS = {State[row.split()[0]]: [SHORT[cell] for cell in row.split()[1:]] for row in EXPECTED.strip().splitlines()[1:]}
CASES = [
    (state, thing, after)
    for state, cells in ROWS.items()
    for thing, after in zip([*MESSAGES, *Event], cells, strict=True)
]


def test_every_state_and_every_input_is_in_the_cases() -> None:
    assert set(ROWS) == set(State) == set(TABLE)
    every = {*get_args(FrontendMessage), *get_args(Startup)} - {Oversized}
    assert {type(message) for message in MESSAGES} == every


@pytest.mark.parametrize("copy", [False, True], ids=["governed", "passthrough"])
@pytest.mark.parametrize(("before", "thing", "after"), CASES)
def test_every_state_with_every_input(before: State, thing, after: State | None, copy: bool) -> None:
    client = ClientState()
    if copy:
        client.carry_copy()
        if isinstance(thing, CopyData | CopyDone | CopyFail) and before.name in LEFT_OVER:
            after = SHORT[LEFT_OVER[before.name]]
    client.state = before
    if after is not None:
        assert (client.happened(thing) if isinstance(thing, Event) else client.receive(thing)) is after
        assert client.state is after
    elif isinstance(thing, Event):
        with pytest.raises(RuntimeError):
            client.happened(thing)
    else:
        with pytest.raises(ProtocolViolation) as caught:
            client.receive(thing)
        assert caught.value.fatal
        assert client.state is before


@pytest.mark.parametrize(("discarded", "after"), [("Q", State.ANSWERING), ("P", State.EXTENDED), ("B", State.EXTENDED)])
def test_a_discarded_message_moves_the_state_as_itself(discarded: str, after: State) -> None:
    client = ClientState()
    client.state = State.IDLE
    assert client.receive(Oversized(ord(discarded))) is after


def test_a_whole_session() -> None:
    client = ClientState()
    for message in (GSSENCRequest(), SSLRequest()):
        client.receive(message)
    client.happened(Event.ENCRYPTED)
    client.receive(StartupMessage({}))
    client.happened(READY["I"])
    client.receive(Query("begin"))
    assert client.happened(READY["T"]) is State.TRANSACTION
    for message in (Parse("", ""), Bind("", "")):
        client.receive(message)
    assert client.happened(Event.FAILED) is State.SKIPPING
    assert client.receive(Query("ignored")) is State.SKIPPING
    assert client.receive(Sync()) is State.ANSWERING
    assert client.happened(READY["E"]) is State.FAILED_TRANSACTION
    assert client.receive(Terminate()) is State.CLOSED


def refusal(state: State, message) -> tuple[str, str]:
    client = ClientState()
    client.state = state
    with pytest.raises(ProtocolViolation) as caught:
        client.receive(message)
    return caught.value.sqlstate, caught.value.control


def test_the_reason_is_told() -> None:
    assert refusal(State.CONNECTED, StartupMessage({})) == ("28000", "ID-03")
    assert refusal(State.GSSENC_REFUSED, StartupMessage({})) == ("28000", "ID-03")
    assert refusal(State.IDLE, FunctionCall(1, (), (), 0)) == ("0A000", "WP-02")
    assert refusal(State.IDLE, CopyData(b"")) == ("0A000", "WP-02")
    assert refusal(State.IDLE, PasswordMessage(b"")) == ("08P01", "WP-01")
    assert refusal(State.CLOSED, Sync()) == ("08P01", "WP-01")
    assert refusal(State.ENCRYPTED, SSLRequest()) == ("08P01", "WP-01")


@given(st.lists(st.sampled_from([*MESSAGES, *Event]), max_size=30))
def test_no_sequence_leaves_the_table(sequence) -> None:
    client = ClientState()
    for thing in sequence:
        before = client.state
        try:
            after = client.happened(thing) if isinstance(thing, Event) else client.receive(thing)
        except (ProtocolViolation, RuntimeError):
            after = before
        assert client.state is after
        if before is State.CLOSED:
            assert after is State.CLOSED


def test_nothing_is_ready_before_the_handshake() -> None:
    """No path of messages alone leads out of the clear: that takes the handshake itself."""
    reached = {State.CONNECTED}
    for _ in State:
        reached |= {
            after
            for state, thing in itertools.product(tuple(reached), MESSAGES)
            if (after := TABLE[state].get(type(thing))) is not None
        }
    assert reached == {State.CONNECTED, State.GSSENC_REFUSED, State.HANDSHAKE, State.CLOSED}
