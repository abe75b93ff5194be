"""A session with a backend of its own, in which every statement is enforced (control AC-09).

The wire is that of a passthrough session: settings, temporary tables, COPY, LISTEN, cursors.  But each statement of a
text is understood, decided and rewritten as in a governed session, and the rewritten text is what the server gets.
What enforcement does not understand is asked once more, by command tag and control, and goes on unchanged only if the
policy says so; what the policy has denied is never asked again.

Statements are understood in the catalogue as this session sees it, read over its own connection after it has run
anything that could have changed it (`grille.proxy.catalog_own`).  docs/decisions/0013-isolated-sessions.md tells why.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from postgast import parse
from postgast import pg_query_pb2 as pb

from grille.controls import Refusal
from grille.policies.pdp import PolicyUnavailable
from grille.protocols.postgres import commands, state, tree
from grille.protocols.postgres.messages import (
    Bind,
    Close,
    CommandComplete,
    ErrorResponse,
    Execute,
    Flush,
    FrontendMessage,
    NoticeResponse,
    ParameterStatus,
    Parse,
    Query,
    Sync,
    decode_data_row,
)
from grille.protocols.postgres.pipeline import (
    ERROR_RESPONSE,
    NOTICE_RESPONSE,
    PARAMETER_STATUS,
    Expectation,
    Request,
)
from grille.protocols.postgres.resolve import FIRST_NORMAL_OID, Resolver
from grille.protocols.postgres.statement import GOVERNED, classify, raw_statements, redacted
from grille.protocols.postgres.tags import tag_of
from grille.protocols.postgres.tree import Node, kind_of
from grille.proxy.catalog_own import LOOK, View, view
from grille.proxy.enforcement import Lru, answered, asked_about, granted, no_answer
from grille.proxy.errors import missing_setting, refusal_fields, scrubbed_fields
from grille.proxy.passthrough import Bound, Passthrough, Run, Shown

NOT_UNDERSTOOD: Final = frozenset({"ST-01", "ST-02", "ST-04", "ST-05", "ST-06", "ST-07", "ST-08"})
"""Controls that refuse for lack of understanding.  So does ST-03, where no decision stands behind it."""
KEPT: Final = 1000
"""Texts whose judgement is kept for as long as catalogue and path are the same."""

_LOOK_NAME: Final = "grille_look"


def _own_messages(text: str, *formats: int) -> bytes:
    """Messages that run one statement and leave no name behind, also if an earlier one failed before its end."""
    name = _LOOK_NAME
    messages = Close("S", name), Parse(name, text), Bind(name, name, result_formats=formats), Execute(name)
    return b"".join(message.encode() for message in (*messages, Close("P", name), Close("S", name)))


_OWN_REQUESTS: Final = (
    Request.CLOSE, Request.PARSE, Request.BIND, Request.EXECUTE_ANY, Request.CLOSE, Request.CLOSE,
)  # fmt: skip
_LOOK_MESSAGES: Final = _own_messages(LOOK, 1)
_SETTINGS: Final = _own_messages(
    "SELECT pg_catalog.concat("
    + ", ".join(
        f"pg_catalog.set_config('{name}', '{value}', true)"
        for name, value in {
            "jit": "off",
            "statement_timeout": "0",
            "max_parallel_workers_per_gather": "0",
            **dict.fromkeys(
                (
                    "enable_seqscan", "enable_indexscan", "enable_bitmapscan", "enable_indexonlyscan", "enable_sort",
                    "enable_hashjoin", "enable_mergejoin", "enable_nestloop", "enable_hashagg", "enable_material",
                ),
                "on",
            ),
        }.items()
    )
    + ")"
)  # fmt: skip
"""The session's settings could make a look last for a second."""
_SAVEPOINT: Final = _own_messages(f"SAVEPOINT {_LOOK_NAME}")
_BACK: Final = _own_messages(f"ROLLBACK TO SAVEPOINT {_LOOK_NAME}") + _own_messages(f"RELEASE SAVEPOINT {_LOOK_NAME}")
_SYNC: Final = Sync().encode()
_FLUSH: Final = Flush().encode()

