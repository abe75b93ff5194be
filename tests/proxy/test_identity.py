"""Names, trust bundles and the registry.  Whole certificates are tested with handshakes, in test_listener.py."""

from __future__ import annotations

import base64
import datetime as dt
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from grille.controls import Refusal
from grille.proxy.authority import DAY, Authority, Issued, key_usage
from grille.proxy.config import Identity
from grille.proxy.identity import Registry, SpiffeId, identify, parse_spiffe_id, read_bundle

NOW = dt.datetime.now(dt.UTC)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


# names


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("spiffe://bank.example", SpiffeId("bank.example", ())),
        ("spiffe://bank.example/a", SpiffeId("bank.example", ("a",))),
        ("spiffe://a_b-c.0/A/.../a-_.9", SpiffeId("a_b-c.0", ("A", "...", "a-_.9"))),
        (f"spiffe://{'d' * 255}/a", SpiffeId("d" * 255, ("a",))),
        ("spiffe://d/".ljust(2048, "x"), SpiffeId("d", ("x" * 2037,))),
    ],
)
def test_an_id_has_a_trust_domain_and_a_path(text: str, parsed: SpiffeId) -> None:
    assert parse_spiffe_id(text) == parsed
    assert str(parsed) == text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "does not begin with spiffe://"),
        ("spiffe:/bank.example/a", "does not begin with spiffe://"),
        ("Spiffe://bank.example/a", "does not begin with spiffe://"),
        ("https://bank.example/a", "does not begin with spiffe://"),
        ("spiffe://", "trust domain"),
        ("spiffe:///a", "trust domain"),
        ("spiffe://Bank.example/a", "trust domain"),
        ("spiffe://bank.example:443/a", "trust domain"),
        ("spiffe://user@bank.example/a", "trust domain"),
        ("spiffe://bänk.example/a", "trust domain"),
        ("spiffe://bank%2eexample/a", "trust domain"),
        (f"spiffe://{'d' * 256}/a", "longer than 255 bytes"),
        ("spiffe://bank.example/", "empty path segment"),
        ("spiffe://bank.example/a/", "empty path segment"),
        ("spiffe://bank.example//a", "empty path segment"),
        ("spiffe://bank.example/./a", "relative"),
        ("spiffe://bank.example/a/..", "relative"),
        ("spiffe://bank.example/a%2fb", "a path with other characters"),
        ("spiffe://bank.example/a b", "a path with other characters"),
        ("spiffe://bank.example/a?b", "a path with other characters"),
        ("spiffe://bank.example/a#b", "a path with other characters"),
        ("spiffe://bank.example/*", "a path with other characters"),
        ("spiffe://bank.example/ä", "a path with other characters"),
        ("spiffe://bank.example/٣", "a path with other characters"),
        ("spiffe://bank.example/a\n", "a path with other characters"),
        ("spiffe://bank.example\n", "trust domain"),
        ("spiffe://d/".ljust(2049, "x"), "longer than 2048 bytes"),
        ("spiffe://d/" + "\ud800", "a path with other characters"),
    ],
)
def test_anything_else_is_no_id(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_spiffe_id(text)


@given(st.text(max_size=40).map("spiffe://".__add__))
def test_an_accepted_id_is_written_in_one_way_only(text: str) -> None:
    try:
        parsed = parse_spiffe_id(text)
    except ValueError:
        return
    assert str(parsed) == text


# trust bundles


def jwk(*certificates: x509.Certificate, use: str = "x509-svid") -> dict[str, object]:
    return {"kty": "EC", "use": use, "x5c": [base64.b64encode(der(c)).decode() for c in certificates]}


def jwks(*keys: object) -> bytes:
    return json.dumps({"keys": keys, "spiffe_sequence": 3, "spiffe_refresh_hint": 300}).encode()


def test_a_bundle_is_pem_or_jwks() -> None:
    first, second = Authority("bank.example"), Authority("bank.example")
    both = (first.certificate, second.certificate)
    assert read_bundle(first.bundle_pem + b"\n# a comment\n" + second.bundle_pem) == both
    assert read_bundle(jwks(jwk(first.certificate), jwk(second.certificate))) == both


def test_of_a_jwk_only_the_first_certificate_and_the_right_use_count() -> None:
    first, second = Authority("bank.example").certificate, Authority("bank.example").certificate
    signing = {"kty": "EC", "use": "jwt-svid", "kid": "1", "crv": "P-256", "x": "a", "y": "b"}
    assert read_bundle(jwks(signing, jwk(first, second), jwk(second, use="other"))) == (first,)


def test_a_jwks_without_keys_distrusts_everybody() -> None:
    assert read_bundle(b' {"keys": []}') == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no certificate",
        b"{}",
        b'{"keys": null}',
        b'{"keys": [{"use": "x509-svid"}]}',
        b'{"keys": [{"use": "x509-svid", "x5c": ["!"]}]}',
        b'{"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}',
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ],
)
def test_a_broken_bundle_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"holds no readable PEM certificate|is not a SPIFFE bundle"):
        read_bundle(data)


