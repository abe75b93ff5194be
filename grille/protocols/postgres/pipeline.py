"""Which reply upstream may send when: the queue of what was sent and not yet answered.

Each message that is sent upstream, and that the server answers, leaves one `Expectation`.  A reply is accepted only
if it belongs to the oldest one; anything else raises `UnexpectedReply`, after which the connection must be closed,
because it is no longer known to whom the next byte belongs.

Source: PostgreSQL documentation, "Extended Query" and "Pipelining".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from enum import IntEnum, auto
from typing import Final

import msgspec

from grille.protocols.postgres.messages import ReadyForQuery, TransactionStatus

PARSE_COMPLETE: Final = ord("1")
BIND_COMPLETE: Final = ord("2")
CLOSE_COMPLETE: Final = ord("3")
NO_DATA: Final = ord("n")
PORTAL_SUSPENDED: Final = ord("s")
EMPTY_QUERY_RESPONSE: Final = ord("I")
PARAMETER_DESCRIPTION: Final = ord("t")
ROW_DESCRIPTION: Final = ord("T")
DATA_ROW: Final = ord("D")
COMMAND_COMPLETE: Final = ord("C")
ERROR_RESPONSE: Final = ord("E")
NOTICE_RESPONSE: Final = ord("N")
PARAMETER_STATUS: Final = ord("S")
NOTIFICATION_RESPONSE: Final = ord("A")
COPY_IN_RESPONSE: Final = ord("G")
COPY_OUT_RESPONSE: Final = ord("H")
COPY_DATA: Final = ord("d")
COPY_DONE: Final = ord("c")
READY_FOR_QUERY: Final = ord("Z")


class Request(IntEnum):
    """What was sent upstream.  Flush is not here: it has no answer of its own."""

    PARSE = auto()
    BIND = auto()
    DESCRIBE_STATEMENT = auto()
    DESCRIBE_PORTAL = auto()
    EXECUTE = auto()
    CLOSE = auto()
    SYNC = auto()
    EXECUTE_ANY = auto()
    """An Execute that may be a COPY."""
    QUERY = auto()
    """Any number of statements in one text, with one ReadyForQuery behind them."""


class Expectation(msgspec.Struct, frozen=True, eq=False):
    """One message that was sent upstream."""

    request: Request
    ours: bool = False
    """True: Grille sent it on its own account (a Parse on demand, a Close, a fused BEGIN).  The client must not see the
    answer, except that an error here ends its unit like any other."""
    statement: str = ""
    """Name of the prepared statement that a Parse makes or a Close forgets; empty for all else."""
    item: int = 0
    """Whatever number the sender wants back with each reply, for instance the statement's place in the unit."""


class UnexpectedReply(Exception):
    """Upstream sent what nothing asked for."""

    def __init__(self, kind: int, expected: Request | None) -> None:
        waiting = f"waiting for the answer to {expected.name}" if expected is not None else "nothing was asked"
        super().__init__(f"unexpected message {chr(kind)!r} from the database while {waiting}")
        self.kind = kind


class _Stage(IntEnum):
    """How far the answer to the oldest request has come."""

    PARSE = auto()
    BIND = auto()
    DESCRIBE_STATEMENT = auto()
    DESCRIBE_ROWS = auto()
    EXECUTE = auto()
    CLOSE = auto()
    SYNC = auto()
    SYNC_AFTER_ERROR = auto()
    EXECUTE_ANY = auto()
    EXECUTE_COPY_IN = auto()
    EXECUTE_COPY_OUT = auto()
    EXECUTE_COPIED_OUT = auto()
    QUERY = auto()
    QUERY_ROWS = auto()
    QUERY_COPY_IN = auto()
    QUERY_COPY_OUT = auto()
    QUERY_COPIED_OUT = auto()
    QUERY_AFTER_ERROR = auto()
    DONE = auto()


_FIRST_STAGE: Final = {
    Request.PARSE: _Stage.PARSE,
    Request.BIND: _Stage.BIND,
    Request.DESCRIBE_STATEMENT: _Stage.DESCRIBE_STATEMENT,
    Request.DESCRIBE_PORTAL: _Stage.DESCRIBE_ROWS,
    Request.EXECUTE: _Stage.EXECUTE,
    Request.CLOSE: _Stage.CLOSE,
    Request.SYNC: _Stage.SYNC,
    Request.EXECUTE_ANY: _Stage.EXECUTE_ANY,
    Request.QUERY: _Stage.QUERY,
}

