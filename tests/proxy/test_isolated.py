"""Isolated sessions against a real PostgreSQL, message by message: every statement enforced on a backend of its own.

The policy's answers are scripted; enforcement, pool, recorder and server are the real ones.  AC-09 is exercised here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import msgspec
import pytest

from grille.audit.event import Event
from grille.policies.decision import CachePolicy, ColumnObligation, Decision, FieldFilter, Limits
from grille.policies.pdp import PolicyUnavailable, Unanswered
from grille.protocols.postgres.analysis import Sensitive
from grille.protocols.postgres.messages import Bind, CopyData, CopyDone, Describe, Execute, Flush, Parse, Query, Sync
from grille.proxy import enforcement
from grille.proxy.catalog_own import VIEWS
from grille.proxy.isolated import Isolated
from tests.proxy import test_passthrough
from tests.proxy.test_passthrough import MakeWorld, World, error, kinds, rows

make_world = test_passthrough.make_world

ALLOWED = Decision(
    allow=True, control="AC-01", reason="a tool", passthrough=False, filters={}, columns={}, limits=Limits(),
    locks=True, isolated=False, not_before=None, not_after=None, cache=CachePolicy(60),
)  # fmt: skip
ISOLATED = msgspec.structs.replace(ALLOWED, isolated=True)
OURS = FieldFilter("eq", "public.secret.branch", "0042")
"""What the agent may see of ``secret``."""


class Policies:
    """Isolated sessions; every relation that is not ``hidden`` is allowed, with its filter; tags in ``passes`` pass."""

    def __init__(self) -> None:
        self.connect = ISOLATED
        self.revision = "1"
        self.filters: dict[str, Any] = {}
        self.columns: dict[str, ColumnObligation] = {}
        self.hidden = {"public.hidden"}
        self.passes = {"SET", "CREATE TEMP TABLE", "CREATE TABLE", "DROP TABLE", "LISTEN"}
        self.asked: list[dict[str, Any]] = []
        self.limits = Limits()

    def decide(self, document: bytes) -> Decision:
        operation = msgspec.json.decode(document)["operation"]
        self.asked.append(operation)
        if operation["action"] == "connect":
            return self.connect
        if operation["action"] == "passthrough":
            passes = operation["statement"] in self.passes or "*" in self.passes
            return msgspec.structs.replace(ALLOWED, allow=passes, passthrough=passes)
        names = {f"{use['schema']}.{use['name']}" for use in operation["relations"]}
        if names & self.hidden:
            return msgspec.structs.replace(ALLOWED, allow=False, reason="This relation is hidden.")
        filters = {name: self.filters.get(name, True) for name in names}
        columns = {name: value for name, value in self.columns.items() if name.rpartition(".")[0] in names}
        return msgspec.structs.replace(ALLOWED, filters=filters, columns=columns, limits=self.limits)

    def passed(self) -> list[tuple[str, str]]:
        """Tag and control of each statement that was asked once more."""
        asked = [each for each in self.asked if each["action"] == "passthrough"]
        return [(each["statement"], each["control"]) for each in asked if each["control"] != "ID-04"]


@pytest.fixture
async def make_isolated(make_world: MakeWorld) -> Callable[..., Any]:
    async def make(*, sensitive: dict[str, Sensitive] | None = None, **given: Any) -> World:
        world = await make_world(**given)
        policies = Policies()
        world.policies = policies  # type: ignore[assignment]
        world.direct(
            "CREATE TABLE secret (id int PRIMARY KEY, branch text, amount int);"
            "INSERT INTO secret VALUES (1, '0042', 10), (2, '0043', 20), (3, '0042', 30);"
            "CREATE TABLE hidden (id int); INSERT INTO hidden VALUES (7); INSERT INTO t VALUES (1, 'one'), (2, 'two');"
        )
        before = world.services.enforcement["bank"]
        catalog = before.built_in().catalog
        world.services.enforcement["bank"] = enforcement.Enforcement(  # type: ignore[index]
            catalog=lambda: catalog,
            pdp=lambda: policies,
            provider=before._provider,
            sensitive=sensitive or {},
            passthrough=given.get("passthrough", True),
        )
        return world

    return make


@pytest.fixture
async def world(make_isolated: Callable[..., Any]) -> World:
    made: World = await make_isolated()
    return made


@pytest.fixture
async def filtered(world: World) -> World:
    world.policies.filters["public.secret"] = OURS  # type: ignore[attr-defined]
    return world


def extended(text: str, *values: bytes, name: str = "") -> list[Any]:
    return [Parse(name, text), Bind("", name, values=values), Describe("P", ""), Execute(""), Sync()]


def verdicts(world: World) -> list[tuple[str, str]]:
    """Tag and what the policy let pass of each statement that ran."""
    ran = [event for event in world.statements() if event.outcome and event.outcome.status != "intent"]
    return [(e.verdict.statement, e.verdict.passed) for e in ran if e.verdict and e.verdict.allow]


def last(world: World) -> Event:
    return world.statements()[-1]


# who gets one


async def test_both_locks_are_needed(make_isolated: Callable[..., Any]) -> None:
    world = await make_isolated(passthrough=False)
    client = await world.connect()
    fields = error(await client.start())
    assert "AC-08" in fields["M"]
    assert fields["S"] == "FATAL"


async def test_isolated_and_passthrough_exclude_each_other(world: World) -> None:
    world.policies.connect = msgspec.structs.replace(ISOLATED, passthrough=True)  # type: ignore[attr-defined]
    assert "AC-05" in error(await (await world.connect()).start())["M"]


async def test_another_policy_ends_the_session(world: World) -> None:
    client = await world.client()
    assert rows(await client.query("SELECT id FROM t ORDER BY id")) == [(b"1",), (b"2",)]
    world.policies.revision = "2"
    fields = error(await client.query("SELECT id FROM t"))
    assert fields["C"] == "57P01"
    assert "AC-09" in fields["M"]


# enforcement


@pytest.mark.parametrize(
    "text",
    [
        "SELECT id FROM secret ORDER BY id",
        "SELECT id FROM public.secret WHERE amount + 1 > 0 ORDER BY id",
        "SELECT s.id FROM t JOIN secret s ON true GROUP BY s.id ORDER BY s.id",
        "WITH x AS (SELECT * FROM secret) SELECT id FROM x ORDER BY id",
    ],
)
async def test_rows_are_filtered_in_both_protocols(filtered: World, text: str) -> None:
    client = await filtered.client()
    assert rows(await client.query(text)) == [(b"1",), (b"3",)]
    assert rows(await client.ask(*extended(text))) == [(b"1",), (b"3",)]
    assert verdicts(filtered) == [("SELECT", ""), ("SELECT", "")]
    assert {e.verdict.filters_hash for e in filtered.statements() if e.verdict} != {""}
    assert "public.secret" in {use.name for use in last(filtered).relations}


async def test_rows_are_filtered_below_declare_prepare_and_copy(filtered: World) -> None:
    client = await filtered.client()
    await client.query("BEGIN")
    await client.query("DECLARE c CURSOR FOR SELECT id FROM secret ORDER BY id")
    assert rows(await client.query("FETCH ALL FROM c")) == [(b"1",), (b"3",)]
    await client.query("COMMIT")
    await client.query("PREPARE q (int) AS SELECT id FROM secret WHERE id > $1 ORDER BY id")
    assert rows(await client.query("EXECUTE q (0)")) == [(b"1",), (b"3",)]
    copied = await client.query("COPY (SELECT id FROM secret ORDER BY id) TO STDOUT")
    assert [payload for kind, payload in copied if kind == "d"] == [b"1\n", b"3\n"]
    assert filtered.policies.passed() == []  # type: ignore[attr-defined]


async def test_copy_of_a_table_is_filtered_or_refused(filtered: World) -> None:
    client = await filtered.client()
    copied = await client.query("COPY secret (id, amount) TO STDOUT WITH (FORMAT csv, HEADER)")
    assert b"".join(payload for kind, payload in copied if kind == "d") == b"id,amount\n1,10\n3,30\n"
    assert "AC-05" in error(await client.query("COPY secret FROM STDIN"))["M"]
    client.send(Query("COPY t FROM STDIN"))
    assert (await client.message())[0] == "G"
    client.send(CopyData(b"9\tnine\n"), CopyDone())
    assert kinds(await client.unit()) == "CZ"
    assert filtered.direct("SELECT name FROM t WHERE id = 9") == [("nine",)]
    assert "AC-01" in error(await client.query("COPY hidden TO STDOUT"))["M"]
    assert "AC-01" in error(await client.query("COPY hidden FROM STDIN"))["M"]
    assert "ST-05" in error(await client.query("COPY t TO '/tmp/t'"))["M"]
    assert filtered.policies.passed() == [("COPY", "ST-05")]  # type: ignore[attr-defined]
    assert [tag for tag, passed in verdicts(filtered) if passed == ""] == ["COPY", "COPY"]


async def test_explain_is_not_rewritten_because_it_would_show_the_filter(filtered: World) -> None:
    client = await filtered.client()
    fields = error(await client.query("EXPLAIN SELECT id FROM secret"))
    assert "ST-05" in fields["M"]
    assert filtered.policies.passed() == [("EXPLAIN", "ST-05")]  # type: ignore[attr-defined]


async def test_views_that_show_the_filter_are_not_understood(filtered: World) -> None:
    client = await filtered.client()
    await client.query("PREPARE q AS SELECT id FROM secret")
    for name in ("pg_prepared_statements", "pg_catalog.pg_cursors", "pg_stat_activity"):
        assert "ST-03" in error(await client.query(f"SELECT * FROM {name}"))["M"]
    assert kinds(await client.query("SELECT count(*) FROM pg_class")) == "TDCZ"


async def test_a_look_up_reads_the_relation_that_it_looks_in(filtered: World) -> None:
    client = await filtered.client()
    policies = filtered.policies
    sql = "SELECT 't'::regclass, format_type(23, -1), pg_get_indexdef('secret_pkey'::regclass)"
    shown = (b"t", b"integer", b"CREATE UNIQUE INDEX secret_pkey ON public.secret USING btree (id)")
    assert rows(await client.query(sql)) == [shown]
    named = {"pg_catalog.pg_class", "pg_catalog.pg_type", "pg_catalog.pg_index", "pg_catalog.pg_attribute"}
    operation = policies.asked[-1]  # type: ignore[attr-defined]
    assert {f"{use['schema']}.{use['name']}" for use in operation["relations"]} == named
    policies.hidden.add("pg_catalog.pg_type")  # type: ignore[attr-defined]
    policies.revision = "2"  # type: ignore[attr-defined]
    assert "57P01" in error(await client.query(sql))["C"]
    client = await filtered.client()
    assert "AC-01" in error(await client.query(sql))["M"]
    assert rows(await client.query("SELECT pg_table_is_visible('t'::regclass)")) == [(b"t",)]
    policies.filters["pg_catalog.pg_class"] = FieldFilter("eq", "relname", "t")  # type: ignore[attr-defined]
    policies.revision = "3"  # type: ignore[attr-defined]
    client = await filtered.client()
    refused = error(await client.query("SELECT pg_table_is_visible('t'::regclass)"))
    assert "ST-04" in refused["M"] and "may not read all" in refused["M"]
    assert rows(await client.query("SELECT relname FROM pg_class")) == [(b"t",)]


async def test_writes_are_filtered_or_refused(filtered: World) -> None:
    client = await filtered.client()
    assert kinds(await client.query("DELETE FROM secret")) == "CZ"
    assert filtered.direct("SELECT id FROM secret") == [(2,)]
    fields = error(await client.query("INSERT INTO secret VALUES (9, '0043', 1)"))
    assert "AC-05" in fields["M"]
    assert filtered.direct("SELECT count(*) FROM secret") == [(1,)]


async def test_limits_are_refused(filtered: World) -> None:
    filtered.policies.limits = Limits(rows=1)  # type: ignore[attr-defined]
    assert "AC-05" in error(await (await filtered.client()).query("SELECT id FROM t"))["M"]


async def test_no_sensitive_column_is_unmasked(make_isolated: Callable[..., Any]) -> None:
    sensitive = {
        "public.secret.amount": Sensitive(None, None),
        "public.t.name": Sensitive("card", "cards"),
    }
    world = await make_isolated(sensitive=sensitive)
    client = await world.client()
    assert rows(await client.query("SELECT id, amount FROM secret WHERE id = 2")) == [(b"2", None)]
    assert "AC-05" in error(await client.query("SELECT name FROM t"))["M"]
    assert rows(await client.query("SELECT id FROM t ORDER BY id")) == [(b"1",), (b"2",)]


# what is not understood


async def test_a_tag_passes_and_another_is_refused_with_its_control(world: World) -> None:
    client = await world.client()
    assert kinds(await client.query("SET lock_timeout = 1000")).endswith("CZ")
    assert "ST-05" in error(await client.query("CREATE VIEW v AS SELECT 1"))["M"]
    assert kinds(await client.query("SELECT 1")) == "TDCZ"
    assert world.policies.passed() == [("SET", "ST-05"), ("CREATE VIEW", "ST-05")]  # type: ignore[attr-defined]
    assert ("SET", "ST-05") in verdicts(world)
    refused = [e for e in world.statements() if e.outcome and e.outcome.status == "denied"]
    assert [e.verdict.control for e in refused if e.verdict] == ["ST-05"]


@pytest.mark.parametrize("text", ["SELECT id FROM hidden", "SELECT lo_import('x') FROM hidden", "DELETE FROM hidden"])
async def test_a_denial_of_the_policy_is_never_asked_again(world: World, text: str) -> None:
    world.policies.passes.add("*")  # type: ignore[attr-defined]
    client = await world.client()
    asked = len(world.policies.passed())  # type: ignore[attr-defined]
    assert "AC-01" in error(await client.query(text))["M"]
    assert "AC-01" in error(await client.ask(*extended(text)))["M"]
    assert len(world.policies.passed()) == asked  # type: ignore[attr-defined]


async def test_a_policy_that_fails_lets_nothing_pass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await world.client()

    def fail(document: bytes) -> Decision:
        raise PolicyUnavailable("stopped by the test")

    monkeypatch.setattr(world.policies, "decide", fail)
    assert "ST-05" in error(await client.query("SET jit = off"))["M"]


async def test_an_engine_that_answers_later_is_waited_for(filtered: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await filtered.client()
    decide = filtered.policies.decide
    asked: set[bytes] = set()

    def later(document: bytes) -> Decision:
        if document not in asked:
            asked.add(document)
            answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            answer.get_loop().call_soon(answer.set_result, None)
            raise Unanswered(answer)
        return decide(document)

    monkeypatch.setattr(filtered.policies, "decide", later)
    assert rows(await client.query("SET jit = off; SELECT id FROM t")) == []
    assert rows(await client.query("BEGIN; SELECT id FROM secret ORDER BY id; COMMIT")) == [(b"1",), (b"3",)]
    assert "AC-01" in error(await client.query("SELECT id FROM hidden"))["M"]
    assert len(asked) == 5


async def test_a_text_that_cannot_be_parsed_has_no_tag(world: World) -> None:
    client = await world.client()
    assert "ST-01" in error(await client.query("SELEKT 1"))["M"]
    assert world.policies.passed() == [("", "ST-01")]  # type: ignore[attr-defined]


async def test_a_text_that_cannot_be_parsed_may_pass(world: World) -> None:
    world.policies.passes.add("")  # type: ignore[attr-defined]
    client = await world.client()
    fields = error(await client.query("SELEKT 1"))
    assert fields["C"] == "42601"
    assert fields["P"] == "1"
    assert "control" not in fields["M"]


# the session's own catalogue


async def test_own_temporary_and_uncommitted_tables_are_understood(world: World) -> None:
    client = await world.client()
    await client.query("CREATE TEMP TABLE mine (a int)")
    assert kinds(await client.query("INSERT INTO mine VALUES (1), (2)")) == "CZ"
    assert rows(await client.query("SELECT a FROM mine ORDER BY a")) == [(b"1",), (b"2",)]
    assert rows(await client.query("SELECT a FROM pg_temp.mine ORDER BY a")) == [(b"1",), (b"2",)]
    await client.query("BEGIN")
    await client.query("CREATE TABLE young (b text)")
    assert kinds(await client.query("INSERT INTO young VALUES ('x')")) == "CZ"
    assert rows(await client.query("SELECT b FROM young")) == [(b"x",)]
    await client.query("ROLLBACK")
    assert "ST-03" in error(await client.query("SELECT b FROM young"))["M"]
    governed = [passed for tag, passed in verdicts(world) if tag in ("INSERT", "SELECT")]
    assert governed == [""] * 5
    assert "pg_temp.mine" in {use.name for event in world.statements() for use in event.relations}


async def test_a_query_that_passes_and_only_reads_needs_no_look(world: World) -> None:
    world.policies.passes.add("SELECT")  # type: ignore[attr-defined]
    world.direct(
        "CREATE FUNCTION mine() RETURNS text LANGUAGE sql AS $$ SELECT set_config('search_path', 'x', false) $$"
    )
    client = await world.client()
    (session,) = world.sessions
    isolated = session._passthrough
    assert isinstance(isolated, Isolated)
    for text, stale in (
        ("SELECT 't'::regclass::oid > 0, pg_table_is_visible(1)", False),
        ("SELECT set_config('search_path', 'x', false)", True),
        ("SELECT public.mine()", True),
        ("WITH x AS (INSERT INTO t VALUES (8, 'x') RETURNING id) SELECT id FROM x", True),
        ("SELECT nextval('none')", True),
    ):
        await client.query("SELECT id FROM public.t")
        assert not isolated._stale
        await client.query(text)
        assert isolated._stale == stale, text


async def test_a_table_that_another_session_makes_is_found(world: World) -> None:
    client = await world.client()
    assert "ST-03" in error(await client.query("SELECT a FROM late"))["M"]
    world.direct("CREATE TABLE late (a int)")
    assert kinds(await client.query("SELECT a FROM late")) == "TCZ"


async def test_what_new_sessions_saw_is_kept_for_a_few_settings_only(world: World) -> None:
    """The settings are the client's: as many as it likes must not be as many catalogues in memory."""
    seen = world.services.enforcement["bank"].seen
    for number in range(VIEWS + 3):
        client = await world.client(application_name=f"tool {number}")
        assert kinds(await client.query("SELECT id FROM t")) == "TDDCZ"
        client.writer.close()
    assert len(seen) == VIEWS