def test_a_leaf_is_no_authority() -> None:
    leaf = Authority("bank.example").issue("ns/a")
    for data in (leaf.certificate_pem, jwks(jwk(leaf.certificate))):
        with pytest.raises(ValueError, match="not a CA certificate"):
            read_bundle(data)


# the registry


def entry(spiffe_id: str, database: str) -> Identity:
    return Identity(spiffe_id=spiffe_id, database=database)


REGISTRY = Registry(
    [
        entry("spiffe://bank.example/*", "all"),
        entry("spiffe://bank.example/ns/*", "namespaces"),
        entry("spiffe://bank.example/ns/fraud/*", "fraud"),
        entry("spiffe://bank.example/ns/fraud/sa/scorer", "scorer"),
        entry("spiffe://partner.example/auditor", "partner"),
    ]
)


@pytest.mark.parametrize(
    ("text", "database"),
    [
        ("spiffe://bank.example/ns/fraud/sa/scorer", "scorer"),
        ("spiffe://bank.example/ns/fraud/sa/scorer/x", "fraud"),
        ("spiffe://bank.example/ns/fraud/sa/scorer2", "fraud"),
        ("spiffe://bank.example/ns/fraud", "namespaces"),
        ("spiffe://bank.example/ns/frauds/a", "namespaces"),
        ("spiffe://bank.example/ns", "all"),
        ("spiffe://bank.example/x/y/z", "all"),
        ("spiffe://partner.example/auditor", "partner"),
        ("spiffe://partner.example/auditor/x", None),
        ("spiffe://partner.example/AUDITOR", None),
        ("spiffe://other.example/ns/fraud/sa/scorer", None),
        ("spiffe://bank.example", None),
    ],
)
def test_the_longest_match_wins(text: str, database: str | None) -> None:
    found = REGISTRY.find(parse_spiffe_id(text))
    assert (found.database if found else None) == database


def test_who_is_not_registered_is_refused() -> None:
    with pytest.raises(Refusal) as caught:
        REGISTRY.agent(parse_spiffe_id("spiffe://other.example/a"))
    refusal = caught.value
    assert (refusal.control, refusal.sqlstate, refusal.fatal) == ("ID-05", "28000", True)


def test_the_fingerprint_covers_all_that_the_policy_sees() -> None:
    def agent(path: str = "a", cert: str = "00", **changes: object) -> str:
        identity = Identity(spiffe_id=f"spiffe://bank.example/{path}", database="bank", **changes)
        return Registry([identity]).agent(SpiffeId("bank.example", (path,)), cert_sha256=cert).fingerprint

    same = agent(attributes={"x": 1, "y": 2})
    assert same == agent(attributes={"y": 2, "x": 1})
    others = [
        agent(),
        agent("b"),
        agent(cert="01"),
        agent(scopes=("s",)),
        agent(scopes=("s", "t")),
        agent(attributes={"x": 1}),
        agent(attributes={"x": "1"}),
        agent(attributes={"x": True}),
    ]
    assert len({same, *others}) == len(others) + 1


def test_the_document_is_the_contract_of_the_policy() -> None:
    identity = Identity(
        spiffe_id="spiffe://bank.example/ns/*", database="bank", scopes=("read",), attributes={"branch": "0042"}
    )
    agent = Registry([identity]).agent(SpiffeId("bank.example", ("ns", "a")), cert_sha256="ab")
    assert agent.document == {
        "spiffe_id": "spiffe://bank.example/ns/a",
        "trust_domain": "bank.example",
        "path": ("ns", "a"),
        "cert_sha256": "ab",
        "scopes": ("read",),
        "attributes": {"branch": "0042"},
    }


# chains


