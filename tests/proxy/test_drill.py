"""Drills between two real servers: what is the same agrees, and each thing that is not is found and named."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
import pytest

from grille.proxy import keys
from grille.proxy.authority import write_signing_key
from grille.proxy.cli import main
from grille.proxy.demo import bank
from grille.proxy.demo.cluster import Cluster
from grille.proxy.drill_region import BUCKETS, MOST_ROWS
from grille.tokenization.provider import TokenRequest
from tests.setting import Setting
from tests.vault.server import Vault
from tests.vault.setting import approle, set_up, transformation

ROWS = 600
VALUES = [
    (f"{number:03}-{number % 90 + 10}-{number:04}", f"49{number:014}", f"agent{number}@bank.example")
    for number in range(1, 8)
]


class Regions:
    """Two regions with the same keys and rows, to be changed."""

    def __init__(self, directory: Path, clusters: Sequence[Cluster], databases: Sequence[str]) -> None:
        self.directory = directory
        self.settings = []
        for name, cluster, database in zip("AB", clusters, databases, strict=True):
            (directory / name).mkdir()
            self.settings.append(Setting(directory / name, cluster, database))
        self.a, self.b = self.settings
        for key in ("fpe.hex", "siv.hex"):
            (directory / "B" / "keys" / key).write_bytes((directory / "A" / "keys" / key).read_bytes())
        self.configure()
        provider = keys.token_provider(self.a.config())
        rows = []
        for number in range(ROWS):
            asked = [TokenRequest(*each) for each in zip(("ssn", "card", "email"), VALUES[number % 7], strict=True)]
            rows.append((number, *asyncio.run(provider.encode(asked))))
        for setting in self.settings:
            setting.sql("ALTER TABLE customers ADD note text", f"GRANT SELECT ON customers TO {bank.ROLE}")
            with psycopg.connect(setting.cluster.dsn(setting.database), autocommit=True) as connection:
                with connection.cursor().copy("COPY customers (id, ssn, card_number, email) FROM STDIN") as copy:
                    for row in rows if setting is self.a else rows[::-1]:
                        copy.write_row(row)
                connection.execute("UPDATE customers SET ssn = NULL, email = '' WHERE id = 5")

    def configure(self, *changes: tuple[str, str]) -> None:
        """Write the configurations, that of B with these texts replaced."""
        self.a.config()
        self.b.config(*changes)

    def command(self, report: str, *more: str) -> list[str]:
        configured = [f"--region={name}={self.directory / name / 'grille.toml'}" for name in "AB"]
        return ["drill", "run", *configured, "--report", str(self.directory / report), *more]

    def run(self, report: str = "report", *more: str) -> tuple[int, list[str]]:
        """Exit status and lines of standard output, and of standard error if it could not be done."""
        return grille(*self.command(report, *more))

    def findings(self, report: str = "report", *more: str) -> list[tuple[str, str, str]]:
        """Kind, subject and text of what a drill finds, which has to be told on its last line."""
        status, lines = self.run(report, *more)
        told = json.loads((self.directory / report / "report.json").read_bytes())
        assert lines[-1] == told["line"]
        assert status == (1 if told["findings"] else 0)
        assert lines[-1].endswith(f"verdict={'disagree' if told['findings'] else 'agree'}")
        return [(each["kind"], each["subject"], each["what"]) for each in told["findings"]]


@pytest.fixture
def regions(pg18: Cluster, pg15: Cluster, fresh_database: Callable[[Cluster], str], tmp_path: Path) -> Regions:
    return Regions(tmp_path, (pg18, pg15), (fresh_database(pg18), fresh_database(pg15)))


def grille(*arguments: str) -> tuple[int, list[str]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    return status, (out.getvalue() + (err.getvalue() if status == 2 else "")).splitlines()


def test_regions_that_agree(regions: Regions) -> None:
    status, lines = regions.run()
    assert status == 0
    assert lines[-1] == f"drill tables=1 rows={ROWS} differences=0 verdict=agree"
    report = regions.directory / "report"
    assert not (report / "drill.key").exists()
    status, told = grille("audit", "verify", str(report))
    assert status == 0
    assert told[-1].startswith("verified events=3 ")
    status, told = grille("drill", "verify", str(report), "--public-key", str(report / "public-key.pem"))
    assert status == 0
    assert told[-1] == lines[-1]


def test_a_report_that_was_changed_is_not_what_was_signed(regions: Regions) -> None:
    regions.run()
    report = regions.directory / "report"
    for name in ("report.json", "report.html"):
        whole = (report / name).read_bytes()
        (report / name).write_bytes(whole.replace(b"agree", b"AGREE", 1))
        status, told = grille("drill", "verify", str(report))
        assert (status, told[-1]) == (1, f"tampered: {name} is not what was signed")
        (report / name).write_bytes(whole)
    (segment,) = (report / "worker-000").glob("*.seg")
    segment.write_bytes(segment.read_bytes().replace(b"verdict=agree", b"verdict=AGREE"))
    status, told = grille("drill", "verify", str(report))
    assert status == 1
    assert told[-1].startswith("tampered block=")


def test_rows_that_differ_are_counted_and_their_keys_stay_in_their_region(regions: Regions) -> None:
    regions.b.sql(
        "UPDATE customers SET ssn = (SELECT ssn FROM customers WHERE id = 1) WHERE id = 417",
        "UPDATE customers SET email = NULL WHERE id = 418", "UPDATE customers SET email = '' WHERE id = 419",
        "DELETE FROM customers WHERE id = 420", "INSERT INTO customers VALUES (100417, NULL, NULL, NULL)",
        "UPDATE customers SET note = 'not a token' WHERE id = 1",
    )  # fmt: skip
    ((kind, subject, what),) = regions.findings()
    assert (kind, subject) == ("rows", "bank/public.customers")
    assert what == "A and B: rows 3 with other tokens, 1 in A only, 1 in B only"
    report = regions.directory / "report"
    assert json.loads((report / "report.json").read_bytes())["line"] == (
        f"drill tables=1 rows={ROWS} differences=5 verdict=disagree"
    )
    shared = (report / "report.json").read_text() + (report / "report.html").read_text()
    findings = json.loads((report / "report.json").read_bytes())["findings"]
    told = re.sub(r"[0-9a-f]{32}", "", json.dumps(findings).replace(str(regions.directory), ""))
    assert not re.search(r"41[789]|420", told)
    for name, ids in (("A", {417, 418, 419, 420}), ("B", {417, 418, 419, 100417})):
        path = report / f"region-{name}" / "differing-rows.jsonl"
        assert path.stat().st_mode & 0o777 == 0o600
        told = [json.loads(line) for line in path.read_text().splitlines()]
        assert {int(each["key"]["id"]) for each in told} == ids
        assert all(each["row"] in shared for each in told)


def test_no_value_and_no_key_is_in_any_file(regions: Regions) -> None:
    regions.b.sql("UPDATE customers SET ssn = card_number WHERE id < 20")
    assert {kind for kind, _, _ in regions.findings("report", "--sample", str(ROWS))} == {"rows", "sample"}
    wanted = {value for each in VALUES for value in each}
    wanted |= {(regions.directory / "A" / "keys" / name).read_text().strip() for name in ("fpe.hex", "siv.hex")}
    with psycopg.connect(regions.a.cluster.dsn(regions.a.database)) as connection:
        rows = connection.execute("SELECT ssn, card_number, email FROM customers WHERE id <> 5").fetchall()
    tokens = {token for row in rows for token in row}
    files = [path for path in (regions.directory / "report").rglob("*") if path.is_file()]
    assert len(files) >= 8
    for path in files:
        data = path.read_bytes()
        assert not [each for each in wanted if each.encode() in data], path
        if "region-" not in str(path):
            assert not [each for each in tokens if each.encode() in data], path


def test_a_configuration_that_differs_is_named(regions: Regions) -> None:
    regions.configure(
        ('token_domain = "bank/ssn"', 'token_domain = "other"'), (r'"(\\d{16})"', r'"(\\d{14,16})"'),
        ('name = "siv"\nversion = 1', 'name = "siv"\nversion = 2'),
    )  # fmt: skip
    found = regions.findings()
    told = {subject: what for kind, subject, what in found if kind == "configuration"}
    assert told.keys() == {"card", "email", "ssn"}
    assert "template '(" in told["card"]
    assert told["email"] == "A and B: key version '1' and '2'"
    assert told["ssn"].startswith("A and B: token domain 'bank/ssn' and 'other'; tweak '")
    # Sampled tokens of FF1 show nothing of it, for it decodes anything; those of SIV do.
    assert [each[:2] for each in found if each[0] != "configuration"] == [("sample", "bank/public.customers.email")]


def test_another_key_is_named_though_all_else_is_the_same(regions: Regions) -> None:
    (regions.directory / "B" / "keys" / "fpe.hex").write_text("00" * 32)
    (regions.directory / "B" / "keys" / "siv.hex").write_text("01" * 64)
    found = regions.findings()
    assert [each[:2] for each in found if each[0] == "key"] == [("key", "card"), ("key", "email"), ("key", "ssn")]
    assert [each[:2] for each in found if each[0] == "sample"] == [("sample", "bank/public.customers.email")]


def test_a_table_and_a_column_that_are_not_there(regions: Regions) -> None:
    regions.b.sql("DROP VIEW customer_export", "ALTER TABLE customers DROP email")
    found = {each[:2] for each in regions.findings()}
    assert {("columns", "bank/public.customers.email"), ("columns", "bank/public.customers"),
            ("missing-table", "public.customer_export")} == found  # fmt: skip
    regions.b.sql("DROP TABLE customers")
    found = {each[:2] for each in regions.findings("again")}
    assert ("missing-table", "bank/public.customers") in found
    assert ("missing-table", "public.customers") in found


def test_so_many_rows_that_they_are_not_told_one_by_one(regions: Regions) -> None:
    regions.b.sql("UPDATE customers SET id = id + 1000000")
    ((kind, _, what),) = regions.findings()
    assert kind == "rows"
    assert re.fullmatch(rf"A and B: \d+ rows differ or more, in \d+ of {BUCKETS} parts", what)
    assert MOST_ROWS > ROWS


def test_a_table_without_a_primary_key(regions: Regions) -> None:
    for setting in regions.settings:
        setting.sql("ALTER TABLE customers DROP CONSTRAINT customers_pkey")
    assert regions.findings() == []
    regions.b.sql("INSERT INTO customers SELECT * FROM customers WHERE id = 7")
    ((_, _, what),) = regions.findings("again")
    assert what == "A and B: rows 1 in B only"


def test_a_partitioned_table(regions: Regions) -> None:
    for setting in regions.settings:
        setting.sql(
            "DROP VIEW customer_export", "ALTER TABLE customers RENAME TO old",
            "CREATE TABLE customers (LIKE old INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
            "CREATE TABLE one PARTITION OF customers FOR VALUES FROM (0) TO (300)",
            "CREATE TABLE two PARTITION OF customers DEFAULT", "INSERT INTO customers SELECT * FROM old",
            f"GRANT SELECT ON customers TO {bank.ROLE}", "CREATE VIEW customer_export AS SELECT * FROM customers",
        )  # fmt: skip
    assert regions.findings() == []
    regions.b.sql("UPDATE customers SET ssn = NULL WHERE id = 301")
    ((_, _, what),) = regions.findings("again")
    assert what == "A and B: rows 1 with other tokens"


def test_killed_and_taken_up(regions: Regions) -> None:
    script = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    dies = f"{sys.executable} -c '{script}'"
    report = regions.directory / "report"
    first = [each for each in regions.command("report") if "--region=B" not in each]
    begin = [sys.executable, "-m", "grille"]
    killed = subprocess.run([*begin, *first, "--remote", f"B={dies}"], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    key = (report / "drill.key").read_text()
    status, lines = regions.run()
    assert status == 2
    assert lines == [f"grille: {report} is not empty; --resume takes up its drill"]
    status, lines = regions.run("report", "--resume")
    assert (status, lines[-1]) == (0, f"drill tables=1 rows={ROWS} differences=0 verdict=agree")
    assert len(key) == 64
    assert not (report / "drill.key").exists()
    assert regions.run("report", "--resume")[0] == 2


def test_a_region_takes_up_a_table_where_it_left_it(regions: Regions) -> None:
    """A note of what was counted is believed only under the same drill's key."""
    state = regions.directory / "state"
    config = regions.directory / "A" / "grille.toml"
    command = [sys.executable, "-m", "grille", "drill", "region", "--config", str(config), "--state", str(state)]

    def asked(key: str) -> dict[str, object]:
        asks = [{"what": "describe", "key": key}, {"what": "sums", "table": "bank/public.customers"}]
        told = subprocess.run(
            command, input="".join(json.dumps(each) + "\n" for each in asks), capture_output=True, text=True, check=True
        ).stdout.splitlines()
        answer: dict[str, object] = json.loads(told[-1])
        return answer

    whole = asked("00" * 32)
    assert (whole["rows"], whole["taken_up"]) == (ROWS, False)
    (note,) = state.glob("*.json")
    kept = json.loads(note.read_bytes())
    note.write_text(json.dumps(kept | {"rows": 1000, "done": False, "next": 10**6}))
    assert asked("00" * 32)["rows"] == 1000
    assert asked("00" * 32)["taken_up"] is True
    text = config.read_text()
    config.write_text(
        text.replace('[[columns]]\nname = "public.customers.email"', '[[columns]]\nname = "public.other.email"')
    )
    assert asked("00" * 32)["rows"] == ROWS  # another set of columns
    config.write_text(text)
    assert asked("")["problem"] == "the drill's key has not 32 bytes"
    other = asked("11" * 32)
    assert other["rows"] == ROWS
    assert other["buckets"] != whole["buckets"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--remote", "B=false"], "the region B is named twice"),
        (["--table", "public.nothing"], "no region has a table public.nothing with tokens"),
        (["--remote", "C=no-such-program x"], "region C: no-such-program cannot be run (No such file or directory)"),
        (["--remote", "C=true"], "region C has ended; what it says is above"),
        (["--remote", "C=echo hello"], "region C answers what is not understood"),
        (["--signing-key", "/nowhere"], "cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(regions: Regions, more: list[str], told: str) -> None:
    status, lines = regions.run("report", *more)
    assert status == 2
    assert told in lines[-1] or told in lines[0], lines


def test_a_database_that_is_not_there_or_may_not_be_read(regions: Regions) -> None:
    regions.b.sql(f"REVOKE SELECT ON customers FROM {bank.ROLE}")
    status, lines = regions.run()
    assert (status, lines[-1]) == (
        2, "grille: region B: bank/public.customers cannot be read (InsufficientPrivilegeError)"
    )  # fmt: skip
    regions.configure((f"port = {regions.b.cluster.port}", "port = 1"))
    status, lines = regions.run("again")
    assert status == 2
    assert lines[-1].startswith("grille: region B: the database cannot be read (")


def test_one_region_is_no_drill(regions: Regions, tmp_path: Path) -> None:
    write_signing_key(tmp_path / "key.pem")
    command = [
        each for each in regions.command("report", "--signing-key", str(tmp_path / "key.pem")) if "=B=" not in each
    ]
    assert grille(*command) == (2, ["grille: a drill takes two regions or more"])
    assert not os.path.lexists(regions.directory / "report")


def test_keys_that_a_vault_holds_are_told_apart_by_canaries(regions: Regions) -> None:
    made = [
        transformation(each.name, (each.template, each.alphabet))
        for each in regions.a.config().transformations if each.kind == "fpe"
    ]  # fmt: skip
    with Vault() as one, Vault() as other:
        changes = []
        for name, vault in (("one", one), ("other", other)):
            (regions.directory / name).mkdir()
            set_up(vault, made)
            settings = approle(vault, regions.directory / name)
            section = (
                f'[vault]\naddress = "{vault.url}"\ntimeout = 1.0\n'
                f'role_id_file = "{settings.role_id_file}"\nsecret_id_file = "{settings.secret_id_file}"\n'
            )
            changes.append((('key = "fpe"', 'provider = "vault"'), ("[audit]", f"{section}[audit]")))
        regions.a.config(*changes[0])
        regions.b.config(*changes[0])
        assert regions.findings() == []
        regions.b.config(*changes[1])
        assert [each[:2] for each in regions.findings("again")] == [("canary", "card"), ("canary", "ssn")]
        other.faults.sealed = True
        status, lines = regions.run("sealed")
        assert status == 2
        assert lines[-1].startswith("grille: region B: Vault")
