"""Which call may come when: every state by every input."""

from __future__ import annotations

import itertools

import pytest

from grille.protocols.mq.channel import Channel, State, Talk, initial_data, restricted
from grille.protocols.mq.segments import REPLY, WHOLE, Flag, ProtocolError, Segment, Type
from tests.protocols.mq import build

SERVER = 0x02
"""Flags with which a queue manager objects."""


def opened(conversations: int = 10) -> Channel:
    channel = Channel()
    channel.from_client(build.initial(conversations=conversations))
    channel.from_manager(build.initial(conversations=conversations, flags=SERVER))
    channel.from_client(build.initial(conversations=conversations, multiplexed=conversations > 0))
    channel.from_manager(build.initial(conversations=conversations, multiplexed=conversations > 0, flags=0))
    return channel


def connected(conversations: int = 10) -> Channel:
    channel = opened(conversations)
    channel.from_client(build.connect())
    channel.from_manager(build.simple(Type.MQCONN_REPLY))
    return channel


def of(kind: Type) -> Segment:
    """A call of this type that is well-formed in itself."""
    match kind:
        case Type.INITIAL_DATA:
            return build.initial()
        case Type.SOCKET_ACTION:
            return build.action(1, 3)
        case Type.HEARTBEAT:
            return build.heartbeat()
        case Type.MQPUT:
            return build.put(b"")
        case Type.MQPUT1:
            return build.put1("Q", b"")
        case Type.REQUEST_MSGS:
            return build.request()
        case Type.ASYNC_MESSAGE:
            return build.message(b"")
        case _:
            return build.simple(kind)


CALLS = {
    Type.MQOPEN, Type.MQCLOSE, Type.MQGET, Type.MQPUT, Type.MQPUT1, Type.MQSET, Type.MQINQ, Type.MQCMIT, Type.MQBACK,
    Type.SPI, Type.MQSTAT, Type.MQSUB, Type.MQSUBRQ,
}  # fmt: skip
STREAM = {Type.REQUEST_MSGS, Type.NOTIFICATION}
ALWAYS = {Type.HEARTBEAT, Type.SOCKET_ACTION}
CLIENT: dict[Talk, set[Type]] = {
    Talk.ASKED: set(),
    Talk.BEGUN: {Type.USERID_DATA, Type.CONAUTH_INFO, Type.MQCONN},
    Talk.AUTHENTICATING: set(),
    Talk.CONNECTING: set(),
    Talk.CONNECTED: CALLS | STREAM | {Type.MQDISC},
    Talk.CALLING: STREAM,
    Talk.DISCONNECTING: set(),
    Talk.OVER: set(),
}
MANAGER: dict[Talk, set[Type]] = {
    Talk.ASKED: set(),
    Talk.BEGUN: set(),
    Talk.AUTHENTICATING: {Type.STATUS},
    Talk.CONNECTING: {Type.MQCONN_REPLY},
    Talk.CONNECTED: {Type.ASYNC_MESSAGE, Type.NOTIFICATION},
    Talk.CALLING: {Type.ASYNC_MESSAGE, Type.NOTIFICATION, Type.MQOPEN_REPLY},
    Talk.DISCONNECTING: {Type.ASYNC_MESSAGE, Type.NOTIFICATION, Type.MQDISC_REPLY},
    Talk.OVER: set(),
}


@pytest.mark.parametrize("talk", Talk)
@pytest.mark.parametrize("kind", Type)
def test_every_state_of_a_conversation_by_every_call(talk: Talk, kind: Type) -> None:
    for client in (True, False):
        channel = opened()
        channel.talks[1] = talk
        if talk is Talk.CALLING:
            channel._under_way[1] = Type.MQOPEN
        allowed = (CLIENT if client else MANAGER)[talk] | ({Type.HEARTBEAT} if not client else ALWAYS)
        send = channel.from_client if client else channel.from_manager
        if kind in allowed:
            send(of(kind))
        else:
            before = dict(channel.talks), channel.state
            with pytest.raises(ProtocolError):
                send(of(kind))
            assert (channel.talks, channel.state) == before


@pytest.mark.parametrize("state", [State.NEW, State.PROPOSED, State.OBJECTED, State.PROPOSED_AGAIN, State.CLOSED])
@pytest.mark.parametrize("kind", Type)
def test_every_state_of_a_channel_that_is_not_open_by_every_call(state: State, kind: Type) -> None:
    asking, asked = {State.NEW, State.OBJECTED}, {State.PROPOSED, State.PROPOSED_AGAIN}
    for client in (True, False):
        channel = Channel()
        channel.state, channel._agreed = state, 10
        call = build.initial(multiplexed=state is State.OBJECTED, flags=0) if kind is Type.INITIAL_DATA else of(kind)
        send = channel.from_client if client else channel.from_manager
        good = (kind is Type.INITIAL_DATA and state in (asking if client else asked)) or (
            kind is Type.STATUS and not client and state in asked
        )
        if good:
            send(call)
            assert channel.state is not state
        else:
            with pytest.raises(ProtocolError):
                send(call)
            assert channel.state is state


def test_a_whole_conversation() -> None:
    channel = connected()
    for kind in sorted(CALLS):
        channel.from_client(of(kind))
        with pytest.raises(ProtocolError, match="while the conversation is calling"):
            channel.from_client(of(Type.MQCMIT))
        for other in sorted(CALLS - {kind}):
            with pytest.raises(ProtocolError, match="answers no call"):
                channel.from_manager(of(Type(other + REPLY)))
        channel.from_manager(of(Type(kind + REPLY)))
    channel.from_client(of(Type.REQUEST_MSGS))
    channel.from_manager(of(Type.ASYNC_MESSAGE))
    channel.from_client(of(Type.MQDISC))
    channel.from_manager(of(Type.MQDISC_REPLY))
    channel.from_client(build.action(2, 1, flags=WHOLE | Flag.CLOSE_CHANNEL))
    assert channel.state is State.CLOSED


