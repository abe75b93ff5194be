"""TLS towards agents: the server context, built from files and built anew when they change.

The listener takes `Certificates.current` for each handshake, so a change never touches a connection that is open.  One
OpenSSL store holds the CAs of all trust domains; it is only the first check, `grille.proxy.identity` makes the one
that counts.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Literal, NoReturn

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from grille.proxy.config import Listener, TrustDomain
from grille.proxy.identity import read_bundle

ALPN: Final = "postgresql"
_TLS_1_2_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_TRIES: Final = 3


class CertificateError(Exception):
    """A certificate, key or bundle file cannot be used.  The text names the file and the fix, never its content."""


class Material(msgspec.Struct, frozen=True):
    """What one handshake needs; replaced as a whole."""

    context: ssl.SSLContext
    bundles: Mapping[str, tuple[x509.Certificate, ...]]
    """CA certificates by trust domain."""
    not_after: dt.datetime
    """When the first certificate of our own chain expires, UTC."""


class Certificates:
    """The listener's certificate, key and trust bundles, as their files are now.

    A change that cannot be used (a key of another certificate, half a file, an expired certificate) leaves the old
    material in force.
    """

    def __init__(
        self,
        listener: Listener,
        trust_domains: Iterable[TrustDomain],
        *,
        on_reload: Callable[[str | None], None] = lambda problem: None,
    ) -> None:
        """Reads the files.  ``on_reload`` hears of every later change: None, or what is wrong with the new files.

        Raises `CertificateError`.
        """
        self._listener = listener
        self._trust_domains = tuple(trust_domains)
        self._on_reload = on_reload
        self._paths = [listener.certificate, listener.key, *(domain.bundle for domain in self._trust_domains)]
        self._state: tuple[object, ...] = ()
        """The files as they were last read."""
        self._seen: tuple[object, ...] = ()
        """The files as they were at the last look."""
        self.failures = 0
        """Changes that could not be put in force."""
        self.last_success = dt.datetime.now(dt.UTC)
        """When the files were last put in force."""
        self.current = self._read()

    @property
    def not_after(self) -> dt.datetime:
        """When the certificate in force expires, UTC."""
        return self.current.not_after

    def reload(self) -> bool:
        """Read the files now; False if they cannot be used and the old ones stay in force."""
        try:
            self.current = self._read()
        except CertificateError as error:
            self.failures += 1
            self._on_reload(str(error))
            return False
        self.last_success = dt.datetime.now(dt.UTC)
        self._on_reload(None)
        return True

    async def watch(self, seconds: float = 1.0) -> NoReturn:
        """`poll` every so often."""
        while True:
            await asyncio.sleep(seconds)
            self.poll()

    def poll(self) -> None:
        """Look at the files; reload if they have changed and were the same at the last look.

        Waiting for a second look keeps a certificate that is written before its key from being taken for an error.
        """
        now = self._look()
        if now == self._seen and now != self._state:
            self.reload()
        self._seen = now

    def _look(self) -> tuple[object, ...]:
        return tuple(file_state(path) for path in self._paths)

    def _read(self) -> Material:
        for _ in range(_TRIES):
            self._state = self._look()
            error: CertificateError | None = None
            try:
                material = _material(self._listener, self._trust_domains)
            except CertificateError as found:
                error = found
            if self._look() == self._state:
                break
        else:
            error = CertificateError(f"{self._listener.certificate} and the files with it change while they are read")
        if error is not None:
            raise error
        return material


def file_state(path: Path) -> object:
    """What changes when a file is written, replaced, or reached through another symbolic link."""
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
        status.st_mode, status.st_uid,
    )  # fmt: skip


def _material(listener: Listener, trust_domains: tuple[TrustDomain, ...]) -> Material:
    chain = _own_chain(listener.certificate)
    context = server_context(listener.tls_minimum)
    _load_pair(context, listener.certificate, listener.key)
    bundles: dict[str, tuple[x509.Certificate, ...]] = {}
    for domain in trust_domains:
        try:
            bundles[domain.name] = read_bundle(_bytes_of(domain.bundle))
        except ValueError as error:
            raise CertificateError(f"{domain.bundle} {error}: write the CA certificates of {domain.name}") from None
    authorities = b"".join(
        certificate.public_bytes(Encoding.DER) for bundle in bundles.values() for certificate in bundle
    )
    if authorities:
        try:
            context.load_verify_locations(cadata=authorities)
        except ssl.SSLError as error:
            raise CertificateError(f"OpenSSL refuses a certificate of the trust bundles ({error.reason})") from None
    return Material(context, bundles, min(certificate.not_valid_after_utc for certificate in chain))


def _own_chain(path: Path) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(_bytes_of(path))
    except (ValueError, x509.InvalidVersion):
        raise CertificateError(f"{path} holds no readable PEM certificate: write the chain, leaf first") from None
    if chain[0].not_valid_after_utc <= dt.datetime.now(dt.UTC):
        raise CertificateError(
            f"{path} has expired ({chain[0].not_valid_after_utc:%Y-%m-%d %H:%M} UTC): renew it"
        )  # fmt: skip
    return chain


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    check_private(key)

    def no_password() -> str:
        raise CertificateError(f"{key} is encrypted: store it without a passphrase, readable by this user only")

    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(f"{key} is not the key of {certificate}: replace both together") from None
        if error.reason is not None and error.reason.endswith(("TOO_SMALL", "TOO_WEAK")):
            raise CertificateError(
                f"{certificate} is too weak ({error.reason}): issue it with P-256 or better"
            ) from None
        raise CertificateError(f"{key} holds no readable PEM private key: write it in PKCS #8 form") from None
    except OSError as error:
        raise CertificateError(f"{key} cannot be read ({error.strerror}): correct its path or its mode") from None


def check_private(path: Path) -> None:
    """Refuse a key that others can read or change; its group may read it if root owns it (mounted secrets).

    Raises `CertificateError`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise CertificateError(f"{path} cannot be read ({error.strerror}): correct its path or its mode") from None
    allowed = 0o740 if status.st_uid == 0 else 0o700
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 & ~allowed:
        raise CertificateError(f"{path} can be read or changed by others (mode {mode:04o}): run chmod 600 {path}")


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path} cannot be read ({error.strerror}): correct its path or its mode") from None