async def test_names_are_found_on_the_search_path(filtered: World) -> None:
    filtered.direct("CREATE SCHEMA other; CREATE TABLE other.secret (id int); INSERT INTO other.secret VALUES (5)")
    client = await filtered.client()
    await client.query("SET search_path = other, public")
    assert rows(await client.query("SELECT id FROM secret")) == [(b"5",)]
    assert rows(await client.query("SELECT id FROM public.secret ORDER BY id")) == [(b"1",), (b"3",)]
    await client.query("SET search_path = public")
    await client.query("CREATE TEMP TABLE secret (id int)")
    assert rows(await client.query("SELECT id FROM secret")) == []


async def test_an_operator_of_the_database_is_not_taken_for_the_servers(filtered: World) -> None:
    filtered.direct(
        "CREATE SCHEMA evil; CREATE FUNCTION evil.peek(text, text) RETURNS bool LANGUAGE plpgsql COST 0.001 AS "
        "$$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$;"
        "CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.peek)"
    )
    client = await filtered.client()
    await client.query("SET search_path = evil, pg_catalog, public")
    assert "ST-04" in error(await client.query("SELECT id FROM secret WHERE branch = 'x'"))["M"]


# transactions and texts


async def test_a_failed_transaction_takes_nothing_but_its_end(filtered: World) -> None:
    client = await filtered.client()
    await client.query("BEGIN")
    assert error(await client.query("SELECT 1 / 0"))["C"] == "22012"
    assert error(await client.query("SELECT id FROM secret"))["C"] == "25P02"
    assert error(await client.ask(*extended("SELECT id FROM hidden")))["C"] == "25P02"
    assert "ST-08" in error(await client.query("ROLLBACK; SELECT id FROM secret"))["M"]
    assert kinds(await client.query("ROLLBACK")) == "CZ"
    assert rows(await client.query("SELECT id FROM secret ORDER BY id")) == [(b"1",), (b"3",)]


