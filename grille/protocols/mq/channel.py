"""The beginning of a channel, and which segment may come when.

`Channel` follows both directions of one socket.  A client proposes with INITIAL_DATA; the queue manager accepts, or
answers with the flag ERROR and the client proposes once more with what was asked for.  Then come conversations: the
first is there at once, further ones are begun and ended with SOCKET_ACTION.  A conversation connects with MQCONN, has
one call of the interface under way at a time, and messages stream beside that.
"""

from __future__ import annotations

import struct
from enum import Enum, auto
from typing import Final

import msgspec

from grille.protocols.mq.calls import ASYNC_RESPONSE, put
from grille.protocols.mq.segments import MULTIPLEXED, REPLY, SINGLE, SOCKET, Flag, ProtocolError, Segment, Type
from grille.protocols.mq.structures import Fields

HIGHEST_LEVEL: Final = 17
"""The newest level of the channel protocol whose layouts are known here."""
LOWEST_LEVEL: Final = 11
"""The oldest whose INITIAL_DATA has all the fields that are read and changed here."""
ID_SIZE: Final = 240
START_CONV, END_CONV, ACCEPT_CONV = 1, 2, 8
"""Types of SOCKET_ACTION."""
XA: Final = 0x10
"""CapFlags2: distributed transactions."""
MULTIPLEX_SYNCGET: Final = 0x08
"""CapFlags3: MQGET on conversations, whose answers cannot grow."""
_CAPABILITIES: Final = (5, 44, 132)
"""Where CapFlags1 to 3 are; the byte behind each has the bits that the other side refuses."""
_NO_HEADER_COMPRESSION: Final = b"\x00\xff"
_NO_COMPRESSION: Final = b"\x00" + b"\xff" * 15


class InitialData(msgspec.Struct, frozen=True):
    """What one side proposes for the channel."""

    level: int
    channel: str
    manager: str
    ccsid: int
    segment_limit: int
    """Bytes (MaxTransmissionSize)."""
    message_limit: int
    """Bytes."""
    heartbeat: int
    """Seconds; 0: none."""
    conversations: int
    """On one socket; 0: no multiplexing."""
    xa: bool
    synchronous_get: bool
    compressed: bool


def initial_data(segment: Segment) -> InitialData:
    """Read INITIAL_DATA.  Raises `ProtocolError`, also for a level that is not known here."""
    fields = Fields(segment.body, little=segment.little)
    if fields.raw(0, 4) != b"ID  ":
        raise ProtocolError("ID is missing where it has to be")
    level = fields.raw(4, 1)[0]
    if not LOWEST_LEVEL <= level <= HIGHEST_LEVEL:
        raise ProtocolError(f"level {level} of the channel protocol is not within {LOWEST_LEVEL} and {HIGHEST_LEVEL}")
    fields.raw(0, ID_SIZE)
    return InitialData(
        level=level,
        channel=fields.name(24, 20),
        manager=fields.name(48, 48),
        ccsid=fields.u16(46),
        segment_limit=fields.u32(12),
        message_limit=fields.u32(16),
        heartbeat=fields.u32(96),
        conversations=max(0, fields.i32(128)),
        xa=bool(fields.raw(44, 1)[0] & XA),
        synchronous_get=bool(fields.raw(132, 1)[0] & MULTIPLEX_SYNCGET),
        compressed=fields.raw(104, 18) != _NO_HEADER_COMPRESSION + _NO_COMPRESSION,
    )


def restricted(
    segment: Segment, channel: str, *, segment_limit: int, message_limit: int, conversations: int
) -> Segment:
    """INITIAL_DATA for this channel, without what cannot be followed here.

    That is compression, key reset, XA and MQGET on conversations.  The limits are lowered to those given.  Raises
    `ProtocolError` as `initial_data` does.
    """
    told = initial_data(segment)
    order = "<" if segment.little else ">"
    body = bytearray(segment.body)
    struct.pack_into(
        f"{order}II", body, 12, min(told.segment_limit, segment_limit), min(told.message_limit, message_limit)
    )
    body[24:44] = channel.encode("ascii").ljust(20)
    body[44] &= ~XA
    body[104:122] = _NO_HEADER_COMPRESSION + _NO_COMPRESSION
    struct.pack_into(f"{order}Ii", body, 124, 0, min(told.conversations, conversations))
    body[132] &= ~MULTIPLEX_SYNCGET
    return msgspec.structs.replace(segment, body=bytes(body))


