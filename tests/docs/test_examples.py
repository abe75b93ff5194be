"""What the documentation shows is run: SQL through enforcement, configuration, policies, JSON, Python, commands.

A fenced block's info string says what it is: ``sql as=AGENT [expect=CONTROL] [session]``, ``toml`` (a whole
configuration) or ``toml part`` (joined to a whole one), ``rego``, ``json``, ``python``.  A comment
``<!-- check: NAME -->`` before a block or a table says what more is expected of it.  Lines indented by four are
commands or output.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import io
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgspec
import psycopg
import pytest

import grille.policies.bundles
from grille.audit import event
from grille.audit.encoding import encode
from grille.controls import Refusal
from grille.policies import bundle
from grille.policies.bundles import build
from grille.policies.decision import ColumnObligation, Filter, Limits
from grille.policies.pdp import decode
from grille.policies.wasm import WasmEngine
from grille.protocols.operation import Operation, RelationUse
from grille.protocols.postgres.analysis import Sensitive
from grille.proxy import config, policy_commands, queues
from grille.proxy.catalog import read_catalog
from grille.proxy.cli import parser
from grille.proxy.demo import bank
from grille.proxy.demo.cluster import Cluster
from grille.proxy.demo.config_files import FRAUD, SERVICE
from grille.proxy.enforcement import CONNECT, Enforcement, policy_input
from grille.proxy.identity import Agent, Registry, parse_spiffe_id
from grille.proxy.startup import cut_comment
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.masking import MASKS
from grille.tokenization.transformation import Key

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
KINDS = {"sql", "toml", "rego", "json", "python", "text", "mermaid"}
DEMO = Path(grille.policies.bundles.__file__).parent / "demo.tar.gz"
AGENTS = {"fraud": FRAUD, "service": SERVICE, "stranger": "spiffe://bank.example/ns/other/sa/thing"}


class Block(NamedTuple):
    """One fenced block."""

    page: Path
    line: int
    kind: str
    options: tuple[str, ...]
    check: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def option(self, name: str) -> str:
        return next((word.partition("=")[2] for word in self.options if word.startswith(f"{name}=")), "")


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    check = ""
    while number < len(lines):
        line = lines[number]
        if found := re.fullmatch(r"\s*<!-- check: (\S+) -->", line):
            check = found[1]
        elif opened := re.fullmatch(r"(\s*)```(.*)", line):
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == "```")
            words = opened[2].split()
            text = textwrap.dedent("\n".join(lines[number + 1 : end])) + "\n"
            yield Block(page, number + 1, words[0] if words else "", tuple(words[1:]), check, text)
            number, check = end, ""
        elif line.strip() and not line.lstrip().startswith("|"):
            check = ""
        number += 1


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of(*kinds: str) -> list[Any]:
    return [pytest.param(block, id=block.where) for block in BLOCKS if block.kind in kinds]


def checked(name: str) -> Block:
    (found,) = (block for block in BLOCKS if block.check == name)
    return found


def table(page: str, name: str) -> list[str]:
    """First column of the table behind ``<!-- check: NAME -->``: every word in backquotes."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"<!-- check: {name} -->\n")[2]
    rows = text.partition("\n\n")[0].splitlines()[2:]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_every_block_says_what_it_is() -> None:
    assert [block.where for block in BLOCKS if block.kind not in KINDS] == []
    assert {block.kind for block in BLOCKS} == KINDS


# SQL


@pytest.fixture(scope="module")
def server(pg18: Cluster) -> Iterator[Cluster]:
    """The demo's schema without rows."""
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE documentation")
    with psycopg.connect(pg18.dsn("documentation")) as connection:
        connection.execute(bank.SCHEMA)
    yield pg18
    with psycopg.connect(pg18.dsn(), autocommit=True) as connection:
        connection.execute("DROP DATABASE documentation WITH (FORCE)")


@pytest.fixture(scope="module")
def enforcement(server: Cluster) -> Enforcement:
    async def read() -> Any:
        connection = await asyncpg.connect(host=server.host, user="postgres", database="documentation")
        try:
            return await read_catalog(connection)
        finally:
            await connection.close()

    catalog = asyncio.run(read())
    engine = WasmEngine(bundle.read(DEMO), "grille/decision", timeout=5)
    domains = {each.name: each.token_domain for each in bank.TRANSFORMATIONS}
    return Enforcement(
        catalog=lambda: catalog,
        pdp=lambda: engine,
        provider=EmbeddedProvider(
            bank.TRANSFORMATIONS, [Key("fpe", 1, bytes(range(32))), Key("siv", 1, bytes(range(64)))]
        ),
        sensitive={name: Sensitive(each, domains[each]) for name, each in bank.SENSITIVE.items()},
    )


def agent(name: str) -> Agent:
    identity = config.Identity(spiffe_id=AGENTS[name], database=bank.DATABASE, attributes={"branch": "0042"})
    return Registry([identity]).agent(parse_spiffe_id(AGENTS[name]))


