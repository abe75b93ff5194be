"""Keys on a PKCS#11 token: SoftHSM, through the configuration."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from grille.proxy import keys
from grille.proxy.config import Config, ConfigError, Pkcs11, decode
from grille.proxy.demo.config_files import write_config, write_secrets
from grille.proxy.hsm import Hsm, HsmError
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.provider import TokenRequest
from grille.tokenization.transformation import Key as TokenKey
from grille.tokenization.transformation import Transformation
from tests.soft_hsm import PIN, SoftHsm, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

FPE, SIV, KEK = bytes(range(32)), bytes(range(64)), bytes(range(100, 132))
HIDDEN = {"SENSITIVE": True, "EXTRACTABLE": False}


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    made = SoftHsm(tmp_path_factory.mktemp("hsm"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment().items():
            patch.setenv(name, value)
        made.token("bank")
        made.token("twin")
        made.token("twin")
        made.key("bank", "fpe", FPE)
        made.key("bank", "siv", SIV)
        made.key("bank", "kek", KEK, {**HIDDEN, "UNWRAP": True})
        made.key("bank", "kept", FPE, HIDDEN)
        made.key("bank", "both", FPE)
        made.key("bank", "both", KEK)
        made.key("bank", "short", bytes(31))
        made.key("bank", "idle", FPE, {"UNWRAP": False})
        yield made


@pytest.fixture
def config(hsm: SoftHsm, tmp_path: Path) -> Config:
    """A key that is read, and two that are unwrapped."""
    for name, text in (
        ("pin", f"{PIN}\n"),
        ("wrapped-fpe.hex", aes_key_wrap(KEK, FPE).hex()),
        ("wrapped-siv.hex", aes_key_wrap(KEK, SIV).hex()),
        ("other.hex", aes_key_wrap(bytes(32), FPE).hex()),
        ("clear.hex", FPE.hex()),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    fpe = {"kind": "fpe", "template": r"(\d{9})"}
    document = {
        "listener": {"certificate": "x", "key": "x"}, "trust_domains": [], "identities": [], "databases": [],
        "policy": {"bundle": "x"}, "audit": {"directory": "x", "signing_key": "x"},
        "pkcs11": {"module": str(hsm.module), "token": "bank", "pin_file": "pin"},
        "keys": [
            {"name": "read", "pkcs11": "fpe"},
            {"name": "unwrapped", "pkcs11": "kek", "file": "wrapped-fpe.hex"},
            {"name": "text", "pkcs11": "kek", "file": "wrapped-siv.hex"},
        ],
        "transformations": [
            {"name": "a", "token_domain": "d", "key": "read", **fpe},
            {"name": "b", "token_domain": "e", "key": "unwrapped", **fpe},
            {"name": "c", "token_domain": "d", "key": "text", "kind": "siv"},
        ],
    }  # fmt: skip
    document["transformations"][2]["token_domain"] = "f"  # type: ignore[index]
    return decode(document, base=tmp_path, source="test")


def changed(config: Config, **pkcs11: object) -> Config:
    return msgspec.structs.replace(config, pkcs11=msgspec.structs.replace(config.pkcs11, **pkcs11))


def one_key(config: Config, label: str, file: str = "") -> Config:
    path = config.pkcs11.pin_file
    assert path is not None
    key = msgspec.structs.replace(config.keys[0], pkcs11=label, file=path.parent / file if file else None)
    return msgspec.structs.replace(config, keys=(key,), transformations=config.transformations[:1])


def refused(config: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        keys.token_provider(config)
    text = str(caught.value)
    for secret in (PIN, FPE.hex(), KEK.hex(), repr(FPE), repr(KEK)):
        assert secret not in text
    assert initialized(config) is False
    return text


def initialized(config: Config) -> bool:
    """Whether this process has anything of the library open."""
    import pkcs11

    library = pkcs11._loaded.get(str(config.pkcs11.module))
    return library is not None and library.initialized


async def tokens(provider: EmbeddedProvider) -> list[object]:
    return list(await provider.encode([TokenRequest(name, "123456789") for name in "abc"]))


async def test_the_same_tokens_as_with_keys_in_files(config: Config) -> None:
    expected = EmbeddedProvider(
        [
            Transformation(each.name, each.kind, each.token_domain, each.key, each.alphabet, each.template)
            for each in config.transformations
        ],
        [TokenKey("read", 1, FPE), TokenKey("unwrapped", 1, FPE), TokenKey("text", 1, SIV)],
    )
    for _ in range(2):  # the library is initialized and finalized each time
        assert await tokens(keys.token_provider(config)) == await tokens(expected)
        assert not initialized(config)


def _child(config: Config, told: multiprocessing.connection.Connection) -> None:
    keys.token_provider(config)
    told.send(initialized(config))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_session_of_its_own(config: Config) -> None:
    """PKCS#11 forbids a child to use what its parent initialized: there is nothing of that, before and after."""
    keys.token_provider(config)
    assert not initialized(config)
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=_child, args=(config, theirs))
    child.start()
    assert ours.poll(60)
    assert ours.recv() is False
    child.join(60)
    assert child.exitcode == 0
    keys.token_provider(config)
    assert not initialized(config)


