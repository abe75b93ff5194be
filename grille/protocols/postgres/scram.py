"""Proving Grille's password to upstream: SCRAM-SHA-256, bound to the TLS channel where there is one.

Source: RFC 5802, RFC 7677 and RFC 5929 (``tls-server-end-point``); PostgreSQL documentation, "SASL Authentication".
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from scramp import ScramClient, ScramException

PLAIN = "SCRAM-SHA-256"
PLUS = "SCRAM-SHA-256-PLUS"


class ScramError(Exception):
    """The exchange cannot go on; the text is for the operator, and holds no secret."""


class ScramExchange:
    """One exchange, from the mechanisms that the server offers to the proof that the server knows the password too.

    With ``channel_binding`` (`tls_server_end_point` of the server's certificate) the strongest offered mechanism is
    used, and the server learns if someone in between has hidden its SCRAM-SHA-256-PLUS.
    """

    def __init__(
        self, offered: Sequence[str], password: str, *, channel_binding: bytes | None = None, nonce: str | None = None
    ) -> None:
        usable = [name for name in (PLAIN, PLUS) if name in offered]
        if not usable:
            raise ScramError("the server offers no SCRAM-SHA-256")
        binding = ("tls-server-end-point", channel_binding) if channel_binding is not None else None
        try:
            # PostgreSQL takes the user from the startup message; the name in the exchange must only not be empty.
            self._client = ScramClient(usable, "*", password, channel_binding=binding, c_nonce=nonce)
        except ScramException as error:
            raise ScramError(str(error)) from None
        self.mechanism: str = self._client.mechanism_name
        self.verified = False
        """True once the server has proved that it knows the password."""

    def __repr__(self) -> str:
        return f"ScramExchange(mechanism={self.mechanism!r}, verified={self.verified})"

    def first(self) -> bytes:
        """The client's first message, for SASLInitialResponse."""
        message: str = self._client.get_client_first()
        return message.encode()

    def answer(self, server_first: bytes) -> bytes:
        """The client's final message, for SASLResponse.  Raises ScramError."""
        try:
            self._client.set_server_first(server_first.decode("ascii"))
            message: str = self._client.get_client_final()
        except (ScramException, UnicodeDecodeError) as error:
            raise ScramError(_reason(error)) from None
        return message.encode()

    def verify(self, server_final: bytes) -> None:
        """Check the server's own proof.  Raises ScramError."""
        try:
            self._client.set_server_final(server_final.decode("ascii"))
        except (ScramException, UnicodeDecodeError) as error:
            raise ScramError(_reason(error)) from None
        self.verified = True


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ScramException) else "a SCRAM message holds other characters than ASCII"


def tls_server_end_point(certificate: bytes) -> bytes | None:
    """The channel binding of a server's certificate (DER), None if its signature algorithm has no defined one.

    RFC 5929, section 4.1: the certificate's hash under its own signature's hash function, where MD5 and SHA-1 count
    as SHA-256.
    """
    parsed = x509.load_der_x509_certificate(certificate)
    try:
        algorithm = parsed.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return None
    if algorithm is None:
        return None
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    return parsed.fingerprint(algorithm)