_LOOKED_UP: Final = GOVERNED | {"prepare_stmt", "declare_cursor_stmt", "copy_stmt"}
"""Kinds that are understood in the catalogue."""
_EXITS: Final = frozenset(
    {pb.TRANS_STMT_COMMIT, pb.TRANS_STMT_ROLLBACK, pb.TRANS_STMT_ROLLBACK_TO, pb.TRANS_STMT_PREPARE}
)
"""What the server runs in a failed transaction (IsTransactionExitStmt)."""
_OWN_COMMANDS: Final = frozenset(
    "begin commit rollback savepoint release rollback_to set_transaction set_constraints close close_all "
    "deallocate".split()
)
"""Session commands that need no decision: they reach nothing but the session's own transaction and names."""
_ENDS: Final = frozenset({"commit", "rollback", "rollback_to"})
_QUIET: Final = frozenset(
    {
        "ALTER DEFAULT PRIVILEGES", "ALTER ROLE", "ALTER STATISTICS", "ANALYZE", "CHECKPOINT", "CLOSE CURSOR",
        "CLOSE CURSOR ALL", "COMMENT", "CREATE INDEX", "CREATE ROLE", "CREATE STATISTICS", "DEALLOCATE",
        "DEALLOCATE ALL", "DISCARD PLANS", "DISCARD SEQUENCES", "DROP ROLE", "DROP STATISTICS", "FETCH", "GRANT",
        "GRANT ROLE", "LISTEN", "LOCK TABLE", "MOVE", "NOTIFY", "REVOKE", "REVOKE ROLE", "SECURITY LABEL", "SHOW",
        "UNLISTEN", "VACUUM",
    }
)  # fmt: skip
"""Tags of statements after which all that a statement is understood by is as before: catalogue, path and settings."""
_LOCAL: Final = frozenset(
    {
        "COPY", "DECLARE CURSOR", "DELETE", "EXECUTE", "EXPLAIN", "INSERT", "MERGE", "PREPARE", "RESET", "SELECT",
        "SET", "UPDATE", "VALUES",
    }
)  # fmt: skip
"""Tags of statements that leave nothing in the catalogue which other sessions have to look after."""
_LITERALS: Final = re.compile(r"(?<![\w$])(?:[0-9]+_[0-9]|0[xXoObB])|\$[0-9]+[^\W0-9]")
"""Numbers that PostgreSQL reads since version 16, and parameters that it refuses and the parser here does not."""
_SETTINGS_OF_NAMES: Final = frozenset({"search_path", "role", "session_authorization"})


class Judged:
    """One statement of a text, and what is sent in its place."""

    __slots__ = ("begin", "changes", "command", "decided", "end", "exits", "expires", "governed", "name", "node",
                 "others", "passed", "restricted", "settings", "shown", "sql", "tag", "text")  # fmt: skip

    def __init__(self, sql: str, tag: str, begin: int = 0) -> None:
        self.sql = sql
        self.tag = tag
        self.begin = begin
        """Bytes of the client's text before the statement."""
        self.end = 0
        """Bytes of the text that is sent, up to the end of the statement."""
        self.text: _Text | None = None
        self.shown = Shown(sql)
        self.shown.judged = self
        self.node: Node = None
        """The rewritten tree, whose parts know where they stood; None: the statement goes on unchanged."""
        self.governed = False
        self.passed = ""
        """The control that did not understand it."""
        self.command = ""
        """Kind of a session command."""
        self.name = ""
        """The prepared statement or cursor that it makes or forgets."""
        self.restricted = False
        """A filter or a sensitive column is involved: the server's words are not for the client."""
        self.changes = False
        """Catalogue or path may be another afterwards."""
        self.settings = False
        """It may change how the server reads texts."""
        self.others = False
        """What it changes, other sessions see."""
        self.exits = False
        """It may end a failed transaction."""
        self.expires = float("inf")
        """Monotonic time until which the decision may be reused."""
        self.decided: dict[str, Any] = {"verdict": None}
        """What the event says of the decision."""


class _Text:
    """A text of the client, and what is sent in its place."""

    __slots__ = ("judged", "own", "sent")

    def __init__(self, own: str, judged: list[Judged]) -> None:
        self.own = own
        self.judged = judged
        self.sent: str | None = None
        """None: the text itself."""
        for each in judged:
            each.text = self
        if any(each.node is not None for each in judged):
            self.sent = self._joined()

    def _joined(self) -> str:
        """Raises `Refusal` ST-07 if it does not read as the statements that it is made of."""
        joined = ""
        for each in self.judged:
            joined += each.sql if not joined else f"\n;\n{each.sql}"
            each.end = len(joined.encode())
        if len(self.judged) > 1:
            found = [raw.stmt for raw in parse(joined).stmts]
            wanted = [each.node or parse(each.sql).stmts[0].stmt for each in self.judged]
            same = len(found) == len(wanted) and all(map(tree.same_tree, found, wanted))
            if not same:
                raise _unlike()
        return joined

    def own_position(self, position: int) -> int | None:
        """The character of the client's text, from 1, that character ``position`` of the text sent means, or None."""
        if self.sent is None:
            return position
        offset = len(self.sent[: position - 1].encode())
        for each in self.judged:
            begin = each.end - len(each.sql.encode())
            if not begin <= offset < each.end:
                continue
            if each.node is None:
                origin = each.begin + offset - begin
            else:
                again = parse(each.sql).stmts[0].stmt
                found = _locations(again, each.node).get(offset - begin, 0)
                if not found:
                    return None
                origin = found
            return len(self.own.encode()[:origin].decode(errors="replace")) + 1
        return None


