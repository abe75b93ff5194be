"""The configuration: what is accepted, and what every error says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from grille.proxy import config_reference
from grille.proxy.config import Config, ConfigError, decode, encode, load

GOOD = """
[listener]
certificate = "server.pem"
key = "server.key"

[[trust_domains]]
name = "bank.example"
bundle = "ca.pem"

[[identities]]
spiffe_id = "spiffe://bank.example/ns/fraud/sa/scorer"
database = "bank"
scopes = ["accounts:read"]
attributes = { branch = "0042" }

[[identities]]
spiffe_id = "spiffe://bank.example/ns/support/*"
database = "bank"

[[databases]]
name = "bank"
host = "127.0.0.1"
database = "bank"
role = "grille"
tls = "off"

[policy]
bundle = "bundle.tar.gz"

[audit]
directory = "audit"
signing_key = "audit.key"

[[keys]]
name = "pii"
file = "pii.hex"

[[transformations]]
name = "ssn"
kind = "fpe"
template = '(\\d{3})-(\\d{2})-(\\d{4})'
token_domain = "ssn"
key = "pii"

[[columns]]
name = "public.customers.ssn"
transformation = "ssn"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a configuration beside every file that the good one names."""
    for name in ("server.pem", "server.key", "ca.pem", "bundle.tar.gz", "audit.key", "pii.hex"):
        file = tmp_path / name
        file.write_text("x")
        file.chmod(0o600)

    def write(text: str) -> Path:
        path = tmp_path / "grille.toml"
        path.write_text(text)
        return path

    return write


def test_good_file_is_loaded_with_paths_relative_to_it(write: Callable[[str], Path]) -> None:
    path = write(GOOD)
    config = load(path)
    assert config.listener.certificate == path.parent / "server.pem"
    assert config.listener.port == 6432
    assert config.identities[0].attributes == {"branch": "0042"}
    assert config.admin.host == "127.0.0.1"
    assert config.databases[0].catalog_poll == 5.0


def test_absolute_paths_stay(write: Callable[[str], Path], tmp_path: Path) -> None:
    other = tmp_path / "elsewhere.pem"
    other.write_text("x")
    assert load(write(GOOD.replace('"ca.pem"', f'"{other}"'))).trust_domains[0].bundle == other


def test_a_worker_reads_back_what_the_node_loaded(write: Callable[[str], Path]) -> None:
    config = load(write(GOOD))
    again = decode(msgspec.json.decode(encode(config)), base=Path("/nowhere"), source="test")
    assert again == config
    assert again.fingerprint == config.fingerprint


def test_fingerprint_covers_columns_and_transformations(write: Callable[[str], Path]) -> None:
    first = load(write(GOOD)).fingerprint
    assert len(first) == 64
    for old, new in [('name = "public.customers.ssn"', 'name = "public.customers.tax_id"'),
                     ('token_domain = "ssn"', 'token_domain = "other"'),
                     ('branch = "0042"', 'branch = "0043"')]:  # fmt: skip
        assert load(write(GOOD.replace(old, new))).fingerprint != first
    assert load(write(GOOD)).fingerprint == first


BAD = [
    # what is changed in the good file, the key that the error names, the value, a part of the fix
    ('host = "127.0.0.1"\n', 'host = "127.0.0.1"\nport = "5432"\n', "databases[0].port", '"5432"', "whole number"),
    ('host = "127.0.0.1"\n', 'host = "127.0.0.1"\nport = 70000\n', "databases[0].port", "70000", "<= 65535"),
    ('role = "grille"\n', "", "databases[0].role", "is missing", "Add it: The login role"),
    (
        'role = "grille"\n',
        'role = "grille"\npasword_file = "p"\n',
        "databases[0].pasword_file",
        '"p"',
        "Did you mean password_file?",
    ),
    ('tls = "off"', 'tls = "verify-ca"', "databases[0].tls", '"verify-ca"', "Use one of: verify-full, off."),
    ('host = "127.0.0.1"', 'host = "db.example"', "databases[0].tls", '"off"', 'tls = "verify-full"'),
    (
        'host = "127.0.0.1"\ndatabase = "bank"\nrole = "grille"\ntls = "off"',
        'host = "/run/postgresql"\ndatabase = "bank"\nrole = "grille"',
        "databases[0].tls",
        '"verify-full"',
        'Set tls = "off"',
    ),
    ('role = "grille"\n', 'role = ""\n', "databases[0].role", '""', "Give it a value"),
    (
        'role = "grille"\n',
        'role = "grille"\nclient_certificate = "server.pem"\n',
        "databases[0].client_key",
        "is missing",
        "go together",
    ),
    (
        'role = "grille"\n',
        'role = "grille"\nfunctions = ["lower"]\n',
        "databases[0].functions[0]",
        '"lower"',
        "schema.name(type,type)",
    ),
    ('role = "grille"\n', 'role = "grille"\npool_size = 0\n', "databases[0].pool_size", "0", ">= 1"),
    ('name = "bank"\nhost', 'name = "bnk"\nhost', "identities[0].database", '"bank"', 'Did you mean "bnk"?'),
    ('name = "bank.example"', 'name = "Bank.Example"', "trust_domains[0].name", '"Bank.Example"', "lower-case"),
    (
        'name = "bank.example"',
        'name = "other.example"',
        "identities[0].spiffe_id",
        "spiffe://bank.example",
        "[[trust_domains]]",
    ),
    ("/ns/support/*", "/ns/../x", "identities[1].spiffe_id", "/ns/../x", "spiffe://TRUST-DOMAIN/PATH"),
    ("/ns/support/*", "/ns/sup%70ort", "identities[1].spiffe_id", "%70", "spiffe://TRUST-DOMAIN/PATH"),
    (
        "/ns/support/*",
        "/ns/fraud/sa/scorer",
        "identities[1].spiffe_id",
        "scorer",
        "is already the spiffe_id of identities[0]",
    ),
    (
        'attributes = { branch = "0042" }',
        "attributes = { branch = 4.2 }",
        "identities[0].attributes.branch",
        "4.2",
        "Write text",
    ),
    (
        'scopes = ["accounts:read"]',
        'scopes = "accounts:read"',
        "identities[0].scopes",
        '"accounts:read"',
        "square brackets",
    ),
    ('scopes = ["accounts:read"]', "scopes = [7]", "identities[0].scopes[0]", "7", "quotes"),
    ('kind = "fpe"', 'kind = "fpe"\nfpe_algorithm = "ff3"', "transformations[0].fpe_algorithm", '"ff3"', "ff1, ff3-1"),
    ('kind = "fpe"', 'kind = "fpe"\nfpe_algorithm = "ff3-1"', "transformations[0].tweak", "7 bytes", "base64"),
    (
        'kind = "fpe"',
        'kind = "fpe"\nfpe_algorithm = "ff3-1"\ntweak = "AAAAAAAAAAA="',
        "transformations[0].tweak",
        "AAAAAAAAAAA=",
        "base64",
    ),
    ('kind = "fpe"', 'kind = "fpe"\nfpe_algorithm = "ff3-1"\ntweak = "!"', "transformations[0].tweak", "!", "base64"),
    ('kind = "fpe"', 'kind = "fpe"\ntweak = "AAAAAAAAAA=="', "transformations[0].tweak", "for ff3-1 only", "Remove it"),
    (
        'kind = "fpe"',
        'kind = "siv"\nfpe_algorithm = "ff3-1"\ntweak = "AAAAAAAAAA=="',
        "transformations[0].fpe_algorithm",
        "of fpe",
        "fpe",
    ),
    ('file = "pii.hex"', "", "keys[0].file", "is missing", "environment variable"),
    ('file = "pii.hex"', 'file = "pii.hex"\nenvironment = "HOME"', "keys[0].file", "given twice", "environment"),
    ('file = "pii.hex"', 'pkcs11 = "pii"', "pkcs11.module", "is missing, and a key names pkcs11", "[pkcs11]"),
    ('file = "pii.hex"', 'pkcs11 = "pii"', "pkcs11.token", "is missing", "[pkcs11]"),
    ('file = "pii.hex"', 'pkcs11 = "pii"', "pkcs11.pin_file", "is missing", "[pkcs11]"),
    ('file = "pii.hex"', 'pkcs11 = "pii"\nenvironment = "HOME"', "keys[0].environment", "by pkcs11", "Decide"),
    ('file = "pii.hex"', 'pkcs11 = "pii"\n[pkcs11]\nmodule = "x.so"', "pkcs11.module", "does not exist", "Create it"),
    ('file = "pii.hex"', 'environment = "GRILLE_NO_KEY"', "keys[0].environment", "GRILLE_NO_KEY", "Set it"),
    ('key = "pii"', 'key = "pi"', "transformations[0].key", '"pi"', 'Did you mean "pii"?'),
    ("(\\d{3})", "(\\d{3}", "transformations[0].template", "is not a regular expression", "single quotes"),
    ('transformation = "ssn"', 'transformation = "card"', "columns[0].transformation", '"card"', "[[transformations]]"),
    ("public.customers.ssn", "customers.ssn", "columns[0].name", '"customers.ssn"', "schema.relation.column"),
    (
        "[[columns]]",
        '[[columns]]\nname = "public.customers.ssn"\n[[columns]]',
        "columns[1].name",
        "public.customers.ssn",
        "already",
    ),
    ('"bundle.tar.gz"', '"nothing.tar.gz"', "policy.bundle", "nothing.tar.gz", "does not exist"),
    ('"bundle.tar.gz"', "7", "policy.bundle", "7", "file name in quotes"),
    ('"audit"', '"audit.key"', "audit.directory", "audit.key", "Name a directory"),
    ("[policy]\n", "[policy]\ntimeout = 0\n", "policy.timeout", "0", "> 0"),
    ('bundle = "bundle.tar.gz"', "", "policy.bundle", "is missing", "server_url"),
    ("[policy]\n", '[policy]\nserver_url = "http://127.0.0.1:8181/v1/data/x"\n', "policy.bundle", "combined", "one of"),
    *(
        ('bundle = "bundle.tar.gz"', f'server_url = "{url}"', "policy.server_url", what, fix)
        for url, what, fix in (
            ("http://opa.example/v1/data/x", "no TLS", "Use https"),
            ("http://127.0.0.1.example/v1/data/x", "no TLS", "Use https"),
            ("http://user:password@127.0.0.1/v1/data/x", "is not an http", "without user"),
            ("https://opa.example/v1/data/x?pretty", "is not an http", "Give it like"),
            ("ftp://127.0.0.1/x", "is not an http", "Give it like"),
        )
    ),
    (
        "[policy]\n",
        '[policy]\nbundle_url = "https://b.example/x"\n',
        "policy.verification_key",
        "missing",
        "signing-key",
    ),
    ("[policy]\n", '[policy]\nbundle_url = "file:///b"\n', "policy.bundle_url", "file:///b", "Give it like https"),
    ("[policy]\n", '[policy]\nverification_algorithm = "HS256"\n', "policy.verification_algorithm", "HS256", "RS256"),
    ("[policy]\n", '[policy]\nverification_key = "absent.pem"\n', "policy.verification_key", "absent.pem", "Create"),
    *(
        ("[policy]\n", f"[quotas]\n{lines}\n[policy]\n", f"quotas.{key}", what, fix)
        for lines, key, what, fix in (
            ('store = "rediss://q.example"', "store_key_file", "is missing", "openssl rand -hex 32"),
            ('store = "rediss://q.example"\nstore_key_file = "absent"', "store_key_file", "absent", "Create"),
            ('store = "rediss://q.example"\nstore_ca = "absent.pem"', "store_ca", "absent.pem", "Create"),
            ('store = "rediss://q.example"\nstore_password_file = "no"', "store_password_file", "no", "Create"),
            ('store_key_file = "audit.key"', "store_key_file", "without a store", "Give quotas.store"),
            ('store = "redis://q.example:6379/0"', "store", "no TLS", "Use rediss"),
            ('store = "redis://127.0.0.1.example/0"', "store", "no TLS", "Use rediss"),
            ('store = "rediss://user:secret@q.example"', "store", "is not the address", "without a password"),
            ('store = "http://q.example"', "store", "is not the address", "Give it like"),
            ('store = "unix://relative"', "store", "is not the address", "Give it like"),
            ('without_store = "allow"', "without_store", "allow", "deny"),
        )
    ),
    *(
        ('key = "pii"', f'provider = "vault"\n{more}\n[vault]\n{lines}', key, what, fix)
        for more, lines, key, what, fix in (
            ("", "", "vault.address", "is missing", "https://vault.example:8200"),
            ("", 'address = "http://vault.example:8200"', "vault.address", "no TLS", "Use https"),
            ("", 'address = "https://u:p@vault.example"', "vault.address", "is not an http", "without a path"),
            ("", 'address = "https://vault.example/v1"', "vault.address", "is not an http", "without a path"),
            ("", 'address = "https://v"', "vault.role_id_file", "is missing", "Name the file"),
            ("", 'address = "https://v"\nsecret_id_file = "no"', "vault.secret_id_file", "no", "Create"),
            (
                "",
                'address = "https://v"\nauth = "jwt"\njwt_file = "pii.hex"',
                "vault.auth_role",
                "jwt",
                "Name its role",
            ),
            ("", 'address = "https://v"\nauth = "kubernetes"', "vault.jwt_file", "is missing", "Name the file"),
            ("", 'address = "https://v"\nauth = "cert"', "vault.client_certificate", "is missing", "Name the file"),
            ("", 'address = "https://v"\nclient_key = "pii.hex"', "vault.client_certificate", "missing", "together"),
            ("", 'address = "https://v"\nauth = "token"', "vault.auth", "token", "approle, kubernetes, jwt, cert"),
            ("", 'address = "https://v"\nmount = "/x"', "vault.mount", "/x", "Use letters"),
            ("", 'address = "https://v"\nrole = "a/b"', "vault.role", "a/b", "Use letters"),
            ("", 'address = "https://v"\nbatch_bytes = 10', "vault.batch_bytes", "10", "4096"),
            ('key = "pii"', 'address = "https://v"', "transformations[0].key", "combined", "the key is in Vault"),
        )
    ),
    ('key = "pii"', 'key = "pii"\nversion = 2', "transformations[0].version", "for provider", "Remove it"),
    ('key = "pii"', 'key = "pii"\ncheck = "1"', "transformations[0].check", "for provider", "Remove it"),
    ("[policy]", "[polcy]", "polcy", "a table", "Did you mean policy?"),
    ("[policy]", "[extra]\n[policy]", "extra", "a table", "one of: listener"),
]


@pytest.mark.parametrize(("old", "new", "key", "value", "fix"), BAD)
def test_errors_name_the_key_the_value_and_the_fix(
    write: Callable[[str], Path], old: str, new: str, key: str, value: str, fix: str
) -> None:
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = [line for line in str(caught.value).splitlines() if line.startswith(f"{path}: {key}")]
    assert lines, str(caught.value)
    assert value in lines[0]
    assert fix in lines[0]


VAULT = """
[vault]
address = "https://vault.example:8200"
role_id_file = "pii.hex"
secret_id_file = "pii.hex"
"""


def test_a_vault_is_configured(write: Callable[[str], Path]) -> None:
    config = load(write(GOOD.replace('key = "pii"', 'provider = "vault"') + VAULT))
    assert config.transformations[0].key == ""
    assert config.vault.cache_entries == 0


@pytest.mark.parametrize("first", ["vault", "embedded"])
def test_a_token_domain_has_one_key(write: Callable[[str], Path], first: str) -> None:
    """In Vault each transformation has a key of its own, so two of one domain would give a value two tokens."""
    other = """