@pytest.mark.parametrize(
    ("label", "file", "words"),
    [
        ("none", "", 'keys[0].pkcs11 = "none": is the label of no secret key on the token \'bank\''),
        ("both", "", "is the label of more than one secret key on the token 'bank'"),
        ("kept", "", 'keys[0].pkcs11 = "kept": does not leave the token \'bank\': it is sensitive or not extractable'),
        ("short", "", "31 bytes; an fpe key has 32"),
        ("siv", "", "64 bytes; an fpe key has 32"),
        ("kek", "other.hex", "does not unwrap the file on the token 'bank' (GeneralError)"),
        ("kek", "clear.hex", "is given 32 bytes to unwrap instead of 40 or 72"),
        ("idle", "wrapped-fpe.hex", "may not unwrap on the token 'bank'"),
        ("kek", "missing.hex", "keys[0].file"),
        ("kek", "wrapped-siv.hex", "64 bytes; an fpe key has 32"),
    ],
)  # fmt: skip
def test_a_key_that_cannot_be_had_is_named_by_its_label(config: Config, label: str, file: str, words: str) -> None:
    assert words in refused(one_key(config, label, file))


def test_tokens_that_are_not_there(config: Config) -> None:
    assert 'pkcs11.token = "vault": is the label of no token here' in refused(changed(config, token="vault"))
    assert "is the label of more than one token" in refused(changed(config, token="twin"))


def test_a_wrong_pin_is_not_told_and_its_file_is_named(config: Config, tmp_path: Path) -> None:
    for wrong in ("0000-0000", PIN[:-1], PIN + "7"):
        (tmp_path / "pin").write_text(wrong)
        text = refused(config)
        assert f"pkcs11.pin_file = \"{tmp_path}/pin\": does not hold the PIN of the token 'bank'" in text
        assert wrong not in text
    (tmp_path / "pin").write_text("\n")
    assert "holds no PIN" in refused(config)
    (tmp_path / "pin").write_text(f"{PIN}\n")
    keys.token_provider(config)


def test_a_pin_that_others_can_read_is_not_used(config: Config, tmp_path: Path) -> None:
    (tmp_path / "pin").chmod(0o640 if os.geteuid() else 0o644)
    assert "can be read or changed by others" in refused(config)


def test_what_is_no_library(config: Config, tmp_path: Path) -> None:
    (tmp_path / "empty.so").write_text("")
    for path in (tmp_path / "empty.so", tmp_path / "none.so"):
        assert "is not a PKCS#11 library that can be loaded" in refused(changed(config, module=path))


def test_without_the_package(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(ConfigError, match="needs the package python-pkcs11"):
        keys.token_provider(config)


def test_the_pin_and_the_keys_are_in_no_repr(hsm: SoftHsm) -> None:
    token = Hsm(hsm.module, "bank", PIN)
    assert PIN not in repr(token)
    with token:
        assert PIN not in f"{token!r} {vars(token)['_session']!r}"
        assert token.read("fpe") == FPE
    assert PIN not in repr(vars(token))


def test_the_last_try_of_a_pin_is_not_taken(hsm: SoftHsm) -> None:
    """SoftHSM never locks, so the token here is one that only has the flags."""
    import pkcs11

    class Tried:
        flags = pkcs11.TokenFlag.USER_PIN_FINAL_TRY | pkcs11.TokenFlag.USER_PIN_COUNT_LOW

    class Locked:
        flags = pkcs11.TokenFlag.USER_PIN_LOCKED

    for kind, words in ((Tried, "has one try of its PIN left"), (Locked, "has a locked PIN")):
        with pytest.raises(HsmError, match=words):
            Hsm(hsm.module, "bank", PIN)._open(kind())  # type: ignore[arg-type]


def test_serve_logs_in_once_before_it_starts_workers(hsm: SoftHsm, tmp_path: Path) -> None:
    """With a wrong PIN no worker is started: each would try it."""
    files, demo_keys = write_secrets(tmp_path)
    write_config(files, demo_keys, tmp_path, 1)
    (tmp_path / "pin").write_text("0000-0000")
    (tmp_path / "pin").chmod(0o600)
    with files.config.open("a") as file:
        file.write('\n[[keys]]\nname = "on-token"\npkcs11 = "fpe"\n')
        file.write(f'\n[pkcs11]\nmodule = "{hsm.module}"\ntoken = "bank"\npin_file = "{tmp_path}/pin"\n')
    command = [sys.executable, "-m", "grille", "serve", "--config", str(files.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()  # no worker has written one
    assert "does not hold the PIN of the token 'bank'" in line
    assert "0000-0000" not in line


def test_without_keys_on_a_token_nobody_logs_in(config: Config) -> None:
    keys.log_in(msgspec.structs.replace(config, keys=(), pkcs11=Pkcs11()))