class Isolated(Passthrough):
    """One isolated session, after its startup."""

    _forgets_statements = frozenset({"DEALLOCATE ALL", "DISCARD ALL"})

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._own: View | None = None
        """The catalogue as it was at the last look."""
        self._dirty = True
        """It has to be read again before a statement is understood in it."""
        self._changes_seen = -1
        self._pristine = True
        """Nothing has passed yet: path and settings are those of the startup."""
        self._touched = self._touched_others = False
        """This transaction has run what may have changed the catalogue, for other sessions too."""
        self._settings_changed = False
        """This unit has run what may have changed how texts are read, and the server has not yet told."""
        self._left = False
        """This unit has ended a failed transaction."""
        self._judged: _Text | Refusal | None = None
        self._kept: Lru[object, _Text] = Lru(KEPT, weight=1 << 22)
        self._looked: asyncio.Future[bytes] | None = None
        self._last_of_look: Expectation | None = None
        self._row = b""
        self._look_error: ErrorResponse | None = None
        self._prepared: dict[str, Judged] = {}
        self._cursors: dict[str, Judged] = {}
        """By name in SQL: governed statements only."""
        self._ever_restricted = False
        self._last_day: dt.datetime | None = None
        """The first end of a decision that a statement of this session was made under."""
        self._reported = dict(self._connection.parameters)
        self._waiting: dict[int, list[Run]] = {}
        """By item of a Query: its statements behind the one that runs."""
        self._limit = self._limits.max_statement_bytes
        databases = given["services"].config.databases
        self._poll = next(each.catalog_poll for each in databases if each.name == self._agent.database)

    # policy

    async def _still_granted(self) -> None:
        self._enforcement.still_isolated(self._verdict)
        if self._last_day is not None and dt.datetime.now(dt.UTC) >= self._last_day:
            raise Refusal(
                "AC-04",
                "A decision that this session rests on is not valid any more.",
                sqlstate="57P01",
                hint="Connect again.",
                fatal=True,
            )

    # before a text is taken

    async def _consider(self, message: Parse | Query, fresh: bool) -> None:
        """Judge a text, after a look at the catalogue if that may have changed."""
        types = message.types if isinstance(message, Parse) else ()
        if fresh:
            self._settings_changed = self._left = False
        self._judged = self._remembered(message)
        if self._judged is not None:
            return
        try:
            nodes = self._parsed(message.text)
        except Refusal as refusal:
            self._judged = await self._judge(message, types, unreadable=refusal)
            return
        aborted = self._connection.transaction_status == "E" and not self._left
        may_look = not aborted and any(kind_of(raw.stmt) in _LOOKED_UP for raw in nodes)
        stale = may_look and self._stale
        if stale and not await self._look(fresh):
            return
        before = self._own
        self._judged = await self._judge(message, types, nodes, aborted=aborted)
        if may_look and not stale and _missing(self._judged):
            # Somebody else may have made it meanwhile.
            judged = self._judged
            if await self._look(fresh) and before is not self._own:
                judged = await self._judge(message, types, aborted=aborted)
            elif self._judged is not judged:
                return
            self._judged = judged

    @property
    def _stale(self) -> bool:
        if self._pristine and self._own is None and self._connection.transaction_status == "I":
            self._inherit()
        return (
            self._dirty
            or self._changes_seen != self._enforcement.changes
            or self._own is None
            or self._own.built_in is not self._enforcement.built_in()
        )

    def _inherit(self) -> None:
        """Begin with what another new session of these settings saw, unless more was committed here since."""
        seen = self._enforcement.seen.get(self._connection.profile)
        if seen is not None and seen[1] == self._enforcement.changes and time.monotonic() < seen[2]:
            self._own, self._changes_seen, self._dirty = seen[0], seen[1], False

    def _parsed(self, text: str) -> list[Any]:
        """The statements of a text.  Raises `Refusal` for one that the server may read otherwise."""
        plain = text.isascii() and "\\" not in text
        if not plain:
            utf8 = self._reported.get("client_encoding", "").upper() in ("UTF8", "UTF-8", "UNICODE")
            standard = self._reported.get("standard_conforming_strings") == "on"
            if self._settings_changed or not (text.isascii() or utf8) or not ("\\" not in text or standard):
                raise Refusal(
                    "ST-01",
                    "The settings of this session let the database read this text in a way that is not followed here.",
                    sqlstate="42601",
                    hint="Use client_encoding UTF8 and standard_conforming_strings, and begin a new unit after SET.",
                )
        newer = _LITERALS.search(text)
        if newer is not None and (newer.group().startswith("$") or self._enforcement.built_in().before_16):
            raise Refusal(
                "ST-01",
                "The database does not read a number of this text as PostgreSQL 18 does.",
                sqlstate="42601",
                hint="Write decimal numbers without underscores.",
            )
        return raw_statements(text, limit=self._limit)

    def _remembered(self, message: Parse | Query) -> _Text | None:
        if self._stale_or_aborted:
            return None
        found = self._kept.get(message)
        if found is None or time.monotonic() >= min(each.expires for each in found.judged):
            return None
        return found

    @property
    def _stale_or_aborted(self) -> bool:
        return self._connection.transaction_status == "E" or self._settings_changed or self._stale

    async def _judge(
        self,
        message: Parse | Query,
        types: tuple[int, ...],
        nodes: list[Any] | None = None,
        *,
        unreadable: Refusal | None = None,
        aborted: bool = False,
    ) -> _Text | Refusal:
        """What becomes of a text; ``nodes`` are its statements if it has been parsed, and are used up."""
        text = message.text
        parsed = [] if nodes is None else [nodes]

        def work() -> _Text:
            if unreadable is not None:
                return _Text(text, [self._pass(text, "", 0, unreadable)])
            statements = parsed.pop() if parsed else self._parsed(text)
            if not isinstance(message, Query) and len(statements) > 1:
                several = Refusal("ST-01", "A prepared statement holds exactly one command.", sqlstate="42601")
                return _Text(text, [self._pass(text, "", 0, several)])
            return _Text(text, self._each(text, statements, types, aborted=aborted))

        try:
            try:
                judged = await answered(work)
            except PolicyUnavailable as error:
                raise no_answer(error) from None
        except Refusal as refusal:
            if refusal.template is None:
                refusal.template = redacted(text)
            if refusal.position is None and refusal.location:
                refusal.position = len(text.encode()[: refusal.location].decode(errors="replace")) + 1
            return refusal
        if not aborted and all(each.governed and not each.name for each in judged.judged):
            self._kept.put(message, judged, len(text))
        return judged

    def _each(self, text: str, nodes: Sequence[Any], types: tuple[int, ...], *, aborted: bool) -> list[Judged]:
        """Every statement of a text.  Raises `Refusal` for the first that may not run."""
        if not nodes or (aborted and not _exits(nodes[0].stmt)):
            return [Judged(text, "")]  # nothing to run, or nothing that the server would run
        data = text.encode(errors="surrogateescape")
        found: list[Judged] = []
        blind = aborted
        for raw in nodes:
            begin = raw.stmt_location
            end = begin + raw.stmt_len if raw.stmt_len else len(data)
            piece = text if len(nodes) == 1 else data[begin:end].decode()
            found.append(self._statement(text, raw, piece, begin if len(nodes) > 1 else 0, types, blind=blind))
            blind = blind or found[-1].changes or found[-1].settings
        return found

    def _statement(self, text: str, raw: Any, piece: str, begin: int, types: tuple[int, ...], *, blind: bool) -> Judged:
        kind, tag = kind_of(raw.stmt), tag_of(raw.stmt)
        try:
            if kind in _LOOKED_UP:
                judged = self._governed(text, raw, piece, begin, types)
                if blind:
                    raise Refusal(
                        "ST-08",
                        "A statement earlier in this text may change what this one means.",
                        sqlstate="0A000",
                        hint="Send it as a text of its own.",
                    )
                return judged
            return self._command(text, raw, piece, begin)
        except Refusal as refusal:
            understood = refusal.control not in NOT_UNDERSTOOD and (
                refusal.control != "ST-03" or refusal.decision_id is not None
            )
            if understood:
                raise
            return self._pass(piece, tag, begin, refusal, raw.stmt)

    def _pass(self, piece: str, tag: str, begin: int, refusal: Refusal, node: Node = None) -> Judged:
        """A statement that is not understood and that the policy lets go on.  Raises ``refusal`` if it does not."""
        verdict = self._enforcement.may_pass(self._agent, tag, refusal.control)
        if verdict is None:
            raise refusal
        judged = Judged(piece, tag, begin)
        judged.passed = refusal.control
        judged.settings = tag not in _QUIET and not (self._own is not None and _quiet(node, self._own.resolver))
        judged.changes = judged.settings and not (
            node is not None
            and kind_of(node) == "variable_set_stmt"
            and node.variable_set_stmt.kind in (pb.VAR_SET_VALUE, pb.VAR_SET_DEFAULT, pb.VAR_RESET)
            and node.variable_set_stmt.name.lower() not in _SETTINGS_OF_NAMES
        )
        judged.others = judged.changes and tag not in _LOCAL
        if tag in ("PREPARE", "DECLARE CURSOR"):
            inner = getattr(node, kind_of(node))
            judged.name = inner.name if tag == "PREPARE" else inner.portalname
        self._rests_on(verdict.decision.not_after)
        judged.decided = {
            "verdict": granted(verdict, statement=tag, passed=refusal.control),
            "action": "passthrough",
            "text": refusal.message,
        }
        return judged

    def _rests_on(self, end: dt.datetime | None) -> None:
        if end is not None:
            self._last_day = end if self._last_day is None else min(self._last_day, end)

    def _governed(self, text: str, raw: Any, piece: str, begin: int, types: tuple[int, ...]) -> Judged:
        """Decide and rewrite a data statement, or the one inside of PREPARE, DECLARE or COPY.  Raises `Refusal`."""
        node, kind = raw.stmt, kind_of(raw.stmt)
        if self._own is None:
            raise Refusal("ST-08", "The catalogue of this session has not been read.", sqlstate="0A000")
        tag, name, inner = tag_of(node), "", node
        if kind == "prepare_stmt":
            command = classify(raw, text).command
            assert isinstance(command, commands.PrepareCommand)  # noqa: S101
            name, inner = command.name, node.prepare_stmt.query
            types = self._own.resolver.type_oids(command.types)
        elif kind == "declare_cursor_stmt":
            command = classify(raw, text).command
            assert isinstance(command, commands.DeclareCommand)  # noqa: S101
            if command.hold:
                raise Refusal(
                    "ST-05", "A cursor WITH HOLD is not carried in an isolated session.", sqlstate="0A000",
                    hint="Declare it without WITH HOLD and fetch within the transaction, or page by key with LIMIT.",
                )  # fmt: skip
            name, inner, types = command.name, node.declare_cursor_stmt.query, ()
        elif kind == "copy_stmt":
            copy = node.copy_stmt
            if copy.is_program or copy.filename or copy.HasField("where_clause"):
                classify(raw, text)  # which refuses it
            if not copy.HasField("query"):
                copied = _copied(copy, self._own.resolver)
                if copied is None:
                    classify(raw, text)
                elif copy.is_from:
                    inner = copied
                else:
                    copy.query.CopyFrom(copied)
            inner, types = copy.query if copy.HasField("query") else inner, ()
        if kind_of(inner) not in GOVERNED:
            raise Refusal("ST-05", f"{tag} of this statement is not carried by this proxy.", sqlstate="0A000")
        plan, operation, verdict, cached = self._enforcement.govern(
            self._agent, inner, types, self._own.resolver, self._own.purity
        )
        sql = plan.sql
        if inner is not node:
            sql = _text_of(node)
        if (
            kind == "copy_stmt"
            and node.copy_stmt.is_from
            and any(each.columns for each in verdict.terms.relations.values())
        ):
            raise Refusal(
                "AC-05",
                "The values of a COPY into sensitive columns are not looked at in an isolated session.",
                hint="Use INSERT in a session that is not isolated.",
            )
        if not sql.isascii() or "\\" in sql:
            try:
                self._parsed(sql)
            except Refusal:
                raise _unlike() from None
        judged = Judged(piece, tag, begin)
        judged.sql, judged.node, judged.governed, judged.name = sql, node, True, name
        terms = verdict.terms.relations
        used = {use.qualified for use in operation.relations}
        judged.restricted = any(terms[each].condition is not None or terms[each].columns for each in used)
        judged.changes = not plan.pure and not plan.writes
        self._ever_restricted = self._ever_restricted or judged.restricted
        judged.expires = verdict.expires
        self._rests_on(verdict.decision.not_after)
        judged.decided = {
            "verdict": granted(verdict, filters_hash=verdict.filters_hash, cached=cached, statement=tag),
            **asked_about(operation, verdict),
        }
        return judged

    def _command(self, text: str, raw: Any, piece: str, begin: int) -> Judged:
        """A statement about the session's own transaction, prepared statements and cursors.  Raises `Refusal`."""
        command, tag = classify(raw, text).command, tag_of(raw.stmt)
        assert command is not None  # noqa: S101
        judged = Judged(piece, tag, begin)
        judged.command, judged.name = command.kind, command.name
        known: Judged | None = None
        if command.kind == "execute":
            known = self._prepared.get(command.name)
        elif command.kind == "fetch":
            known = self._cursors.get(command.name)
        if known is not None:
            judged.decided = known.decided
            judged.restricted, judged.changes = known.restricted, known.changes
        elif command.kind not in _OWN_COMMANDS:
            raise Refusal("ST-05", f"{tag} is not carried by this proxy.", sqlstate="0A000")
        if command.kind in _ENDS:
            judged.exits = True
            judged.changes = self._touched
        return judged

    # the look

    async def _look(self, fresh: bool) -> bool:
        """Read the catalogue as this session sees it; False, and the text will be refused, if that fails.

        Within a unit that has begun, what came before is answered first, and the look is a part of the unit.
        """
        if not fresh:
            await self._settle()
            if self._state.state is not state.State.EXTENDED:
                return False
        try:
            built_in = self._enforcement.built_in()
        except Refusal as refusal:
            self._judged = refusal
            return False
        self._own_item = item = next(self._items)
        # Settings for the look end with its transaction, or with the savepoint; within a unit there is neither.
        messages, count = _LOOK_MESSAGES, 1
        if fresh and self._connection.transaction_status == "I":
            messages, count = _SETTINGS + messages, 2
        elif fresh:
            messages, count = _SAVEPOINT + _SETTINGS + messages + _BACK, 5
        expectations = [Expectation(request, ours=True, item=item) for request in _OWN_REQUESTS * count]
        if fresh:
            expectations.append(Expectation(Request.SYNC, ours=True, item=item))
        self._last_of_look, self._look_error, self._row = expectations[-1], None, b""
        self._looked = asyncio.get_running_loop().create_future()
        await self._connection.no_cancel()
        changes = self._enforcement.changes
        self._connection.post(messages + (_SYNC if fresh else _FLUSH), expectations)
        try:
            await self._connection.drain()
            raw = await self._looked
        finally:
            self._looked = None
        if raw:
            try:
                seen = view(raw, built_in, self._enforcement.functions)
            except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
                self._connection.broken(f"the catalogue cannot be read: {type(error).__name__}")
            if seen is not self._own:
                self._own = seen
                self._kept.clear()
            self._dirty, self._changes_seen = False, changes
            if self._pristine and not self._own.temporary:
                until = time.monotonic() + self._poll
                self._enforcement.seen.put(self._connection.profile, (self._own, changes, until))
            return True
        self._judged = self._blind()
        return False

    def _blind(self) -> Refusal:
        cancelled = self._look_error is not None and self._look_error.sqlstate == "57014"
        return Refusal(
            "ST-08",
            "canceling statement due to user request"
            if cancelled
            else "The catalogue could not be read before this statement.",
            sqlstate="57014" if cancelled else "55000",
            hint="Send it again, in a new transaction.",
        )

    def _own_row(self, payload: bytes) -> None:
        (self._row,) = [value or b"" for value in decode_data_row(payload)]

    async def _own_reply(
        self, kind: int, payload: bytes, error: ErrorResponse | None, expectation: Expectation
    ) -> None:
        looked, last = self._looked, self._last_of_look
        assert looked is not None and last is not None  # noqa: S101
        if error is not None:
            self._look_error, self._row = error, b""
            if last.request is not Request.SYNC:
                # The unit has failed with it: its client is told in place of an answer.
                self._poisons[expectation.item] = self._blind()
                await self._failed(error, payload, expectation)
                looked.set_result(b"")
        elif expectation is last:
            looked.set_result(self._row)

    # taking

    def _take(self, message: FrontendMessage, kind: int, payload: bytes) -> None:
        if isinstance(message, Query | Parse):
            self._take_text(message, kind, payload)
            return
        if isinstance(message, Execute):
            bound = self._portals.get(message.portal)
            self._will_run(None if bound is None else bound.shown.judged)
        super()._take(message, kind, payload)

    def _take_text(self, message: Query | Parse, kind: int, payload: bytes) -> None:
        item = next(self._items)
        text, self._judged = self._judged, None
        simple = isinstance(message, Query)
        if text is None or isinstance(text, Refusal):
            self._refuse(text if text is not None else self._blind(), item)
            self._sync_due = simple
            return
        if text.sent is None:
            self._requests += kind.to_bytes(1, "big") + (len(payload) + 4).to_bytes(4, "big") + payload
        elif isinstance(message, Parse):
            self._requests += Parse(message.name, text.sent, message.types).encode()
        else:
            self._requests += Query(text.sent).encode()
        self._expectations.append(Expectation(Request.QUERY if simple else Request.PARSE, item=item))
        if isinstance(message, Parse):
            shown = _shown(text.judged[0], message.types)
            self._bound_by_item[item] = Bound(shown)
            self._name(self._statements, message.name, shown, item)
            return
        self._statements.pop("", None)
        self._portals.pop("", None)
        for number, judged in enumerate(text.judged):
            self._begin(Bound(judged.shown), item if number == 0 else next(self._items))
            self._will_run(judged)
        self._waiting[item] = self._runs[len(self._runs) - len(text.judged) + 1 :]

    def _will_run(self, judged: Judged | None) -> None:
        """Note what a statement may change that is about to be sent; None: one that is not known."""
        if judged is None or judged.changes:
            self._dirty = self._touched = True
            self._touched_others = self._touched_others or judged is None or judged.others
        if judged is None or judged.settings:
            self._settings_changed = True
        if judged is None:
            return
        self._pristine = self._pristine and not judged.passed
        self._left = self._left or judged.exits
        if judged.command == "deallocate":
            for names in (self._prepared, self._statements):
                if judged.name:
                    names.pop(judged.name, None)
                else:
                    names.clear()
        elif judged.name and judged.tag == "PREPARE":
            self._statements.pop(judged.name, None)
            _note(self._prepared, judged)
        elif judged.name and judged.tag == "DECLARE CURSOR":
            _note(self._cursors, judged)

    # answers

    def _completed(self, command: CommandComplete, expectation: Expectation) -> None:
        run = self._by_item[expectation.item]
        super()._completed(command, expectation)
        waiting = self._waiting.get(expectation.item)
        if waiting:
            run.done = True
            self._by_item[expectation.item] = following = waiting.pop(0)
            following.began, following.clock = time.time(), time.perf_counter()

    async def _failed(self, error: ErrorResponse, payload: bytes, expectation: Expectation) -> None:
        run = self._by_item.get(expectation.item)
        judged = None if run is None else run.bound.shown.judged
        if judged is not None and judged.name:
            self._prepared.pop(judged.name, None)
            self._cursors.pop(judged.name, None)
        await super()._failed(error, payload, expectation)

    async def _ready(self, payload: bytes) -> None:
        if self._connection.transaction_status == "I":
            self._dirty = self._dirty or self._touched
            if self._touched_others:
                self._enforcement.changes += 1
            self._touched = self._touched_others = False
            self._cursors.clear()
        self._waiting.clear()
        await super()._ready(payload)

    def _error_for_client(self, error: ErrorResponse, payload: bytes, shown: Shown | None) -> bytes:
        judged: Judged | None = None if shown is None else shown.judged
        if missing_setting(error.fields) is not None:
            self._dirty = True
            changed = Refusal("ST-08", "The database was changed while this statement was under way.", sqlstate="40001")
            return ErrorResponse(refusal_fields(changed)).encode()
        if judged.restricted if judged is not None else self._ever_restricted:
            return ErrorResponse(scrubbed_fields(error.fields, lambda *_: False)).encode()
        position = error.fields.get("P", "")
        if judged is not None and judged.text is not None and judged.text.sent is not None and position.isdecimal():
            own = judged.text.own_position(int(position))
            payload = _with_position(payload, own)
        return bytes([ERROR_RESPONSE]) + (len(payload) + 4).to_bytes(4, "big") + payload

    def _unasked(self, kind: int, payload: bytes) -> bytes:
        if kind == PARAMETER_STATUS:
            status = ParameterStatus.decode(payload)
            self._reported[status.name] = status.value
        elif kind == NOTICE_RESPONSE:
            if self._looked is not None:
                return b""
            judged = [run.bound.shown.judged for run in self._runs]
            if any(each.restricted if each is not None else self._ever_restricted for each in judged):
                fields = scrubbed_fields(NoticeResponse.decode(payload).fields, lambda *_: False)
                return NoticeResponse(fields).encode()[5:]
        return payload

    def _decided(self, shown: Shown) -> dict[str, Any]:
        judged: Judged | None = shown.judged
        return {"verdict": None} if judged is None else judged.decided