@pytest.mark.parametrize("block", of("sql"))
async def test_sql(block: Block, enforcement: Enforcement, server: Cluster) -> None:
    who, expected = agent(block.option("as")), block.option("expect")
    text, _ = cut_comment(block.text.strip())
    if expected:
        with pytest.raises(Refusal) as refused:
            await enforcement.prepare(who, text, simple=True)
        assert refused.value.control == expected
        return
    (prepared,) = await enforcement.prepare(who, text, simple=True)
    if "session" in block.options:
        assert prepared.command is not None
        return
    _, values = await enforcement.bind(who, prepared, (), ())
    assert prepared.plan is not None
    connection = await asyncpg.connect(host=server.host, user="postgres", database="documentation")
    try:
        statement = await connection.prepare(prepared.plan.sql)
        assert len(statement.get_parameters()) == len(values)
    finally:
        await connection.close()


# configuration


@pytest.mark.parametrize("block", of("toml"))
def test_configuration(block: Block) -> None:
    document = tomllib.loads(block.text)
    if "part" in block.options:
        whole = tomllib.loads(checked("config").text)
        whole["keys"] = tomllib.loads(checked("tokens").text)["keys"]
        whole["transformations"] = tomllib.loads(checked("tokens").text)["transformations"]
        document = {**whole, **document}
    decoded = config.decode(document, base=Path("/nowhere"), source=block.where)
    kept = ("does not exist", "is not a file")
    problems = [problem for problem in config._problems(decoded) if problem.what not in kept]
    assert problems == []


# policies


def test_the_policy_of_the_guide(tmp_path: Path) -> None:
    if build.find_opa() is None:
        pytest.skip("the opa program is not installed")
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "decision.rego").write_text(checked("build").text)
    (policy / "decision_test.rego").write_text(checked("test").text)
    (policy / "decision_golden.json").write_text(checked("golden").text)
    out = io.StringIO()
    assert policy_commands.test(policy, False, out) == 1
    assert policy_commands.test(policy, True, out) == 0
    assert policy_commands.test(policy, False, out) == 0
    assert out.getvalue().splitlines()[-1] == "test rego=2/2 golden=1/1"
    build.build(policy, tmp_path / "policy.tar.gz")
    engine = WasmEngine(bundle.read(tmp_path / "policy.tar.gz"), "grille/decision", timeout=5)
    for path, allowed in ((["ns", "reports", "sa", "monthly"], True), (["ns", "other"], False)):
        identity = {"spiffe_id": "", "trust_domain": "bank.example", "path": path, "attributes": {"branch": "0042"}}
        relation = {"schema": "public", "name": "accounts", "access": "read", "columns": [], "predicates": []}
        question = {"identity": identity, "session": {}, "operation": {"action": "select", "relations": [relation]}}
        assert engine.decide(msgspec.json.encode(question)).allow is allowed


NEEDS = sorted((ROOT / "docs/how-to/policies").glob("*.md"))


@pytest.mark.parametrize("page", [page for page in NEEDS if page.name != "README.md"], ids=lambda page: page.stem)
def test_a_policy_for_a_common_need(page: Path, tmp_path: Path) -> None:
    if build.find_opa() is None:
        pytest.skip("the opa program is not installed")
    found = [block for block in BLOCKS if block.page == page]
    assert [block.kind for block in found] == ["rego", "json", "json"]
    for name, block in zip(("decision.rego", "data.json", "decision_golden.json"), found, strict=True):
        (tmp_path / name).write_text(block.text)
    out = io.StringIO()
    assert policy_commands.test(tmp_path, False, out) == 0, out.getvalue()
    assert f"]({page.name})" in (page.parent / "README.md").read_text()
    assert {path.stem for path in build.library_files(tmp_path)} > {"answer"}


def test_every_rego_block_is_run() -> None:
    here = [block for block in BLOCKS if block.kind == "rego" and block.page not in NEEDS]
    assert {block.check for block in here} == {"build", "test"}


def test_every_module_of_the_library_has_its_page() -> None:
    used = {name for page in NEEDS for name in re.findall(r"import data\.grille_library\.(\w+)", page.read_text())}
    assert used == {path.stem for path in build.source_files(build.LIBRARY)}


def test_the_question_has_the_keys_that_are_sent() -> None:
    shown = msgspec.json.decode(checked("policy-input").text)
    operation = msgspec.convert(shown["operation"], Operation)
    sent = msgspec.json.decode(msgspec.json.encode(policy_input(agent("service"), operation)))
    assert shown["operation"] == sent["operation"]
    assert {name: set(part) for name, part in shown.items()} == {name: set(part) for name, part in sent.items()}