async def test_a_failed_transaction_may_be_left_within_a_pipeline(filtered: World) -> None:
    client = await filtered.client()
    await client.query("BEGIN")
    await client.query("SELECT 1 / 0")
    answer = await client.ask(*extended("ROLLBACK")[:-1], *extended("SELECT id FROM secret ORDER BY id"))
    assert rows(answer) == [(b"1",), (b"3",)]


async def test_several_statements_are_decided_before_any_is_sent(world: World) -> None:
    client = await world.client()
    assert "AC-01" in error(await client.query("DELETE FROM t; SELECT id FROM hidden"))["M"]
    assert world.direct("SELECT count(*) FROM t") == [(2,)]
    answer = await client.query("BEGIN; INSERT INTO t VALUES (3, 'three'); SELECT id FROM t ORDER BY id; COMMIT")
    assert rows(answer) == [(b"1",), (b"2",), (b"3",)]
    assert kinds(answer) == "CCTDDDCCZ"
    tags = [e.outcome.tag for e in world.statements() if e.outcome and e.outcome.status == "ok"]
    assert tags[-4:] == ["BEGIN", "INSERT 0 1", "SELECT 3", "COMMIT"]


async def test_what_follows_a_statement_that_passes_is_not_understood(filtered: World) -> None:
    client = await filtered.client()
    for text in ("SET search_path = evil; SELECT id FROM secret", "SET jit = off; SELECT id FROM hidden"):
        assert kinds(await client.query(text)) == "EZ"
    assert ("SELECT", "ST-08") in filtered.policies.passed()  # type: ignore[attr-defined]
    filtered.policies.passes.add("SELECT")  # type: ignore[attr-defined]
    client = await filtered.client()
    assert error(await client.query("SET jit = off; SELECT id FROM hidden"))["C"] == "42501"


