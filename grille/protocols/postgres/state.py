"""Which message a client may send when: one table.

A connection is read one message at a time; `ClientState.receive` is called with each message before it is acted upon,
and `ClientState.happened` with what the proxy did.  A message that the table does not list in the present state is a
violation that ends the connection.

Source: PostgreSQL documentation, "Message Flow".
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NoReturn

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
    TransactionStatus,
)


class State(Enum):
    """Where a client's connection stands."""

    CONNECTED = auto()
    """Nothing has been said."""
    GSSENC_REFUSED = auto()
    """GSSAPI encryption was asked for and answered ``N``."""
    HANDSHAKE = auto()
    """SSLRequest was answered ``S``."""
    ENCRYPTED = auto()
    """The TLS handshake is done."""
    STARTING = auto()
    """The startup message was read; ReadyForQuery has not been sent."""
    IDLE = auto()
    """Ready, outside of a transaction (ReadyForQuery ``I``)."""
    TRANSACTION = auto()
    """Ready, in a transaction (``T``)."""
    FAILED_TRANSACTION = auto()
    """Ready, in a failed transaction (``E``)."""
    EXTENDED = auto()
    """Within a unit of the extended protocol: its Sync has not been read."""
    SKIPPING = auto()
    """A message of the unit failed: everything up to Sync is ignored."""
    ANSWERING = auto()
    """A unit is complete (Query or Sync was read); its ReadyForQuery has not been sent."""
    COPY_IN = auto()
    """A COPY FROM STDIN of a Query waits for data."""
    COPY_IN_EXTENDED = auto()
    """A COPY FROM STDIN of an Execute waits for data."""
    CLOSED = auto()
    """The connection is over."""


class Event(Enum):
    """What the proxy did."""

    ENCRYPTED = auto()
    """The TLS handshake succeeded."""
    FAILED = auto()
    """An ErrorResponse was sent for a message of the present unit."""
    READY_IDLE = auto()
    READY_TRANSACTION = auto()
    READY_FAILED = auto()
    COPY_IN = auto()
    """CopyInResponse was passed on for a Query."""
    COPY_IN_EXTENDED = auto()
    """CopyInResponse was passed on for an Execute; a Sync that came before it is void, as for the server."""
    CLOSED = auto()
    """The connection was closed, by either side."""


READY: Final[dict[TransactionStatus, Event]] = {
    "I": Event.READY_IDLE,
    "T": Event.READY_TRANSACTION,
    "E": Event.READY_FAILED,
}

Input = type[FrontendMessage] | type[Startup] | Event

_UNIT: Final[dict[Input, State]] = {
    Query: State.ANSWERING,
    Parse: State.EXTENDED,
    Bind: State.EXTENDED,
    Describe: State.EXTENDED,
    Execute: State.EXTENDED,
    Close: State.EXTENDED,
    Flush: State.EXTENDED,
    Sync: State.ANSWERING,
    Terminate: State.CLOSED,
    Event.CLOSED: State.CLOSED,
}
_BECOMES_READY: Final[dict[Input, State]] = {
    Event.READY_IDLE: State.IDLE,
    Event.READY_TRANSACTION: State.TRANSACTION,
    Event.READY_FAILED: State.FAILED_TRANSACTION,
    Event.CLOSED: State.CLOSED,
}