[[transformations]]
name = "other"
kind = "fpe"
template = '(\\d{9})'
token_domain = "ssn"
provider = "vault"
"""
    text = GOOD if first == "embedded" else GOOD.replace('key = "pii"', 'provider = "vault"')
    with pytest.raises(ConfigError, match=r"transformations\[1\]\.token_domain"):
        load(write(text + other + VAULT))


def test_vault_has_no_siv(write: Callable[[str], Path]) -> None:
    text = GOOD.replace('key = "pii"', 'provider = "vault"').replace('kind = "fpe"', 'kind = "siv"')
    with pytest.raises(ConfigError, match=r"transformations\[0\]\.kind.*not made by Vault"):
        load(write(text + VAULT))


def test_vaults_secret_files_are_for_their_owner_only(write: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    (tmp_path / "secret").chmod(0o604)
    for name in ("role_id_file", "secret_id_file"):
        lines = VAULT.replace(f'{name} = "pii.hex"', f'{name} = "secret"')
        with pytest.raises(ConfigError, match=rf"vault\.{name}.*chmod 600") as caught:
            load(write(GOOD.replace('key = "pii"', 'provider = "vault"') + lines))
        assert "s3cret" not in str(caught.value)


def test_all_cross_check_problems_are_told_at_once(write: Callable[[str], Path]) -> None:
    text = GOOD.replace('"pii.hex"', '"a"').replace('"ca.pem"', '"b"').replace('key = "pii"', 'key = "z"')
    with pytest.raises(ConfigError) as caught:
        load(write(text))
    assert {problem.key for problem in caught.value.problems} == {
        "trust_domains[0].bundle", "keys[0].file", "transformations[0].key",
    }  # fmt: skip


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o666])
@pytest.mark.parametrize(
    ("file", "key"),
    [("server.key", "listener.key"), ("audit.key", "audit.signing_key"), ("pii.hex", "keys[0].file")],
)
def test_secret_files_that_others_can_reach_are_refused(
    write: Callable[[str], Path], file: str, key: str, mode: int
) -> None:
    path = write(GOOD)
    (path.parent / file).chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert f"{mode:04o}" in problem.what
    assert problem.fix == f"Run: chmod 600 {path.parent / file}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[listener\n", "is not TOML"),
        (b"a = 1\na = 2\n", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"", "listener: is missing"),
    ],
)
def test_files_that_are_not_toml(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "grille.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load(path)


def test_absent_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path)


def test_long_values_are_shortened(write: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(GOOD.replace('key = "pii"', f'key = "{"k" * 500}"')))
    assert all(len(problem.value) <= 60 for problem in caught.value.problems)


def test_empty_lists_of_who_may_connect_are_refused(write: Callable[[str], Path]) -> None:
    config = msgspec.json.decode(encode(load(write(GOOD))))
    config["identities"] = []
    decoded = decode(config, base=Path("/"), source="x")
    assert isinstance(decoded, Config)
    text = GOOD[: GOOD.index("[[identities]]")] + GOOD[GOOD.index("[[databases]]") :]
    with pytest.raises(ConfigError, match="identities"):
        load(write("identities = []\n" + text))


def test_the_reference_page_is_current() -> None:
    assert config_reference.PAGE.read_text(encoding="utf-8") == config_reference.page(), (
        "run: python -m grille.proxy.config_reference"
    )


def test_every_key_has_a_meaning() -> None:
    assert "|  |" not in config_reference.page()


def test_a_library_may_be_read_by_all_and_changed_by_nobody_else(write: Callable[[str], Path], tmp_path: Path) -> None:
    text = GOOD.replace('file = "pii.hex"', 'pkcs11 = "pii"')
    text += '\n[pkcs11]\nmodule = "ca.pem"\ntoken = "bank"\npin_file = "pii.hex"\n'
    (tmp_path / "ca.pem").chmod(0o755)
    assert load(write(text)).keys[0].pkcs11 == "pii"
    (tmp_path / "ca.pem").chmod(0o775)
    (tmp_path / "pii.hex").chmod(0o644)
    with pytest.raises(ConfigError) as caught:
        load(write(text))
    assert [(problem.key, problem.fix) for problem in caught.value.problems] == [
        ("pkcs11.module", f"Run: chmod go-w {tmp_path}/ca.pem"),
        ("pkcs11.pin_file", f"Run: chmod 600 {tmp_path}/pii.hex"),
    ]