@pytest.mark.parametrize("setting", ["client_encoding = 'SJIS'", "standard_conforming_strings = off"])
async def test_a_text_that_the_server_may_read_otherwise_is_not_understood(filtered: World, setting: str) -> None:
    client = await filtered.client()
    await client.query(f"SET {setting}")
    text = "SELECT id, '\\' FROM secret -- \u00e9'"
    assert "ST-01" in error(await client.query(text))["M"]
    assert rows(await client.query("SELECT id FROM secret ORDER BY id")) == [(b"1",), (b"3",)]
    unit = [*extended("SET client_encoding = 'UTF8'")[:-1], *extended(text)]
    assert "ST-01" in error(await client.ask(*unit))["M"]


async def test_a_pipeline_uses_what_it_makes(world: World) -> None:
    client = await world.client()
    unit = [*extended("CREATE TABLE piped (a int)")[:-1], *extended("INSERT INTO piped VALUES (1)")[:-1],
            *extended("SELECT a FROM piped")]  # fmt: skip
    answer = await client.ask(*unit)
    assert rows(answer) == [(b"1",)]
    assert kinds(answer) == "12nC" + "12nC" + "12TDC" + "Z"
    refused = await client.ask(*extended("INSERT INTO piped VALUES (2)")[:-1], *extended("SELECT id FROM hidden"))
    assert kinds(refused) == "12nCEZ"
    assert world.direct("SELECT count(*) FROM piped") == [(1,)]


