"""``grille check``: each item is tried for real, and each failure says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from grille.proxy.authority import Authority
from grille.proxy.demo import bank
from grille.proxy.demo.cluster import Cluster, debian_binaries
from tests.redis_server import Store, program
from tests.setting import Setting
from tests.vault.server import Vault
from tests.vault.setting import approle, set_up, transformation


@pytest.fixture
def setting(pg18: Cluster, fresh_database: Callable[[Cluster], str], tmp_path: Path) -> Setting:
    return Setting(tmp_path, pg18, fresh_database(pg18))


def failures(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("FAIL")]


async def test_everything_in_order(setting: Setting) -> None:
    status, lines = await setting.check()
    assert status == 0
    assert failures(lines) == []
    assert lines[-1] == "all in order"
    for beginning in (
        "OK   configuration: 2 identities",
        "OK   token keys",
        "OK   audit signing key",
        "OK   trust domain bank.example: 1 CA certificate",
        f"OK   audit directory {setting.files.audit}: will be made",
        "OK   policy bundle ",
        "OK   database bank: PostgreSQL 18",
        "OK   database bank catalogue: ",
        "OK   column public.customers.ssn: text, stored tokenized by ssn",
        "OK   column public.customers.card_number: varchar",
    ):
        assert any(line.startswith(beginning) for line in lines), (beginning, lines)
    assert setting.password not in "\n".join(lines)
    assert not setting.files.audit.exists()


async def test_a_vault_is_asked_as_statements_ask_it(setting: Setting, tmp_path: Path) -> None:
    made = [transformation(name, form) for name, form in bank_forms(setting)]
    with Vault() as vault:
        set_up(vault, made)
        settings = approle(vault, tmp_path)
        section = (
            f'[vault]\naddress = "{vault.url}"\ntimeout = 1.0\n'
            f'role_id_file = "{settings.role_id_file}"\nsecret_id_file = "{settings.secret_id_file}"\n'
        )
        changes = (('key = "fpe"', 'provider = "vault"'), ("[audit]", f"{section}[audit]"))
        status, lines = await setting.check(*changes)
        warned = [line for line in lines if line.startswith("WARN vault")]
        assert status == 0, lines
        assert len(warned) == len(made)
        token = warned[0].rpartition('check = "')[2].rstrip('"')
        checked = ('name = "ssn"\n', f'name = "ssn"\ncheck = "{token}"\n')
        status, lines = await setting.check(*changes, checked)
        assert any(line.startswith("OK   vault transformation ssn") for line in lines), lines
        vault.rekey("ssn")
        status, lines = await setting.check(*changes, checked)
        (failed,) = failures(lines)
        assert "key" in failed
        vault.faults.sealed = True
        status, lines = await setting.check(*changes, checked)
        assert status == 1
        assert len(failures(lines)) == len(made)


def bank_forms(setting: Setting) -> list[tuple[str, tuple[str, str]]]:
    """Name, template and alphabet of the demo's FF1 transformations."""
    return [
        (each.name, (each.template, each.alphabet)) for each in setting.config().transformations if each.kind == "fpe"
    ]


async def test_columns_that_are_missing_or_cannot_hold_a_token(setting: Setting) -> None:
    setting.sql("DROP VIEW customer_export", "ALTER TABLE customers ALTER ssn TYPE int USING NULL")
    status, lines = await setting.check()
    assert status == 1
    assert failures(lines) == [
        "FAIL column public.customers.ssn: is int4 in "
        f"{setting.database}, which cannot hold a token. Store it as text or varchar, or remove its transformation.",
        *(
            f"FAIL column public.customer_export.{name}: does not exist. "
            "Correct columns.name (schema.relation.column), or create the column."
            for name in ("ssn", "card_number", "email")
        ),
    ]
    assert lines[-1] == "4 failed"


