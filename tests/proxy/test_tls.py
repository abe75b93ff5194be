"""The files behind TLS: what is refused, and how they change while Grille runs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from grille.proxy import config
from grille.proxy.authority import Authority, Issued
from grille.proxy.tls import CertificateError, Certificates, check_private, server_context


class Files:
    """A listener's files in a directory that a symbolic link names, as mounted secrets are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bank = Authority("bank.example")
        self.link = root / "current"
        self.reports: asyncio.Queue[str | None] = asyncio.Queue()
        self.write("first", self.bank.issue_server())
        self.link.symlink_to("first")
        self.listener = config.Listener(certificate=self.link / "server.pem", key=self.link / "server.key")
        self.domains = (config.TrustDomain(name="bank.example", bundle=self.link / "bank.pem"),)

    def write(self, name: str, issued: Issued, bundle: Authority | None = None) -> Path:
        """A directory with certificate, key and bundle."""
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        issued.write(directory, "server")
        (bundle or self.bank).write_bundle(directory / "bank.pem")
        return directory

    def swap(self, name: str) -> None:
        """Point the link at another directory, in one step."""
        link = self.root / "next"
        link.symlink_to(name)
        link.replace(self.link)

    def load(self) -> Certificates:
        return Certificates(self.listener, self.domains, on_reload=self.reports.put_nowait)

    async def report(self) -> str | None:
        return await asyncio.wait_for(self.reports.get(), 10)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
async def certificates(files: Files) -> AsyncIterator[Certificates]:
    """Loaded and watched."""
    loaded = files.load()
    watching = asyncio.create_task(loaded.watch(0.02))
    yield loaded
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


def refused(files: Files) -> str:
    """Why the files cannot be used; nothing of the key is in it."""
    with pytest.raises(CertificateError) as caught:
        files.load()
    text = str(caught.value)
    for line in (files.link / "server.key").read_bytes().splitlines() if (files.link / "server.key").exists() else []:
        assert not line or line.decode(errors="replace") not in text
    assert caught.value.__cause__ is None
    return text


# files that cannot be used


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o606, 0o777])
def test_a_key_that_others_can_read_is_refused(files: Files, mode: int) -> None:
    key = files.link / "server.key"
    key.chmod(mode)
    assert refused(files) == f"{key} can be read or changed by others (mode {mode:04o}): run chmod 600 {key}"
    key.chmod(0o600)
    files.load()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_group_may_read_the_key_only_if_root_owns_it(files: Files) -> None:
    key = files.link / "server.key"
    key.chmod(0o640)
    check_private(key)
    os.chown(key, 65534, -1)
    with pytest.raises(CertificateError, match="chmod 600"):
        check_private(key)


def test_a_key_of_another_certificate_is_refused(files: Files) -> None:
    other = files.bank.issue_server()
    (files.link / "server.key").write_bytes(other.key_pem)
    key, certificate = files.link / "server.key", files.link / "server.pem"
    assert refused(files) == f"{key} is not the key of {certificate}: replace both together"


def test_an_encrypted_key_is_refused_without_asking_for_a_passphrase(files: Files) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (files.link / "server.key").write_bytes(pem)
    assert "is encrypted" in refused(files)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("server.key", b"", "holds no readable PEM private key"),
        (
            "server.key",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "no readable PEM private key",
        ),
        ("server.key", None, "cannot be read (No such file or directory)"),
        ("server.pem", b"", "holds no readable PEM certificate"),
        ("server.pem", None, "cannot be read (No such file or directory)"),
        ("bank.pem", b"", "holds no readable PEM certificate: write the CA certificates of bank.example"),
        ("bank.pem", b'{"keys": 1}', "is not a SPIFFE bundle"),
        ("bank.pem", None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(files: Files, name: str, content: bytes | None, what: str) -> None:
    path = files.link / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    text = refused(files)
    assert text.startswith(str(path))
    assert what in text


def test_an_expired_certificate_is_refused(files: Files) -> None:
    files.write("first", files.bank.issue_server(valid_for=-dt.timedelta(minutes=1)))
    assert "server.pem has expired" in refused(files)


# the context


def test_the_context_is_strict() -> None:
    context = server_context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.num_tickets == 0
    assert context.options & ssl.OP_NO_TICKET
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    older = server_context("1.2")
    assert older.minimum_version == ssl.TLSVersion.TLSv1_2
    assert older.verify_mode == ssl.CERT_REQUIRED
    for cipher in older.get_ciphers():
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-"), cipher["name"]
        assert cipher["aead"], cipher["name"]


# files that change


async def test_a_new_directory_behind_the_link_is_taken(files: Files, certificates: Certificates) -> None:
    before = certificates.current
    issued = files.bank.issue_server(valid_for=dt.timedelta(hours=7))
    files.write("second", issued, bundle=Authority("bank.example"))
    files.swap("second")
    assert await files.report() is None
    assert certificates.current is not before
    assert certificates.not_after == issued.certificate.not_valid_after_utc
    assert certificates.current.bundles != before.bundles
    assert certificates.failures == 0


def test_a_certificate_written_before_its_key_is_no_error(files: Files) -> None:
    loaded = files.load()
    issued = files.bank.issue_server(valid_for=dt.timedelta(hours=7))
    loaded.poll()
    (files.link / "server.pem").write_bytes(issued.certificate_pem)
    loaded.poll()
    (files.link / "server.key").write_bytes(issued.key_pem)
    loaded.poll()
    assert files.reports.empty()
    loaded.poll()
    assert files.reports.get_nowait() is None
    assert loaded.not_after == issued.certificate.not_valid_after_utc
    loaded.poll()
    assert files.reports.empty()


async def test_a_broken_pair_leaves_the_old_one_in_force_until_it_is_mended(
    files: Files, certificates: Certificates
) -> None:
    before, succeeded = certificates.current, certificates.last_success
    broken = files.write("second", files.bank.issue_server())
    other = files.bank.issue_server(valid_for=dt.timedelta(hours=7))
    (broken / "server.key").write_bytes(other.key_pem)
    files.swap("second")
    assert "is not the key of" in str(await files.report())
    assert certificates.current is before
    assert (certificates.failures, certificates.last_success) == (1, succeeded)
    (broken / "server.pem").write_bytes(other.certificate_pem)
    assert await files.report() is None
    assert certificates.not_after == other.certificate.not_valid_after_utc
    assert certificates.last_success > succeeded
    assert certificates.failures == 1


async def test_a_missing_or_open_file_is_reported_once(files: Files, certificates: Certificates) -> None:
    before = certificates.current
    (files.link / "bank.pem").unlink()
    assert "cannot be read" in str(await files.report())
    files.bank.write_bundle(files.link / "bank.pem")
    assert await files.report() is None
    again = certificates.current
    assert again is not before
    (files.link / "server.key").chmod(0o644)
    assert "chmod 600" in str(await files.report())
    assert certificates.current is again
    assert certificates.failures == 2
    assert files.reports.empty()


async def test_reload_looks_at_once(files: Files) -> None:
    loaded = files.load()
    issued = files.bank.issue_server(valid_for=dt.timedelta(hours=7))
    files.write("first", issued)
    assert loaded.reload()
    assert loaded.not_after == issued.certificate.not_valid_after_utc
    (files.link / "server.key").write_bytes(b"")
    assert not loaded.reload()
    assert loaded.not_after == issued.certificate.not_valid_after_utc
    assert [files.reports.get_nowait(), "private key" in str(files.reports.get_nowait())] == [None, True]