async def test_an_answer_of_the_look_is_never_the_clients(world: World) -> None:
    client = await world.client()
    client.send(*extended("CREATE TEMP TABLE x (a int)")[:-1], Parse("s", "SELECT a FROM x"), Flush())
    found = [await client.message() for _ in range(5)]
    assert kinds(found) == "12nC1"
    assert kinds(await client.ask(Bind("", "s"), Execute(""), Sync())) == "2CZ"


# words


async def test_errors_are_scrubbed_under_a_filter_and_kept_without(filtered: World) -> None:
    client = await filtered.client()
    kept = error(await client.query("SELECT CAST(name AS int) FROM t"))
    assert kept["M"] == 'invalid input syntax for type integer: "one"'
    scrubbed = error(await client.query("SELECT CAST(branch || 'x' AS int) FROM secret"))
    assert "0042" not in str(scrubbed)
    assert scrubbed["C"] == "22P02"
    events = [e.outcome.error for e in filtered.statements() if e.outcome and e.outcome.sqlstate == "22P02"]
    assert events[-1].startswith('M=invalid input syntax for type integer: "?"')


async def test_a_position_is_one_in_the_clients_own_text(world: World) -> None:
    client = await world.client()
    text = "SELECT int 'nonsense'"
    assert error(await client.query(text))["P"] == str(text.index("'nonsense'") + 1)
    text = "/* \u00e9 */ SELECT id, name = 'a', 'nonsense'::int FROM t WHERE name = 'a'"
    assert error(await client.query(text))["P"] == str(text.index("'nonsense'") + 1)
    several = f"BEGIN; {text}"
    assert error(await client.query(several))["P"] == str(several.index("'nonsense'") + 1)