def test_an_asynchronous_put_is_not_answered() -> None:
    channel = connected()
    channel.from_client(build.put(b"", options=0x12044))
    with pytest.raises(ProtocolError, match="answers no call"):
        channel.from_manager(of(Type.MQPUT_REPLY))
    channel.from_client(of(Type.MQCMIT))


def test_further_conversations() -> None:
    channel = connected(conversations=2)
    with pytest.raises(ProtocolError, match="accepts nothing"):
        channel.from_manager(build.action(8, 3, accept=True))
    for wrong in (1, 2, 0):
        with pytest.raises(ProtocolError, match="may not begin"):
            channel.from_client(build.action(1, wrong))
    channel.from_client(build.action(1, 3))
    with pytest.raises(ProtocolError, match="asked"):
        channel.from_client(build.connect(conversation=3))
    channel.from_manager(build.action(8, 3, accept=True))
    channel.from_client(build.connect(conversation=3))
    with pytest.raises(ProtocolError, match="may not begin"):
        channel.from_client(build.action(1, 5))
    channel.from_client(build.action(2, 3))
    with pytest.raises(ProtocolError, match="does not exist"):
        channel.from_manager(build.simple(Type.MQCONN_REPLY, conversation=3))
    for wrong in (3, 7):
        with pytest.raises(ProtocolError, match="of no conversation"):
            channel.from_client(build.action(2, wrong))
    with pytest.raises(ProtocolError, match="not carried"):
        channel.from_client(build.action(4, 1))


def test_a_refused_connection_is_over() -> None:
    channel = opened()
    channel.from_client(build.connect())
    channel.from_manager(build.simple(Type.MQCONN_REPLY, code=2, reason=2035))
    with pytest.raises(ProtocolError, match="over"):
        channel.from_client(of(Type.MQOPEN))


def test_a_channel_without_conversations() -> None:
    channel = opened(conversations=0)
    assert not channel.multiplexed
    for call in (build.connect(), build.action(1, 3), build.heartbeat()):
        with pytest.raises(ProtocolError, match="another kind of segment"):
            channel.from_client(call)
    call = build.connect(conversation=0)
    call.eyecatcher = b"TSH "
    channel.from_client(call)
    assert channel.talks == {0: Talk.CONNECTING}
    goodbye = Segment(Type.STATUS, b"", WHOLE | Flag.CLOSE_CHANNEL, eyecatcher=b"TSH ")
    for wrong in (
        Segment(Type.STATUS, b"", WHOLE, eyecatcher=b"TSH "),
        Segment(Type.STATUS, bytes(8), 0x38, eyecatcher=b"TSH "),
    ):
        with pytest.raises(ProtocolError, match="connecting"):
            channel.from_client(wrong)
    channel.from_client(goodbye)
    assert channel.state is State.CLOSED


def test_one_round_is_enough_if_nothing_is_to_change() -> None:
    channel = Channel()
    channel.from_client(build.initial())
    channel.from_manager(build.initial(flags=0, conversations=1))
    assert (channel.state, channel.multiplexed) == (State.OPEN, True)


def test_the_queue_manager_objects_once() -> None:
    channel = Channel()
    channel.from_client(build.initial())
    channel.from_manager(build.initial(flags=SERVER))
    with pytest.raises(ProtocolError, match="out of turn"):
        channel.from_client(build.initial())
    channel.from_client(build.initial(multiplexed=True))
    with pytest.raises(ProtocolError, match="objects twice"):
        channel.from_manager(build.initial(multiplexed=True, flags=SERVER))


@pytest.mark.parametrize("level", [0, 10, 18, 255])
def test_a_level_that_is_not_known(level: int) -> None:
    with pytest.raises(ProtocolError, match="not within 11 and 17"):
        initial_data(build.initial(level=level))


def test_initial_data_and_what_is_taken_out_of_it() -> None:
    call = build.initial()
    body = bytearray(call.body)
    body[104:108], body[124], body[132] = b"\x08\xff\x02\x04", 7, 0x28
    call.body = bytes(body)
    told = initial_data(call)
    assert (told.channel, told.manager, told.ccsid, told.heartbeat) == ("APP.SVRCONN", "QM1", 819, 300)
    assert (told.xa, told.synchronous_get, told.compressed, told.conversations) == (True, True, True, 10)
    less = restricted(call, "NEW.CHANNEL", segment_limit=4096, message_limit=1000, conversations=5)
    told = initial_data(less)
    assert (told.xa, told.synchronous_get, told.compressed, told.conversations) == (False, False, False, 5)
    assert (told.segment_limit, told.message_limit) == (4096, 1000)
    assert less.body[124:128] == bytes(4)
    more = initial_data(restricted(call, "NEW.CHANNEL", segment_limit=1 << 20, message_limit=1 << 30, conversations=99))
    assert (more.segment_limit, more.message_limit, more.conversations) == (32748, 104857600, 10)
    for length in range(240):
        with pytest.raises(ProtocolError):
            initial_data(Segment(Type.INITIAL_DATA, call.body[:length]))


def test_a_heartbeat_has_no_body() -> None:
    call = build.heartbeat()
    call.body = bytes(4)
    for send in (opened().from_client, opened().from_manager):
        with pytest.raises(ProtocolError, match="has a body"):
            send(call)


def test_all_types_are_in_the_tables() -> None:
    told = set(itertools.chain(*CLIENT.values(), *MANAGER.values(), ALWAYS, [Type.INITIAL_DATA]))
    assert told | {Type(kind + REPLY) for kind in CALLS} == set(Type)