_TABLE: Final[dict[_Stage, dict[int, _Stage]]] = {
    _Stage.PARSE: {PARSE_COMPLETE: _Stage.DONE},
    _Stage.BIND: {BIND_COMPLETE: _Stage.DONE},
    _Stage.DESCRIBE_STATEMENT: {PARAMETER_DESCRIPTION: _Stage.DESCRIBE_ROWS},
    _Stage.DESCRIBE_ROWS: {ROW_DESCRIPTION: _Stage.DONE, NO_DATA: _Stage.DONE},
    _Stage.EXECUTE: {
        DATA_ROW: _Stage.EXECUTE,
        COMMAND_COMPLETE: _Stage.DONE,
        PORTAL_SUSPENDED: _Stage.DONE,
        EMPTY_QUERY_RESPONSE: _Stage.DONE,
    },
    _Stage.CLOSE: {CLOSE_COMPLETE: _Stage.DONE},
    _Stage.SYNC: {READY_FOR_QUERY: _Stage.DONE},
    _Stage.SYNC_AFTER_ERROR: {READY_FOR_QUERY: _Stage.DONE},
    _Stage.EXECUTE_ANY: {
        DATA_ROW: _Stage.EXECUTE_ANY,
        COMMAND_COMPLETE: _Stage.DONE,
        PORTAL_SUSPENDED: _Stage.DONE,
        EMPTY_QUERY_RESPONSE: _Stage.DONE,
        COPY_IN_RESPONSE: _Stage.EXECUTE_COPY_IN,
        COPY_OUT_RESPONSE: _Stage.EXECUTE_COPY_OUT,
    },
    _Stage.EXECUTE_COPY_IN: {COMMAND_COMPLETE: _Stage.DONE},
    _Stage.EXECUTE_COPY_OUT: {COPY_DATA: _Stage.EXECUTE_COPY_OUT, COPY_DONE: _Stage.EXECUTE_COPIED_OUT},
    _Stage.EXECUTE_COPIED_OUT: {COMMAND_COMPLETE: _Stage.DONE},
    _Stage.QUERY: {
        ROW_DESCRIPTION: _Stage.QUERY_ROWS,
        COMMAND_COMPLETE: _Stage.QUERY,
        EMPTY_QUERY_RESPONSE: _Stage.QUERY,
        COPY_IN_RESPONSE: _Stage.QUERY_COPY_IN,
        COPY_OUT_RESPONSE: _Stage.QUERY_COPY_OUT,
        READY_FOR_QUERY: _Stage.DONE,
    },
    _Stage.QUERY_ROWS: {
        DATA_ROW: _Stage.QUERY_ROWS,
        ROW_DESCRIPTION: _Stage.QUERY_ROWS,  # a rule that adds a query
        COMMAND_COMPLETE: _Stage.QUERY,
    },
    _Stage.QUERY_COPY_IN: {COMMAND_COMPLETE: _Stage.QUERY},
    _Stage.QUERY_COPY_OUT: {COPY_DATA: _Stage.QUERY_COPY_OUT, COPY_DONE: _Stage.QUERY_COPIED_OUT},
    _Stage.QUERY_COPIED_OUT: {COMMAND_COMPLETE: _Stage.QUERY},
    _Stage.QUERY_AFTER_ERROR: {READY_FOR_QUERY: _Stage.DONE},
}


# By number, since a look-up by member would hash it.
_FIRST: Final = tuple(int(_FIRST_STAGE.get(request, 0)) for request in [0, *Request])
_NEXT: Final[tuple[dict[int, int], ...]] = tuple(
    {kind: int(after) for kind, after in _TABLE.get(stage, {}).items()} for stage in [0, *_Stage]
)
_STATUS: Final[dict[bytes, TransactionStatus]] = {b"I": "I", b"T": "T", b"E": "E"}
_DONE: Final = int(_Stage.DONE)
_AFTER_ERROR: Final = int(_Stage.SYNC_AFTER_ERROR)
_QUERY_AFTER_ERROR: Final = int(_Stage.QUERY_AFTER_ERROR)
_COPY_IN: Final = int(_Stage.EXECUTE_COPY_IN)
_SYNC: Final = int(Request.SYNC)
_QUERY: Final = int(Request.QUERY)


class Pipeline:
    """The requests in flight on one upstream connection, oldest first."""

    def __init__(self) -> None:
        self._queue: deque[Expectation] = deque()
        self._stage = _DONE
        self.status: TransactionStatus = "I"
        """What the last ReadyForQuery said."""

    def sent(self, expectations: Iterable[Expectation]) -> None:
        """Note what was sent, in order."""
        self._queue.extend(expectations)
        if self._stage == _AFTER_ERROR:
            self._skip()
        elif self._stage == _DONE and self._queue:
            self._stage = _FIRST[self._queue[0].request]

    @property
    def in_flight(self) -> int:
        """Requests that are not fully answered."""
        return len(self._queue)

    @property
    def requests(self) -> Sequence[Expectation]:
        """The requests that are not fully answered, oldest first."""
        return self._queue

    def received(self, kind: int, payload: bytes) -> Expectation | None:
        """The request that this reply belongs to; None for a notice or a parameter status, which may come at any time.

        After an ErrorResponse everything up to the next Sync is dropped from the queue: the server skips it.  Raises
        UnexpectedReply, or ProtocolViolation for a ReadyForQuery that is malformed.
        """
        if kind in (NOTICE_RESPONSE, PARAMETER_STATUS):
            return None
        queue = self._queue
        if not queue:
            raise UnexpectedReply(kind, None)
        expectation = queue[0]
        stage = self._stage
        if kind == ERROR_RESPONSE:
            if stage in (_AFTER_ERROR, _QUERY_AFTER_ERROR):
                raise UnexpectedReply(kind, expectation.request)
            if expectation.request == _QUERY:
                self._stage = _QUERY_AFTER_ERROR
            else:
                self._stage = _AFTER_ERROR
                self._skip()
            return expectation
        after = _NEXT[stage].get(kind)
        if after is None:
            raise UnexpectedReply(kind, expectation.request)
        if kind == READY_FOR_QUERY:
            self.status = _STATUS.get(payload) or ReadyForQuery.decode(payload).status
        elif after == _COPY_IN:
            # The server reads the Sync behind this Execute as a part of the COPY, and ignores it there.
            while len(queue) > 1 and queue[1].request == _SYNC:
                del queue[1]
        if after == _DONE:
            queue.popleft()
            if queue:
                after = _FIRST[queue[0].request]
        self._stage = after
        return expectation

    def _skip(self) -> None:
        """Drop what the server ignores: all up to the next Sync, even if that is yet to be sent."""
        queue = self._queue
        while queue and queue[0].request != _SYNC:
            queue.popleft()