def adopted(asked: Segment, answer: Segment) -> Segment:
    """What a client proposes next: the values of the answer, and of its own proposal what says who it is."""
    body = bytearray(answer.body[:ID_SIZE])
    body[24:44] = asked.body[24:44]
    body[148:160], body[208:] = asked.body[148:160], asked.body[208:ID_SIZE]
    _without_errors(body)
    told = initial_data(answer)
    shared = min(told.conversations, initial_data(asked).conversations) > 0
    return Segment(
        Type.INITIAL_DATA,
        bytes(body),
        asked.flags,
        1 if shared else 0,
        eyecatcher=MULTIPLEXED if shared else SINGLE,
        little=answer.little,
    )


def answer_to(asked: Segment, agreed: Segment) -> Segment:
    """What a client that proposed ``asked`` is answered, given what was agreed with the queue manager.

    It has the flag ERROR, and says what the client is to change, if that is not what it proposed.
    """
    proposed, settled = initial_data(asked), initial_data(agreed)
    body = bytearray(agreed.body[:ID_SIZE])
    body[24:44] = asked.body[24:44]
    _without_errors(body)
    wrong = sum(
        bit
        for bit, one, other in (
            (0x80, proposed.heartbeat, settled.heartbeat),
            (0x10, proposed.message_limit, settled.message_limit),
            (0x08, proposed.level, settled.level),
            (0x04, proposed.segment_limit, settled.segment_limit),
        )
        if one != other
    )
    refused = [(at, asked.body[at] & ~body[at] & 0xFF) for at in _CAPABILITIES]
    compressed = 0x01 * (asked.body[104:106] != _NO_HEADER_COMPRESSION) | 0x02 * (
        asked.body[106:122] != _NO_COMPRESSION
    )
    changed = bool(wrong or compressed or any(bits for _, bits in refused))
    if changed:
        body[7], body[102] = wrong, compressed
        for at, bits in refused:
            body[at + 1] = bits
    conversations = min(proposed.conversations, settled.conversations)
    struct.pack_into("<i" if agreed.little else ">i", body, 128, conversations)
    return Segment(
        Type.INITIAL_DATA,
        bytes(body),
        Flag.ERROR if changed else 0,
        asked.conversation,
        eyecatcher=asked.eyecatcher,
        little=agreed.little,
    )


def _without_errors(body: bytearray) -> None:
    body[7] = body[102] = 0
    for at in _CAPABILITIES:
        body[at + 1] = 0


def user_data(user: str, like: Segment) -> Segment:
    """USERID_DATA: whom the queue manager is to take the client for, as the segments of this channel are."""
    name = user.encode("ascii")
    body = b"UID " + name[:12].ljust(12) + bytes(12) + name.ljust(64) + bytes(40)
    return Segment(
        Type.USERID_DATA, body, conversation=like.conversation, eyecatcher=like.eyecatcher, little=like.little
    )


def ended(code: int, like: Segment) -> Segment:
    """STATUS with one of the codes below, after which the socket is closed."""
    order = "<" if like.little else ">"
    return Segment(
        Type.STATUS,
        struct.pack(f"{order}II", 8, code),
        Flag.ERROR | Flag.CLOSE_CHANNEL,
        like.conversation,
        eyecatcher=like.eyecatcher,
        little=like.little,
    )


NO_CHANNEL: Final = 0x01
NO_MANAGER: Final = 0x03
TERMINATING: Final = 0x05
PROTOCOL: Final = 0x0C
"""Codes of STATUS: no such channel, the queue manager is unavailable or ends, invalid data."""


class SocketAction(msgspec.Struct, frozen=True):
    """SOCKET_ACTION: a conversation begins or ends."""

    conversation: int
    action: int


def socket_action(segment: Segment) -> SocketAction:
    """Read SOCKET_ACTION.  Raises `ProtocolError`."""
    fields = Fields(segment.body, little=segment.little)
    fields.raw(0, 20)
    return SocketAction(fields.u32(0), fields.u32(8))


