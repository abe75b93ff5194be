"""A small certificate authority for one trust domain: for the demo and the tests, not for production.

It issues X.509-SVIDs (P-256) as the SPIFFE specification describes them.  The CA's own key stays in memory unless it
is written on purpose.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from grille.proxy.identity import parse_spiffe_id

DAY = dt.timedelta(days=1)
_BACKDATE = dt.timedelta(minutes=5)


class Issued:
    """One certificate with its private key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self.key = key

    def __repr__(self) -> str:
        return f"Issued(serial={self.certificate.serial_number:x}, key=<hidden>)"

    @property
    def certificate_pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS #8, not encrypted."""
        return self._key_as(serialization.Encoding.PEM)

    @property
    def key_der(self) -> bytes:
        """The private key as pgjdbc wants it: PKCS #8 in DER, not encrypted."""
        return self._key_as(serialization.Encoding.DER)

    def _key_as(self, encoding: serialization.Encoding) -> bytes:
        return self.key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def write(self, directory: Path, name: str) -> Path:
        """Write ``NAME.pem``, ``NAME.key`` and ``NAME.pk8`` with mode 0600; returns the certificate's path."""
        certificate = directory / f"{name}.pem"
        write_private(certificate, self.certificate_pem)
        write_private(directory / f"{name}.key", self.key_pem)
        write_private(directory / f"{name}.pk8", self.key_der)
        return certificate


class Authority:
    """The CA of one trust domain, made new."""

    def __init__(self, trust_domain: str, *, valid_for: dt.timedelta = 365 * DAY) -> None:
        """Raises ValueError if ``trust_domain`` is not a trust domain's name."""
        if parse_spiffe_id(f"spiffe://{trust_domain}").path:
            raise ValueError("is not the name of a trust domain")
        self.trust_domain = trust_domain
        self.key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        # The name is unlike that of every other CA, so that a chain can be built only one way.
        serial = x509.random_serial_number()
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Grille demo"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain[:40]} {serial & 0xFFFFFFFF:08x}"),
            ]
        )
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(serial)
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(now + valid_for)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )

    def __repr__(self) -> str:
        return f"Authority({self.trust_domain!r}, key=<hidden>)"

    @property
    def bundle_pem(self) -> bytes:
        """The trust bundle of this domain."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def write_bundle(self, path: Path) -> None:
        """Write the trust bundle."""
        write_private(path, self.bundle_pem)

    def issue(
        self, path: str, *, valid_for: dt.timedelta = DAY, dns: Sequence[str] = (), ips: Sequence[str] = ()
    ) -> Issued:
        """An X.509-SVID for ``spiffe://TRUST-DOMAIN/PATH``.

        A server also gets host names and addresses, so that libpq's ``verify-full`` accepts it.  Raises ValueError for
        a path that no SPIFFE ID can have.
        """
        spiffe_id = parse_spiffe_id(f"spiffe://{self.trust_domain}/{path}")
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
        names += [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ips]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Grille demo")]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(min(now + valid_for, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )  # fmt: skip
        return Issued(certificate, key)

    def issue_server(self, path: str = "grille", *, valid_for: dt.timedelta = DAY) -> Issued:
        """The proxy's own certificate, for clients on this machine: ``localhost``, 127.0.0.1 and ::1."""
        return self.issue(path, valid_for=valid_for, dns=("localhost",), ips=("127.0.0.1", "::1"))


def key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    """A key usage with only these bits set."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def write_signing_key(path: Path) -> Ed25519PrivateKey:
    """Make a new Ed25519 key for sealing audit blocks and write it as PEM (PKCS #8), mode 0600."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    write_private(path, pem)
    return key


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only this user can read, replacing an old one as a whole.  Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