def intermediate(root: Authority, *, ends: dt.timedelta = DAY, path_length: int | None = 0) -> Authority:
    """A CA that the root has issued."""
    made = Authority(root.trust_domain)
    made.certificate = (
        x509.CertificateBuilder()
        .subject_name(made.certificate.subject)
        .issuer_name(root.certificate.subject)
        .public_key(made.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(made.key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False)
        .sign(root.key, hashes.SHA256())
    )
    return made


def test_an_intermediate_may_stand_between_and_its_end_is_the_session_s() -> None:
    root = Authority("bank.example")
    between = intermediate(root, ends=dt.timedelta(hours=1))
    leaf = between.issue("ns/a", valid_for=dt.timedelta(minutes=30)).certificate
    longer = _reissued(between, leaf)
    bundles = {"bank.example": (root.certificate,)}
    chain = [der(longer), der(between.certificate)]
    assert identify(chain, bundles, REGISTRY).not_after == between.certificate.not_valid_after_utc
    with pytest.raises(Refusal) as caught:
        identify(chain[:1], bundles, REGISTRY)
    assert caught.value.control == "ID-02"


def _reissued(signer: Authority, like: x509.Certificate) -> x509.Certificate:
    """The same leaf, valid for longer than its issuer."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(like.subject)
        .issuer_name(like.issuer)
        .public_key(like.public_key())
        .serial_number(like.serial_number)
        .not_valid_before(like.not_valid_before_utc)
        .not_valid_after(NOW + 10 * DAY)
    )
    for extension in like.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(signer.key, hashes.SHA256())


def test_an_intermediate_may_be_the_anchor_itself() -> None:
    between = intermediate(Authority("bank.example"))
    leaf = between.issue("ns/a")
    assert identify([der(leaf.certificate)], {"bank.example": (between.certificate,)}, REGISTRY).path == ("ns", "a")


def test_a_leaf_cannot_issue_another() -> None:
    root = Authority("bank.example")
    first = root.issue("ns/a")
    rogue = Authority("bank.example")
    rogue.certificate, rogue.key = first.certificate, first.key
    second = rogue.issue("ns/fraud/sa/scorer")
    with pytest.raises(Refusal) as caught:
        identify([der(second.certificate), der(first.certificate)], {"bank.example": (root.certificate,)}, REGISTRY)
    assert caught.value.control == "ID-02"


def test_an_intermediate_of_another_domain_is_no_bridge() -> None:
    bank, partner = Authority("bank.example"), Authority("partner.example")
    bridge = intermediate(partner)
    bridge.trust_domain = "bank.example"
    leaf = bridge.issue("ns/a")
    bundles = {"bank.example": (bank.certificate,), "partner.example": (partner.certificate,)}
    with pytest.raises(Refusal) as caught:
        identify([der(leaf.certificate), der(bridge.certificate), der(partner.certificate)], bundles, REGISTRY)
    assert caught.value.control == "ID-02"


def test_time_is_taken_from_the_caller() -> None:
    root = Authority("bank.example")
    leaf = root.issue("ns/a")
    bundles = {"bank.example": (root.certificate,)}
    assert identify([der(leaf.certificate)], bundles, REGISTRY, now=NOW + DAY / 2).path == ("ns", "a")
    for now in (NOW - DAY, NOW + 2 * DAY):
        with pytest.raises(Refusal) as caught:
            identify([der(leaf.certificate)], bundles, REGISTRY, now=now)
        assert caught.value.control == "ID-01"


@pytest.mark.parametrize("chain", [[], [b""], [b"garbage"]])
def test_what_is_no_certificate_is_refused(chain: list[bytes]) -> None:
    with pytest.raises(Refusal) as caught:
        identify(chain, {}, REGISTRY)
    assert (caught.value.control, caught.value.sqlstate) == ("ID-01", "28000")


def test_a_duplicated_extension_is_refused() -> None:
    root = Authority("bank.example")
    issued = root.issue("ns/a")
    san = b"\x06\x03\x55\x1d\x11"
    twisted = der(issued.certificate).replace(b"\x06\x03\x55\x1d\x0e", san)  # the key identifier becomes a second SAN
    assert twisted.count(san) == 2
    with pytest.raises(Refusal) as caught:
        identify([twisted], {"bank.example": (root.certificate,)}, REGISTRY)
    assert caught.value.control == "ID-01"


def test_keys_are_hidden_in_repr() -> None:
    issued = Issued(Authority("bank.example").certificate, ec.generate_private_key(ec.SECP256R1()))
    assert "key=<hidden>" in repr(issued)