def test_the_question_about_a_session_is_the_one_that_is_asked() -> None:
    queue = Operation("get", (RelationUse("QM1", "PAYMENTS.IN", "get"),))
    settlement = msgspec.structs.replace(agent("service"), queue_manager="QM1")
    sent = msgspec.json.decode(msgspec.json.encode(policy_input(settlement, queue, "mq")))
    assert msgspec.json.decode(checked("mq-question").text) == {name: sent[name] for name in ("session", "operation")}
    filters = msgspec.json.decode(checked("mq-filter").text, type=dict[str, Filter])
    (name,) = filters
    assert queues._condition(filters[name], name) == "branch = '0042'"
    assert msgspec.json.decode(checked("mq-columns").text, type=dict[str, ColumnObligation])
    shown = msgspec.convert(msgspec.json.decode(checked("connect").text), Operation)
    assert shown == CONNECT


def test_the_answer_is_a_decision() -> None:
    decision = decode(checked("decision").text.encode())
    assert decision.allow
    explained = (ROOT / "docs/reference/policy.md").read_text()
    for field in msgspec.structs.fields(decision):
        assert f"| `{field.name}" in explained or f"`{field.name}`" in explained, field.name


def test_the_columns_of_the_guide_are_obligations() -> None:
    msgspec.json.decode(checked("columns").text, type=dict[str, ColumnObligation])


def test_every_mask_and_limit_is_explained() -> None:
    assert table("reference/policy.md", "masks") == list(MASKS)
    assert table("reference/policy.md", "limits") == [field.name for field in msgspec.structs.fields(Limits)]


# audit events


def test_the_event_is_one() -> None:
    decoded = msgspec.json.decode(checked("event").text, type=event.Event)
    shown = msgspec.json.decode(checked("event").text)
    assert msgspec.json.decode(encode(decoded)) == shown


@pytest.mark.parametrize(
    "kind",
    [event.Event, event.Chain, event.Value, event.Relation, event.Verdict, event.Outcome, event.Message],
    ids=lambda kind: kind.__name__,
)
def test_every_field_of_an_event_is_explained(kind: type) -> None:
    explained = table("reference/audit-event.md", kind.__name__)
    names = [word for word in explained if word not in ("chain", "values", "relations", "verdict", "outcome")]
    fields = [field.name for field in msgspec.structs.fields(kind)]
    assert sorted(set(names) | (set(explained) & set(fields))) == sorted(fields)


# JSON and Python


@pytest.mark.parametrize("block", of("json"))
def test_json_is_valid(block: Block) -> None:
    msgspec.json.decode(block.text)
    assert block.check or block.page in NEEDS, "say what it is"


@pytest.mark.parametrize("block", of("python"))
def test_python_compiles(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grille"):
            module = __import__(node.module or "", fromlist=["_"])
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_the_commitment_of_the_guide() -> None:
    exec(checked("python-commitment").text, {})  # its own assertions


def test_the_encoding_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    key = tmp_path / "fpe.hex"
    key.write_text(bytes(range(32)).hex())
    key.chmod(0o600)
    document = {**tomllib.loads(checked("config").text), **tomllib.loads(checked("tokens").text)}
    decoded = config.decode(document, base=tmp_path, source="test")
    monkeypatch.setattr(config, "load", lambda path: decoded)  # its other files are not there
    exec(checked("python-tokens").text, {})
    (token,) = ast.literal_eval(capsys.readouterr().out)
    assert re.fullmatch(r"\d{3}-\d{2}-\d{4}", token)
    assert token != "900-15-2557"


# commands


_GRILLE = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?(?:python -m )?grille (?=[a-z])")
_INLINE = re.compile(r"(?<!`)`((?:\.venv/bin/python -m )?grille [^`]+)`")


def commands() -> Iterator[Any]:
    """Whole ones (indented lines), and those that a sentence names."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = {line for block in blocks(page) for line in block.text.splitlines()}
        lines = [line.strip() for line in text.splitlines() if line.startswith("    ") and line not in fenced]
        named = [code.replace("\n", " ") for code in _INLINE.findall(text)]
        for whole, found in ((True, lines), (False, named)):
            for line in found:
                if _GRILLE.match(line):
                    command = _GRILLE.sub("", line.partition("#")[0])
                    yield pytest.param(command, whole, id=f"{page.relative_to(ROOT)}: {line}")


@pytest.mark.parametrize(("command", "whole"), list(commands()))
def test_commands_exist(command: str, whole: bool) -> None:
    words = shlex.split(command)
    if whole:
        parser().parse_args(words)
    where = parser()
    while words:
        parts = [action for action in where._actions if isinstance(action, argparse._SubParsersAction)]
        if not parts or words[0].startswith("-"):
            break
        assert words[0] in parts[0].choices, command
        where = parts[0].choices[words.pop(0)]
    options = {option for action in where._actions for option in action.option_strings}
    assert {word for word in words if word.startswith("--")} <= options


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^    )make ([a-z]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test"} <= named <= targets