class State(Enum):
    """Of a channel, until it is open."""

    NEW = auto()
    PROPOSED = auto()
    """The queue manager is to answer."""
    OBJECTED = auto()
    """The client is to propose again."""
    PROPOSED_AGAIN = auto()
    OPEN = auto()
    CLOSED = auto()


class Talk(Enum):
    """State of a conversation."""

    ASKED = auto()
    """The client wants it."""
    BEGUN = auto()
    AUTHENTICATING = auto()
    CONNECTING = auto()
    CONNECTED = auto()
    CALLING = auto()
    """A call of the interface is under way."""
    DISCONNECTING = auto()
    OVER = auto()
    """Disconnected or refused."""


_CALLS: Final = frozenset(
    {
        Type.MQOPEN, Type.MQCLOSE, Type.MQGET, Type.MQPUT, Type.MQPUT1, Type.MQSET, Type.MQINQ, Type.MQCMIT,
        Type.MQBACK, Type.SPI, Type.MQSTAT, Type.MQSUB, Type.MQSUBRQ,
    }
)  # fmt: skip
_CLIENT: Final[dict[tuple[Talk, Type], Talk]] = {
    (Talk.BEGUN, Type.USERID_DATA): Talk.BEGUN,
    (Talk.BEGUN, Type.CONAUTH_INFO): Talk.AUTHENTICATING,
    (Talk.BEGUN, Type.MQCONN): Talk.CONNECTING,
    **{(Talk.CONNECTED, kind): Talk.CALLING for kind in _CALLS},
    (Talk.CONNECTED, Type.MQDISC): Talk.DISCONNECTING,
    **{
        (talk, kind): talk for talk in (Talk.CONNECTED, Talk.CALLING) for kind in (Type.REQUEST_MSGS, Type.NOTIFICATION)
    },
}
"""What a client may send on a conversation, and what the conversation is then."""
_MANAGER: Final[dict[tuple[Talk, Type], Talk]] = {
    (Talk.AUTHENTICATING, Type.STATUS): Talk.BEGUN,
    (Talk.CONNECTING, Type.MQCONN_REPLY): Talk.CONNECTED,
    (Talk.DISCONNECTING, Type.MQDISC_REPLY): Talk.OVER,
    **{(Talk.CALLING, Type(kind + REPLY)): Talk.CONNECTED for kind in _CALLS},
    **{
        (talk, kind): talk
        for talk in (Talk.CONNECTED, Talk.CALLING, Talk.DISCONNECTING)
        for kind in (Type.ASYNC_MESSAGE, Type.NOTIFICATION)
    },
}
"""The same of the queue manager."""


