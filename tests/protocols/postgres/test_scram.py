import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from scramp import ScramException, ScramMechanism

from grille.protocols.postgres.scram import PLAIN, PLUS, ScramError, ScramExchange, tls_server_end_point

BINDING = b"\1" * 32


def server_for(mechanism: str, password: str, binding: bytes | None = None):
    auth = ScramMechanism(PLAIN).make_auth_info(password)
    channel = ("tls-server-end-point", binding) if binding is not None else None
    return ScramMechanism(mechanism).make_server(lambda user: auth, channel_binding=channel)


def play(exchange: ScramExchange, server) -> None:
    server.set_client_first(exchange.first().decode())
    server.set_client_final(exchange.answer(server.get_server_first().encode()).decode())
    exchange.verify(server.get_server_final().encode())


@pytest.mark.parametrize("password", ["pencil", "p\u00e4ss w\u00f6rd=,", ""])
def test_the_right_password_is_proved_both_ways(password: str) -> None:
    exchange = ScramExchange([PLAIN], password)
    play(exchange, server_for(PLAIN, password))
    assert exchange.mechanism == PLAIN
    assert exchange.verified


def test_the_strongest_mechanism_is_bound_to_the_channel() -> None:
    exchange = ScramExchange([PLAIN, PLUS], "pencil", channel_binding=BINDING)
    assert exchange.mechanism == PLUS
    play(exchange, server_for(PLUS, "pencil", BINDING))
    assert exchange.verified


def test_another_channel_is_found_out() -> None:
    exchange = ScramExchange([PLAIN, PLUS], "pencil", channel_binding=BINDING)
    with pytest.raises(ScramException):
        play(exchange, server_for(PLUS, "pencil", b"\2" * 32))
    assert not exchange.verified


def test_a_server_learns_that_its_channel_binding_was_hidden() -> None:
    exchange = ScramExchange([PLAIN], "pencil", channel_binding=BINDING)
    assert exchange.first().startswith(b"y,,")


def test_without_tls_only_the_plain_mechanism_is_used() -> None:
    assert ScramExchange([PLUS, PLAIN], "pencil").mechanism == PLAIN
    with pytest.raises(ScramError):
        ScramExchange([PLUS], "pencil")


@pytest.mark.parametrize("offered", [[], ["SCRAM-SHA-1"], ["PLAIN", "OAUTHBEARER"]])
def test_no_other_mechanism_is_used(offered: list[str]) -> None:
    with pytest.raises(ScramError, match="no SCRAM-SHA-256"):
        ScramExchange(offered, "pencil", channel_binding=BINDING)


def test_the_exchange_of_rfc_7677() -> None:
    """Section 3; PostgreSQL ignores the name in the exchange, so the proof is the one for the name ``*``."""
    exchange = ScramExchange([PLAIN], "pencil", nonce="rOprNGfwEbeRWgbNEkqO")
    assert exchange.first() == b"n,,n=*,r=rOprNGfwEbeRWgbNEkqO"
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    final = exchange.answer(f"r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".encode())
    assert final.startswith(f"c=biws,r={nonce},p=".encode())


GOOD_FIRST = b"r=abc+def,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"e=other-error",
        b"r=xyz,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"r=abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"r=abc+def,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1",
        b"r=abc+def,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=99999999",
        b"r=abc+def,s=!!,i=4096",
        b"m=x," + GOOD_FIRST,
        b"\xff" + GOOD_FIRST,
    ],
)
def test_a_bad_first_message_of_the_server_ends_the_exchange(message: bytes) -> None:
    exchange = ScramExchange([PLAIN], "pencil", nonce="abc")
    exchange.first()
    with pytest.raises(ScramError):
        exchange.answer(message)


@pytest.mark.parametrize("message", [b"", b"v=AAAA", b"e=invalid-proof", b"v=!!", b"\xff"])
def test_a_server_that_does_not_know_the_password_is_not_verified(message: bytes) -> None:
    exchange = ScramExchange([PLAIN], "pencil", nonce="abc")
    exchange.first()
    exchange.answer(GOOD_FIRST)
    with pytest.raises(ScramError):
        exchange.verify(message)
    assert not exchange.verified


def test_a_step_out_of_order_ends_the_exchange() -> None:
    with pytest.raises(ScramError):
        ScramExchange([PLAIN], "pencil").verify(b"v=AAAA")


def test_a_password_that_cannot_be_prepared_is_told_without_it() -> None:
    with pytest.raises(ScramError) as caught:
        ScramExchange([PLAIN], "secret\ue000")
    assert "secret" not in str(caught.value)


def test_the_password_hides_in_repr() -> None:
    assert "pencil" not in repr(ScramExchange([PLAIN], "pencil"))


def certificate(key, algorithm) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "db")])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_the_end_point_is_hashed_as_its_signature(algorithm: hashes.HashAlgorithm) -> None:
    der = certificate(ec.generate_private_key(ec.SECP256R1()), algorithm)
    digest = hashes.Hash(algorithm)
    digest.update(der)
    assert tls_server_end_point(der) == digest.finalize()


@pytest.mark.parametrize("last_byte", [b"\x04", b"\x05"], ids=["md5", "sha1"])
def test_a_weak_hash_counts_as_sha256(last_byte: bytes) -> None:
    rsa_encryption = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01"
    strong = certificate(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    weak = strong.replace(rsa_encryption + b"\x0b", rsa_encryption + last_byte)
    assert weak != strong
    digest = hashes.Hash(hashes.SHA256())
    digest.update(weak)
    assert tls_server_end_point(weak) == digest.finalize()


def test_a_signature_without_a_hash_has_no_end_point() -> None:
    """Ed25519: RFC 5929 leaves it undefined, and PostgreSQL offers no channel binding."""
    assert tls_server_end_point(certificate(ed25519.Ed25519PrivateKey.generate(), None)) is None