async def test_what_the_server_reads_otherwise_than_the_parser_is_not_understood(world: World) -> None:
    client = await world.client()
    assert "ST-01" in error(await client.query("SELECT $1a"))["M"]
    assert rows(await client.query("SELECT id AS a_1, 2 AS b2_3 FROM t ORDER BY id")) == [(b"1", b"2"), (b"2", b"2")]


async def test_names_of_prepared_statements_and_cursors_that_are_not_known_are_asked(world: World) -> None:
    client = await world.client()
    assert "ST-05" in error(await client.query("EXECUTE nothing"))["M"]
    assert "ST-05" in error(await client.query("FETCH ALL FROM nothing"))["M"]
    assert kinds(await client.query("CLOSE ALL")) == "CZ"


async def test_a_changed_relation_is_noticed_by_its_prepared_statement(filtered: World) -> None:
    client = await filtered.client()
    await client.ask(Parse("s", "SELECT id FROM secret"), Sync())
    filtered.direct("ALTER TABLE secret RENAME TO old; CREATE TABLE secret (id int, branch text)")
    fields = error(await client.ask(Bind("", "s"), Execute(""), Sync()))
    assert "ST-08" in fields["M"]


async def test_a_copy_that_fails_leaves_the_session_usable(world: World) -> None:
    connection = await asyncpg.connect(host="127.0.0.1", port=world.port, user="x", database="y", ssl=False)

    async def source() -> AsyncIterator[bytes]:
        yield b"7\tseven\n"
        raise ValueError("the source has failed")

    for _ in range(3):
        with pytest.raises(ValueError, match="source"):
            await connection.copy_to_table("t", source=source())
        assert await connection.fetchval("SELECT count(*) FROM t") == 2
        await connection.execute("CREATE TEMP TABLE IF NOT EXISTS x (a int)")
    await connection.close()
