"""Who an agent is: from the certificate that it presents to an `Agent`, by the rules of the SPIFFE specification.

TLS has proven that the peer holds the key and that some configured CA stands behind the certificate.  Everything else
is decided here, on the certificate as presented: the rules of an X.509-SVID (control ID-01), the chain to a CA of the
certificate's *own* trust domain (ID-02), and whether the identity is registered (ID-05).  Sources: the SPIFFE
specifications "SPIFFE-ID", "X509-SVID" and "SPIFFE Trust Domain and Bundle"; RFC 5280.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from grille.controls import Refusal
from grille.proxy.config import Identity

MAX_ID_BYTES: Final = 2048
MAX_TRUST_DOMAIN_BYTES: Final = 255
_SCHEME: Final = "spiffe://"
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]+")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")
_MAX_CHAIN_DEPTH: Final = 4
_Kind = TypeVar("_Kind", bound=x509.ExtensionType)
_NEVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)


class SpiffeId(msgspec.Struct, frozen=True):
    """A parsed SPIFFE ID."""

    trust_domain: str
    path: tuple[str, ...]
    """Segments; empty for the trust domain itself."""

    def __str__(self) -> str:
        return _SCHEME + "/".join((self.trust_domain, *self.path))


def parse_spiffe_id(text: str) -> SpiffeId:
    """The parts of a SPIFFE ID.  Raises ValueError with what is wrong, in words that follow "it"."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise ValueError(f"is longer than {MAX_ID_BYTES} bytes")
    if not text.startswith(_SCHEME):
        raise ValueError(f"does not begin with {_SCHEME}")
    trust_domain, slash, path = text[len(_SCHEME) :].partition("/")
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        raise ValueError('has a trust domain with other characters than a-z, 0-9, ".", "_" and "-", or none')
    if len(trust_domain) > MAX_TRUST_DOMAIN_BYTES:
        raise ValueError(f"has a trust domain longer than {MAX_TRUST_DOMAIN_BYTES} bytes")
    if not slash:
        return SpiffeId(trust_domain, ())
    segments = tuple(path.split("/"))
    for segment in segments:
        if not segment:
            raise ValueError("has an empty path segment or ends with a slash")
        if segment in (".", ".."):
            raise ValueError("has a relative path segment")
        if not _SEGMENT.fullmatch(segment):
            raise ValueError('has a path with other characters than A-Z, a-z, 0-9, ".", "_" and "-"')
    return SpiffeId(trust_domain, segments)


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated and registered agent."""

    spiffe_id: str
    trust_domain: str
    path: tuple[str, ...]
    cert_sha256: str
    """Of the DER certificate, hexadecimal; empty where no certificate was presented (``grille explain``)."""
    serial: str
    """Certificate serial number, hexadecimal."""
    not_after: dt.datetime
    """When the first certificate of the chain expires, UTC: the session ends then (control ID-06)."""
    scopes: tuple[str, ...]
    attributes: dict[str, str | int | bool]
    database: str
    """Name of the configured database that this agent is connected to; empty: none."""
    queue_manager: str = ""
    """Name of the configured queue manager that this agent is connected to; empty: none."""
    queue_manager_user: str = ""
    """Whom the queue manager takes the agent for."""
    fingerprint: str
    """SHA-256 (hex) of `document`: what decisions about this agent are cached under."""

    @property
    def document(self) -> dict[str, Any]:
        """The ``identity`` of the policy input."""
        return identity_document(
            self.spiffe_id, self.trust_domain, self.path, self.cert_sha256, self.scopes, self.attributes
        )


def identity_document(
    spiffe_id: str,
    trust_domain: str,
    path: tuple[str, ...],
    cert_sha256: str,
    scopes: tuple[str, ...],
    attributes: dict[str, str | int | bool],
) -> dict[str, Any]:
    """The ``identity`` of the policy input."""
    return {
        "spiffe_id": spiffe_id,
        "trust_domain": trust_domain,
        "path": path,
        "cert_sha256": cert_sha256,
        "scopes": scopes,
        "attributes": attributes,
    }


class Registry:
    """The agents that the configuration knows."""

    def __init__(self, identities: Iterable[Identity]) -> None:
        self._entries = {identity.spiffe_id: identity for identity in identities}

    def find(self, spiffe_id: SpiffeId) -> Identity | None:
        """The entry for exactly this id, else the one with the longest prefix ending in ``/*``."""
        found = self._entries.get(str(spiffe_id))
        for length in range(len(spiffe_id.path) - 1, -1, -1):
            if found is not None:
                break
            found = self._entries.get(f"{SpiffeId(spiffe_id.trust_domain, spiffe_id.path[:length])}/*")
        return found

    def agent(
        self,
        spiffe_id: SpiffeId,
        *,
        cert_sha256: str = "",
        serial: str = "",
        not_after: dt.datetime = _NEVER,
    ) -> Agent:
        """The agent with this id.  Raises `Refusal` ID-05 if it is not registered."""
        entry = self.find(spiffe_id)
        if entry is None:
            raise Refusal(
                "ID-05",
                f"{spiffe_id} is not registered with this proxy",
                sqlstate="28000",
                hint="Ask the operator of the proxy to add this SPIFFE ID to the identities of its configuration.",
                fatal=True,
            )
        text = str(spiffe_id)
        document = identity_document(
            text, spiffe_id.trust_domain, spiffe_id.path, cert_sha256, entry.scopes, entry.attributes
        )  # fmt: skip
        return Agent(
            **document,
            serial=serial,
            not_after=not_after,
            database=entry.database,
            queue_manager=entry.queue_manager,
            queue_manager_user=entry.queue_manager_user,
            fingerprint=hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest(),
        )


# trust bundles


def read_bundle(data: bytes) -> tuple[x509.Certificate, ...]:
    """The CA certificates of one trust domain, from PEM or from a SPIFFE bundle (JWKS).

    A JWKS with an empty ``keys`` distrusts everybody and is valid; a PEM file without a certificate is not.  Raises
    ValueError with what is wrong, in words that follow the file's name.
    """
    if data.lstrip()[:1] == b"{":
        certificates = _read_jwks(data)
    else:
        try:
            certificates = tuple(x509.load_pem_x509_certificates(data))
        except (ValueError, x509.InvalidVersion):
            raise ValueError("holds no readable PEM certificate") from None
    for certificate in certificates:
        if not _is_ca(certificate):
            raise ValueError("holds a certificate that is not a CA certificate")
    return certificates


class _Jwk(msgspec.Struct, frozen=True):
    use: str = ""
    x5c: tuple[str, ...] = ()


class _Jwks(msgspec.Struct, frozen=True):
    keys: tuple[_Jwk, ...]


def _read_jwks(data: bytes) -> tuple[x509.Certificate, ...]:
    try:
        document = msgspec.json.decode(data, type=_Jwks)
    except msgspec.DecodeError as error:
        raise ValueError(f"is not a SPIFFE bundle: {error}") from None
    certificates = []
    for key in document.keys:
        if key.use != "x509-svid":
            continue
        if not key.x5c:
            raise ValueError('is not a SPIFFE bundle: an x509-svid key has no "x5c"')
        try:
            certificates.append(x509.load_der_x509_certificate(base64.b64decode(key.x5c[0], validate=True)))
        except (ValueError, binascii.Error, x509.InvalidVersion):
            raise ValueError('is not a SPIFFE bundle: the "x5c" of a key is not a certificate') from None
    return tuple(certificates)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = _extension(certificate, x509.BasicConstraints)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False
    return constraints is not None and constraints.value.ca


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> x509.Extension[_Kind] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


# from certificates to an agent

_PURPOSES: Final = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}

_AUTHORITY_POLICY: Final = verification.ExtensionPolicy.webpki_defaults_ca()
# The specification does not demand an authority key identifier.
_LEAF_POLICY: Final = verification.ExtensionPolicy.webpki_defaults_ee().may_be_present(
    x509.AuthorityKeyIdentifier, verification.Criticality.AGNOSTIC, None
)


def identify(
    chain: Sequence[bytes],
    bundles: Mapping[str, Sequence[x509.Certificate]],
    registry: Registry,
    *,
    now: dt.datetime | None = None,
) -> Agent:
    """The agent behind a presented chain (DER, leaf first).

    ``bundles`` holds the CA certificates by trust domain.  Raises `Refusal` (28000, fatal): ID-01 if the leaf breaks a
    rule of X.509-SVIDs, ID-02 if the CAs of its own trust domain do not vouch for it, ID-05 if it is not registered.
    """
    now = now or dt.datetime.now(dt.UTC)
    if not chain:
        _not_an_svid("it was not presented")
    try:
        leaf = x509.load_der_x509_certificate(chain[0])
        intermediates = [x509.load_der_x509_certificate(der) for der in chain[1:]]
        spiffe_id = check_svid(leaf, now)
    except Refusal:
        raise
    except Exception:
        # The parser has many kinds of errors, and their texts may quote the certificate.
        _not_an_svid("it cannot be read")
    verified = _verify(leaf, intermediates, spiffe_id.trust_domain, bundles, now)
    return registry.agent(
        spiffe_id,
        cert_sha256=hashlib.sha256(chain[0]).hexdigest(),
        serial=format(leaf.serial_number, "x"),
        not_after=min(certificate.not_valid_after_utc for certificate in verified),
    )


def check_svid(leaf: x509.Certificate, now: dt.datetime) -> SpiffeId:
    """The SPIFFE ID of a leaf that follows every rule; says nothing about who issued it.

    Raises `Refusal` ID-01, or an error of the parser for a certificate that cannot be read.
    """
    names = _extension(leaf, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if len(uris) != 1:
        _not_an_svid(f"it has {len(uris)} URI names, and exactly one is needed")
    try:
        spiffe_id = parse_spiffe_id(uris[0])
    except ValueError as error:
        _not_an_svid(f"its SPIFFE ID {error}")
    if not spiffe_id.path:
        _not_an_svid("its SPIFFE ID has no path, so it names a trust domain and not an agent")
    constraints = _extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.value.ca:
        _not_an_svid("it is a CA certificate")
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None or not usage.critical:
        _not_an_svid("it has no key usage that is marked critical")
    if not usage.value.digital_signature:
        _not_an_svid("its key usage lacks digitalSignature")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        _not_an_svid("its key usage allows signing certificates or revocation lists")
    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    if purposes is not None and not set(purposes.value) >= _PURPOSES:
        _not_an_svid("its extended key usage lacks clientAuth or serverAuth")
    if now < leaf.not_valid_before_utc:
        _not_an_svid("it is not valid yet")
    if now > leaf.not_valid_after_utc:
        _not_an_svid("it has expired")
    return spiffe_id


def _verify(
    leaf: x509.Certificate,
    intermediates: list[x509.Certificate],
    trust_domain: str,
    bundles: Mapping[str, Sequence[x509.Certificate]],
    now: dt.datetime,
) -> list[x509.Certificate]:
    """The chain from the leaf to a CA of its own trust domain.  Raises `Refusal` ID-02."""
    authorities = list(bundles.get(trust_domain, ()))
    if authorities:
        verifier = (
            verification.PolicyBuilder()
            .store(verification.Store(authorities))
            .time(now)
            .max_chain_depth(_MAX_CHAIN_DEPTH)
            .extension_policies(ca_policy=_AUTHORITY_POLICY, ee_policy=_LEAF_POLICY)
            .build_client_verifier()
        )
        try:
            return verifier.verify(leaf, intermediates).chain
        except verification.VerificationError as error:
            detail = str(error)
    else:
        detail = "the trust domain is not configured, or its bundle is empty"
    raise Refusal(
        "ID-02",
        f"no CA that this proxy trusts for {trust_domain} vouches for the client certificate",
        sqlstate="28000",
        hint="Use an X.509-SVID that the trust domain in its SPIFFE ID has issued.",
        fatal=True,
        detail_for_audit=detail,
    )


def _not_an_svid(what: str) -> NoReturn:
    raise Refusal(
        "ID-01",
        f"the client certificate is not a valid X.509-SVID: {what}",
        sqlstate="28000",
        hint="Fetch a new X.509-SVID from your SPIFFE provider and connect again.",
        fatal=True,
    )