# the context


def server_context(minimum: Literal["1.2", "1.3"] = "1.3") -> ssl.SSLContext:
    """A server context that demands a client certificate and resumes no session; certificates are not in it yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS_1_2_CIPHERS)
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    # An authority of a SPIFFE bundle may have been issued by another that is not in the bundle.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols([ALPN])
    return context


def presented_chain(ssl_object: ssl.SSLObject) -> list[bytes]:
    """What the peer presented, DER, leaf first: not verified beyond what the handshake did."""
    public = getattr(ssl_object, "get_unverified_chain", None)
    if public is not None:  # Python 3.13
        return list(public())
    chain = ssl_object._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    return [certificate.public_bytes(2) for certificate in chain or ()]


_BAD_LEAF: Final = {
    9: "a client certificate is not valid yet",
    10: "a client certificate has expired",
    26: "the client certificate is not meant for TLS clients",
    66: "the key of the client certificate is too weak",
}
"""By OpenSSL's X509_V_ERR_*."""


def handshake_failure(error: ssl.SSLError) -> tuple[str, str]:
    """Control and reason of a failed handshake, for the record."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _BAD_LEAF:
            return "ID-01", _BAD_LEAF[error.verify_code]
        return "ID-02", f"no trusted CA vouches for the client certificate ({error.verify_message})"
    reason = error.reason or "connection closed"
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "ID-01", "no client certificate was presented"
    return "ID-03", f"the TLS handshake failed ({reason.lower().replace('_', ' ')})"