TABLE: Final[dict[State, dict[Input, State]]] = {
    State.CONNECTED: {
        SSLRequest: State.HANDSHAKE,
        GSSENCRequest: State.GSSENC_REFUSED,
        CancelRequest: State.CLOSED,
        Event.ENCRYPTED: State.ENCRYPTED,  # direct TLS
        Event.CLOSED: State.CLOSED,
    },
    State.GSSENC_REFUSED: {
        SSLRequest: State.HANDSHAKE,
        CancelRequest: State.CLOSED,
        Event.CLOSED: State.CLOSED,
    },
    State.HANDSHAKE: {
        Event.ENCRYPTED: State.ENCRYPTED,
        Event.CLOSED: State.CLOSED,
    },
    State.ENCRYPTED: {
        StartupMessage: State.STARTING,
        CancelRequest: State.CLOSED,
        Event.CLOSED: State.CLOSED,
    },
    State.STARTING: {
        Event.READY_IDLE: State.IDLE,
        Event.CLOSED: State.CLOSED,
    },
    State.IDLE: _UNIT,
    State.TRANSACTION: _UNIT,
    State.FAILED_TRANSACTION: _UNIT,
    State.EXTENDED: _UNIT | {Event.FAILED: State.SKIPPING, Event.COPY_IN_EXTENDED: State.COPY_IN_EXTENDED},
    State.SKIPPING: {
        Query: State.SKIPPING,
        Parse: State.SKIPPING,
        Bind: State.SKIPPING,
        Describe: State.SKIPPING,
        Execute: State.SKIPPING,
        Close: State.SKIPPING,
        Flush: State.SKIPPING,
        Sync: State.ANSWERING,
        Terminate: State.CLOSED,
        Event.CLOSED: State.CLOSED,
    },
    State.ANSWERING: _BECOMES_READY
    | {
        Event.FAILED: State.ANSWERING,
        Event.COPY_IN: State.COPY_IN,
        Event.COPY_IN_EXTENDED: State.COPY_IN_EXTENDED,
    },
    State.COPY_IN: {
        CopyData: State.COPY_IN,
        CopyDone: State.ANSWERING,
        CopyFail: State.ANSWERING,
        Flush: State.COPY_IN,
        Sync: State.COPY_IN,
        Terminate: State.CLOSED,
        Event.FAILED: State.ANSWERING,
        Event.CLOSED: State.CLOSED,
    },
    State.COPY_IN_EXTENDED: {
        CopyData: State.COPY_IN_EXTENDED,
        CopyDone: State.EXTENDED,
        CopyFail: State.EXTENDED,
        Flush: State.COPY_IN_EXTENDED,
        Sync: State.COPY_IN_EXTENDED,
        Terminate: State.CLOSED,
        Event.FAILED: State.SKIPPING,
        Event.CLOSED: State.CLOSED,
    },
    State.CLOSED: {
        Event.CLOSED: State.CLOSED,
    },
}

_AFTER_COPY: Final = frozenset(
    {State.IDLE, State.TRANSACTION, State.FAILED_TRANSACTION, State.EXTENDED, State.SKIPPING}
)
TABLE_WITH_COPY: Final[dict[State, dict[Input, State]]] = {
    before: row | (dict.fromkeys((CopyData, CopyDone, CopyFail), before) if before in _AFTER_COPY else {})
    for before, row in TABLE.items()
}
"""For a session that carries COPY: data that comes after its COPY has failed is legal, and dropped."""

_DISCARDED: Final[dict[int, type[FrontendMessage]]] = {Query.kind: Query, Parse.kind: Parse, Bind.kind: Bind}
_BEFORE_STARTUP: Final = frozenset({State.CONNECTED, State.GSSENC_REFUSED, State.HANDSHAKE, State.ENCRYPTED})
_NOT_CARRIED: Final = frozenset({FunctionCall, CopyData, CopyDone, CopyFail})


class ClientState:
    """The state of one client's connection."""

    __slots__ = (
        "_table",
        "state",
    )

    def __init__(self) -> None:
        self.state = State.CONNECTED
        self._table = TABLE

    def carry_copy(self) -> None:
        """Accept COPY from here on."""
        self._table = TABLE_WITH_COPY

    def receive(self, message: FrontendMessage | Startup) -> State:
        """The state after this message.  Raises ProtocolViolation if it may not come now."""
        kind: Input = type(message)
        if isinstance(message, Oversized):
            kind = _DISCARDED[message.discarded]
        after = self._table[self.state].get(kind)
        if after is None:
            self._refuse(message)
        self.state = after
        return after

    def happened(self, event: Event) -> State:
        """The state after something that the proxy did.  Raises RuntimeError if it could not have been done now."""
        after = self._table[self.state].get(event)
        if after is None:
            raise RuntimeError(f"{event} in {self.state}")
        self.state = after
        return after

    def _refuse(self, message: FrontendMessage | Startup) -> NoReturn:
        name = type(message).__name__
        if isinstance(message, StartupMessage) and self.state in (State.CONNECTED, State.GSSENC_REFUSED):
            raise ProtocolViolation(
                "Grille accepts TLS connections only: connect with sslmode=verify-full",
                sqlstate="28000",
                control="ID-03",
            )
        if type(message) in _NOT_CARRIED and self.state not in _BEFORE_STARTUP:
            raise ProtocolViolation(f"{name} is not carried by Grille", sqlstate="0A000", control="WP-02")
        if isinstance(message, PasswordMessage):
            raise ProtocolViolation(f"invalid frontend message type {PasswordMessage.kind}")
        raise ProtocolViolation(f"{name} is not expected at this point of the protocol")