def _missing(judged: _Text | Refusal) -> bool:
    """A relation or column was not found."""
    if isinstance(judged, Refusal):
        return judged.control == "ST-03" and judged.decision_id is None
    return any(each.passed == "ST-03" for each in judged.judged)


def _exits(node: Node) -> bool:
    return kind_of(node) == "transaction_stmt" and node.transaction_stmt.kind in _EXITS


def _copied(copy: Any, resolver: Resolver) -> Node:
    """What a COPY of a table does, as an INSERT or a SELECT; None for what is no plain table.

    The relation of ``copy`` becomes qualified, or goes over into the SELECT.
    """
    var = copy.relation
    schema = var.schemaname or resolver.schema_of(var.relname)
    relation = resolver.catalog.relations.get((schema or "", var.relname))
    if relation is None or relation.kind != "r" or relation.row_security or var.catalogname:
        return None
    copied = [column.name for column in relation.columns if not column.generated]
    names = [part.string.sval for part in copy.attlist] or copied
    if not names or len(set(names)) < len(names) or not set(names) <= set(copied):
        return None
    if copy.is_from:
        var.schemaname = relation.schema
        insert = pb.InsertStmt(override=pb.OVERRIDING_NOT_SET)
        insert.relation.CopyFrom(tree.relation(relation.schema, relation.name))
        insert.cols.extend(pb.Node(res_target=pb.ResTarget(name=name)) for name in names)
        row = pb.Node(list=pb.List(items=[pb.Node(set_to_default=pb.SetToDefault()) for _ in names]))
        select = pb.SelectStmt(values_lists=[row], op=pb.SETOP_NONE, limit_option=pb.LIMIT_OPTION_DEFAULT)
        insert.select_stmt.CopyFrom(pb.Node(select_stmt=select))
        return pb.Node(insert_stmt=insert)
    copy.ClearField("relation")
    copy.ClearField("attlist")
    source = pb.Node(range_var=tree.relation(relation.schema, relation.name, only=True))
    targets = [tree.target(tree.column(name)) for name in names]
    return pb.Node(select_stmt=tree.subselect(targets, source, None, fence=False))