async def test_a_function_that_is_missing(setting: Setting) -> None:
    _, lines = await setting.check(("role = ", 'functions = ["public.score(int)"]\nrole = '))
    assert failures(lines) == [
        "FAIL function public.score(int): is not in bank. Correct databases.functions, or create it."
    ]


async def test_a_mighty_role_is_a_warning(setting: Setting) -> None:
    setting.sql(f"ALTER ROLE {bank.ROLE} SUPERUSER BYPASSRLS")
    try:
        status, lines = await setting.check()
    finally:
        setting.sql(f"ALTER ROLE {bank.ROLE} NOSUPERUSER NOBYPASSRLS")
    assert status == 0
    assert any(line.startswith("WARN") and "superuser and BYPASSRLS" in line for line in lines)


async def test_a_token_key_of_the_wrong_length_and_one_that_is_not_hexadecimal(setting: Setting) -> None:
    key = setting.files.password.parent / "fpe.hex"
    for content, says in (("00", "bytes"), ("zz", "is not hexadecimal")):
        key.write_text(content)
        (failed,) = failures((await setting.check())[1])
        assert failed.startswith("FAIL token keys: ")
        assert says in failed


async def test_a_token_key_of_the_environment(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    file = setting.files.password.parent / "fpe.hex"
    digits = file.read_text()
    change = (f'file = "{file}"', 'environment = "GRILLE_TEST_KEY"')
    monkeypatch.setenv("GRILLE_TEST_KEY", digits)
    file.unlink()
    status, lines = await setting.check(change)
    assert (status, failures(lines)) == (0, [])
    for content, says in (("00", "bytes"), ("zz", "is not hexadecimal")):
        monkeypatch.setenv("GRILLE_TEST_KEY", content)
        (failed,) = failures((await setting.check(change))[1])
        assert failed.startswith("FAIL token keys: ")
        assert says in failed
    assert digits not in "\n".join(lines)


async def test_a_signing_key_of_another_kind(setting: Setting) -> None:
    setting.files.signing_key.write_bytes(setting.files.server.with_suffix(".key").read_bytes())
    (failed,) = failures((await setting.check())[1])
    assert failed.startswith(
        "FAIL audit signing key: audit.signing_key is not an Ed25519 key. Make one: openssl genpkey"
    )


async def test_a_key_of_another_certificate(setting: Setting) -> None:
    other = next(iter(setting.files.agents.values())).with_suffix(".key")
    setting.files.server.with_suffix(".key").write_bytes(other.read_bytes())
    (failed,) = failures((await setting.check())[1])
    assert failed.startswith("FAIL certificates: ")
    assert "is not the key of" in failed


async def test_a_bundle_that_is_none(setting: Setting) -> None:
    bundle = setting.directory / "bundle.tar.gz"
    bundle.write_bytes(b"x")
    await setting.check()
    shipped = next(line for line in setting.files.config.read_text().splitlines() if "demo.tar.gz" in line)
    (failed,) = failures((await setting.check((shipped, f"bundle = {json.dumps(str(bundle))}")))[1])
    assert failed.startswith(f"FAIL policy bundle {bundle}: ")
    assert "opa build -t wasm" in failed


async def test_a_policy_server_and_a_bundle_server_that_are_not_there(setting: Setting) -> None:
    await setting.check()
    shipped = next(line for line in setting.files.config.read_text().splitlines() if "demo.tar.gz" in line)
    url = "http://127.0.0.1:1/v1/data/grille/decision"
    (failed,) = failures((await setting.check((shipped, f'server_url = "{url}"')))[1])
    assert failed.startswith(
        f"FAIL policy server {url}: {url}: the policy server cannot be asked: ClientConnectorError"
    )
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    public = setting.directory / "policy.pub.pem"
    public.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    settings = (
        f'bundle = "kept.tar.gz"\nbundle_url = "http://127.0.0.1:1/b"\nverification_key = {json.dumps(str(public))}'
    )
    (failed,) = failures((await setting.check((shipped, settings + '\nverification_algorithm = "ES256"')))[1])
    assert failed.startswith("FAIL bundle server http://127.0.0.1:1/b: http://127.0.0.1:1/b: ClientConnectorError")
    (failed,) = failures((await setting.check((shipped, settings)))[1])
    assert "its key is not one for RS256" in failed
    (failed,) = failures(
        (await setting.check((shipped, f"{shipped}\nverification_key = {json.dumps(str(public))}")))[1]
    )
    assert "policy.verification_key" in failed


async def test_an_entrypoint_that_is_missing(setting: Setting) -> None:
    (failed,) = failures((await setting.check(("[policy]", '[policy]\nentrypoint = "other/rule"')))[1])
    assert 'no entrypoint "other/rule"' in failed


async def test_an_audit_directory_that_cannot_be_made(setting: Setting) -> None:
    (setting.directory / "file").write_text("x")
    place = setting.directory / "file" / "audit"
    (failed,) = failures((await setting.check((f'"{setting.files.audit}"', f'"{place}"')))[1])
    assert failed.startswith(f"FAIL audit directory {place}: cannot be written (Not a directory). ")


async def test_a_database_that_does_not_exist(setting: Setting) -> None:
    database = setting.database
    status, lines = await setting.check((f'database = "{database}"', 'database = "absent"'))
    assert status == 1
    (failed,) = failures(lines)
    assert failed.startswith("FAIL database bank: ")
    assert "3D000" in failed
    assert failed.endswith("Create database absent, or correct databases.database.")


async def test_no_server(setting: Setting) -> None:
    (failed,) = failures((await setting.check((f'"{setting.cluster.host}"', '"/nowhere"')))[1])
    assert failed.endswith("Start PostgreSQL, or correct host and port.")


def test_the_command_prints_and_exits(setting: Setting) -> None:
    setting.config((f'database = "{setting.database}"', 'database = "bank"'))
    done = subprocess.run(
        [sys.executable, "-m", "grille", "check", "--config", str(setting.files.config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1  # there is no database "bank"
    assert done.stdout.splitlines()[-1] == "1 failed"
    assert done.stderr == ""


# over TLS


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    binaries = debian_binaries(15)
    if binaries is None:
        pytest.skip("Debian's postgresql-15 is not installed")
    directory = tmp_path_factory.mktemp("remote")
    authority = Authority("bank.example")
    authority.write_bundle(directory / "ca.pem")
    Authority("bank.example").write_bundle(directory / "other.pem")
    server = authority.issue_server().write(directory, "server")
    with Cluster(
        binaries,
        tls=(server, server.with_suffix(".key"), directory / "ca.pem"),
        hba=[f"hostssl all {bank.ROLE} all scram-sha-256", "host all all all reject"],
    ) as cluster:
        yield cluster, directory


@pytest.fixture
def over_tls(remote: tuple[Cluster, Path], fresh_database: Callable[[Cluster], str], tmp_path: Path) -> Setting:
    return Setting(tmp_path, remote[0], fresh_database(remote[0]))


def secured(setting: Setting, remote: tuple[Cluster, Path], ca: str = "ca.pem") -> tuple[tuple[str, str], ...]:
    return (
        (f'host = "{setting.cluster.host}"', 'host = "localhost"'),
        ('tls = "off"', f'tls = "verify-full"\nca = "{remote[1] / ca}"'),
    )


async def test_tls_and_scram(over_tls: Setting, remote: tuple[Cluster, Path]) -> None:
    status, lines = await over_tls.check(*secured(over_tls, remote))
    assert (status, failures(lines)) == (0, [])
    assert any(line.startswith("OK   database bank catalogue: ") and ", over TLSv1.3 TLS_" in line for line in lines)
    assert any("at localhost:" in line and line.endswith("role grille_app, TLS verify-full") for line in lines)


CASES: list[tuple[str, Any, str]] = [
    ("wrong password", None, "Correct password_file, or set the role's password anew."),
    ("wrong CA", "other.pem", "Let ca be the CA of the server's certificate, and host a name that is in it."),
]


@pytest.mark.parametrize(("name", "ca", "fix"), CASES, ids=[case[0] for case in CASES])
async def test_what_goes_wrong_on_the_way(
    over_tls: Setting, remote: tuple[Cluster, Path], name: str, ca: str | None, fix: str
) -> None:
    if ca is None:
        over_tls.files.password.write_text("wrong\n")
    (failed,) = failures((await over_tls.check(*secured(over_tls, remote, ca or "ca.pem")))[1])
    assert failed.startswith("FAIL database bank: ")
    assert failed.endswith(fix), failed
    assert over_tls.password not in failed


async def test_a_role_that_may_not_connect(over_tls: Setting, remote: tuple[Cluster, Path]) -> None:
    changes = (*secured(over_tls, remote), (f'role = "{bank.ROLE}"', 'role = "stranger"'))
    (failed,) = failures((await over_tls.check(*changes))[1])
    assert failed.endswith("Let pg_hba.conf accept role stranger from here, by scram-sha-256 or cert.")


async def test_definitions_are_compared_and_told(setting: Setting) -> None:
    setting.sql("CREATE FUNCTION rate(int) RETURNS int LANGUAGE sql AS 'SELECT $1'")
    listed = 'functions = ["public.rate(integer)"]\n'
    _, lines = await setting.check(("role = ", listed + "role = "))
    (told,) = [line for line in lines if line.startswith("OK   function public.rate(integer): definition ")]
    digest = told.rpartition(" ")[2]
    for written, wanted in (
        (digest, "OK   definition public.rate(integer): as approved"),
        ("0" * 64, f"FAIL definition public.rate(integer): is {digest}, which is not the approved one"),
    ):
        approved = f'definitions = {{ "public.rate(integer)" = "{written}", "public.no_view" = "00" }}\n'
        status, lines = await setting.check(("role = ", listed + approved + "role = "))
        assert any(line.startswith(wanted) for line in lines), lines
        assert any(line.startswith("FAIL definition public.no_view: is not in ") for line in lines)
        assert status == 1


async def test_passthrough_is_a_loud_warning(setting: Setting) -> None:
    status, lines = await setting.check(("role = ", "passthrough = true\nrole = "))
    assert status == 0
    (warning,) = [line for line in lines if line.startswith("WARN")]
    assert warning.startswith("WARN database bank passthrough: THE POLICY MAY OPEN IT UNFILTERED")


async def test_the_quota_store(setting: Setting) -> None:
    found = program()
    if found is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    store = Store(found, setting.directory, password="open-sesame")
    key, password = setting.directory / "store-key", setting.directory / "store-password"
    for path, text in ((key, "ab" * 32), (password, "open-sesame\n")):
        path.write_text(text)
        path.chmod(0o600)
    section = f'[quotas]\nstore = "{store.url}"\nstore_timeout = 2.0\nstore_key_file = "{key}"\n'
    secret = f'store_password_file = "{password}"\n'
    item = f"quota store {store.url}"
    store.start()
    try:
        status, lines = await setting.check(("[policy]", section + secret + "[policy]"))
        assert status == 0 and any(line.startswith(f"OK   {item}: version ") for line in lines)
        _, lines = await setting.check(("[policy]", section + "[policy]"))
        assert failures(lines)[0].startswith(f"FAIL {item}: Authentication required")
        key.write_text("ab")
        _, lines = await setting.check(("[policy]", section + secret + "[policy]"))
        assert "quotas.store_key_file has 1 bytes instead of 32" in failures(lines)[0]
        key.write_text("ab" * 32)
    finally:
        store.stop()
    _, lines = await setting.check(("[policy]", section + secret + "[policy]"))
    assert failures(lines)[0].startswith(f"FAIL {item}: ") and "may run scripts" in failures(lines)[0]
    assert "sesame" not in "".join(lines)