class Channel:
    """One socket.  Both methods raise `ProtocolError` for a call out of turn; it must not be passed on."""

    def __init__(self) -> None:
        self.state = State.NEW
        self.multiplexed = False
        """Further segments are of conversations."""
        self.talks: dict[int, Talk] = {}
        """Conversations; number 0 is the only one of a channel without multiplexing."""
        self._under_way: dict[int, Type] = {}
        self._agreed = 0
        """Conversations that one socket may have."""

    def from_client(self, call: Segment) -> None:
        """A whole call of the client's."""
        if call.type is Type.INITIAL_DATA:
            self._propose(call)
            return
        self._open(call)
        if call.type is Type.HEARTBEAT:
            self._heartbeat(call)
        elif call.type is Type.SOCKET_ACTION:
            self._action(call)
        elif call.type is Type.STATUS and not self.multiplexed and call.flags & Flag.CLOSE_CHANNEL and not call.body:
            self.state = State.CLOSED  # how a client leaves a socket without conversations
        else:
            self._talk(call, _CLIENT)
            if call.type in _CALLS:
                if call.type in (Type.MQPUT, Type.MQPUT1) and unanswered(call):
                    self.talks[call.conversation] = Talk.CONNECTED
                else:
                    self._under_way[call.conversation] = call.type

    def from_manager(self, call: Segment) -> None:
        """A whole call of the queue manager's."""
        if call.type is Type.STATUS and self.state in (State.PROPOSED, State.PROPOSED_AGAIN):
            self.state = State.CLOSED
            return
        if call.type is Type.INITIAL_DATA:
            self._answer(call)
            return
        self._open(call)
        if call.type is Type.HEARTBEAT:
            self._heartbeat(call)
        elif call.type is Type.SOCKET_ACTION:
            told = socket_action(call)
            if told.action != ACCEPT_CONV or self.talks.get(told.conversation) is not Talk.ASKED:
                raise ProtocolError("SOCKET_ACTION of the queue manager accepts nothing that was asked for")
            self.talks[told.conversation] = Talk.BEGUN
        else:
            under_way = self._under_way.get(call.conversation)
            if call.type - REPLY in _CALLS and call.type - REPLY != under_way:
                raise ProtocolError(f"{call.type.name} answers no call")
            self._talk(call, _MANAGER)
            if call.type is Type.MQCONN_REPLY and Fields(call.body, little=call.little).u32(4) == 2:
                self.talks[call.conversation] = Talk.OVER
            elif call.type - REPLY in _CALLS:
                del self._under_way[call.conversation]

    def _propose(self, call: Segment) -> None:
        told = initial_data(call)
        if self.state is State.NEW and call.eyecatcher == SINGLE:
            self.state, self._agreed = State.PROPOSED, told.conversations
        elif self.state is State.OBJECTED and call.eyecatcher == (MULTIPLEXED if self._agreed else SINGLE):
            self.state = State.PROPOSED_AGAIN
        else:
            raise ProtocolError("INITIAL_DATA out of turn")

    def _answer(self, call: Segment) -> None:
        told = initial_data(call)
        if self.state not in (State.PROPOSED, State.PROPOSED_AGAIN):
            raise ProtocolError("INITIAL_DATA out of turn")
        self._agreed = min(self._agreed, told.conversations)
        if call.flags & Flag.ERROR:
            if self.state is State.PROPOSED_AGAIN:
                raise ProtocolError("the queue manager objects twice")
            self.state = State.OBJECTED
            return
        self.state = State.OPEN
        self.multiplexed = self._agreed > 0
        self.talks[1 if self.multiplexed else 0] = Talk.BEGUN

    def _open(self, call: Segment) -> None:
        if self.state is not State.OPEN:
            raise ProtocolError(f"{call.type.name} while the channel is not open")
        shared = call.type is Type.HEARTBEAT or (call.type is Type.SOCKET_ACTION and call.eyecatcher == SOCKET)
        wanted = SINGLE if not self.multiplexed else SOCKET if shared else MULTIPLEXED
        if call.eyecatcher != wanted:
            raise ProtocolError(f"{call.type.name} has the header of another kind of segment")

    @staticmethod
    def _heartbeat(call: Segment) -> None:
        if call.body:
            raise ProtocolError("HEARTBEAT has a body")

    def _action(self, call: Segment) -> None:
        told = socket_action(call)
        if not self.multiplexed or call.eyecatcher != SOCKET:
            raise ProtocolError("SOCKET_ACTION on a channel without conversations")
        if told.action == START_CONV:
            if told.conversation % 2 == 0 or told.conversation in self.talks or len(self.talks) >= self._agreed:
                raise ProtocolError("SOCKET_ACTION begins a conversation that it may not begin")
            self.talks[told.conversation] = Talk.ASKED
        elif told.action == END_CONV and told.conversation in self.talks:
            del self.talks[told.conversation]
            self._under_way.pop(told.conversation, None)
            if call.flags & Flag.CLOSE_CHANNEL:
                self.state = State.CLOSED
        else:
            raise ProtocolError(f"SOCKET_ACTION {told.action} is not carried, or of no conversation")

    def _talk(self, call: Segment, table: dict[tuple[Talk, Type], Talk]) -> None:
        talk = self.talks.get(call.conversation)
        if talk is None:
            raise ProtocolError(f"{call.type.name} on a conversation that does not exist")
        then = table.get((talk, call.type))
        if then is None:
            raise ProtocolError(f"{call.type.name} while the conversation is {talk.name.lower()}")
        self.talks[call.conversation] = then


def unanswered(call: Segment) -> bool:
    """True for an MQPUT or MQPUT1 that no reply may follow.  Raises `ProtocolError`."""
    return bool(put(call).options.options & ASYNC_RESPONSE)