def _quiet(node: Node, resolver: Resolver) -> bool:
    """True for a query that only reads, and calls nothing that could do more: the server's own stable functions."""
    kind = kind_of(node) if node is not None else ""
    if kind == "explain_stmt":
        return not any(option.def_elem.defname == "analyze" for option in node.explain_stmt.options)
    if kind != "select_stmt":
        return False
    names = {part.ctename for part in tree.walk(node) if part.DESCRIPTOR.name == "CommonTableExpr"}
    for part in tree.walk(node):
        name = part.DESCRIPTOR.name
        if name in ("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "IntoClause"):
            return False
        if name == "FuncCall" and not resolver.quiet_function(part.funcname[-1].string.sval):
            return False
        if name in ("A_Expr", "SubLink"):
            words = part.name if name == "A_Expr" else part.oper_name
            if words and not resolver.quiet_operator(words[-1].string.sval):
                return False
        if name == "TypeName" and part.names:
            known = resolver.type_by_name([each.string.sval for each in part.names])
            if known is None or known.oid >= FIRST_NORMAL_OID:
                return False
        if name == "RangeVar" and not (part.relname in names and not part.schemaname):
            schema = part.schemaname or resolver.schema_of(part.relname)
            relation = resolver.catalog.relations.get((schema or "", part.relname))
            if schema != "information_schema" and (
                relation is None or (relation.oid >= FIRST_NORMAL_OID and relation.kind not in "rpm")
            ):
                return False
    return True


def _note(names: dict[str, Judged], judged: Judged) -> None:
    if judged.governed:
        names[judged.name] = judged
    else:
        names.pop(judged.name, None)


def _shown(judged: Judged, types: tuple[int, ...]) -> Shown:
    judged.shown.types = types
    return judged.shown


def _text_of(node: Node) -> str:
    """Raises `Refusal` ST-07 if the text does not read back as the tree."""
    try:
        sql = tree.text_of(node)
        same = tree.parses_back(node, sql)
    except Exception:  # the deparser's errors, and the limit on nesting of protobuf
        same = False
    if not same:
        raise _unlike()
    return sql


def _unlike() -> Refusal:
    return Refusal(
        "ST-07",
        "The rewritten statement does not read back as it was checked.",
        sqlstate="0A000",
        hint="Write the statement in a simpler form.",
    )


def _locations(sent: Any, own: Any) -> dict[int, int]:
    """Where each part of one tree stands -> where the same part of a like tree does, as byte offsets."""
    found: dict[int, int] = {}

    def walk(one: Any, other: Any) -> None:
        if "location" in one.DESCRIPTOR.fields_by_name and other.location > 0:
            found[one.location] = other.location  # the innermost: errors are about a constant, not about its column
        for field, value in one.ListFields():
            if field.message_type is None:
                continue
            if field.is_repeated:
                for left, right in zip(value, getattr(other, field.name), strict=False):
                    walk(left, right)
            elif other.HasField(field.name):
                walk(value, getattr(other, field.name))

    walk(sent, own)
    return found


def _with_position(payload: bytes, position: int | None) -> bytes:
    """The fields of an ErrorResponse with another position, or without one."""
    fields = [field for field in payload.rstrip(b"\0").split(b"\0") if field[:1] != b"P"]
    if position is not None:
        fields.append(b"P%d" % position)
    return b"\0".join(fields) + b"\0\0"
