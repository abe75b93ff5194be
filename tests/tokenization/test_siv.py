import base64

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from hypothesis import given
from hypothesis import strategies as st

from grille.tokenization.provider import Unfit
from grille.tokenization.siv import PREFIX, SIV

KEY = bytes(range(64))
EMAILS = SIV(KEY, "email", 1)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT)
def test_round_trip(text):
    token = EMAILS.encode(text)
    assert isinstance(token, str)
    assert EMAILS.decode(token) == text
    assert EMAILS.encode(text) == token
    assert token.startswith(PREFIX)
    assert token.isascii()
    assert not set(token) & set("+/='\"\\ ")


def test_the_token_is_rfc_5297_with_two_components():
    sealed = AESSIV(KEY).encrypt(b"a@bank.example", [b"email", (1).to_bytes(8, "big")])
    assert EMAILS.encode("a@bank.example") == PREFIX + base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def test_key_domain_and_version_separate_tokens():
    token = EMAILS.encode("a@bank.example")
    for other in (SIV(KEY, "email", 2), SIV(KEY, "emai", 1), SIV(KEY[::-1], "email", 1)):
        assert other.encode("a@bank.example") != token
        assert other.decode(token) == Unfit("the stored value is not a token of this key and token domain")


def test_domain_and_version_do_not_run_into_each_other():
    assert SIV(KEY, "a", 1).encode("x") != SIV(KEY, "a" + (0).to_bytes(8, "big").decode(), 1).encode("x")


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "a@bank.example",
        PREFIX,
        PREFIX + "AAAA",
        PREFIX + "A" * 21,
        PREFIX + "!" * 24,
        PREFIX + "A" * 24 + "=",
        PREFIX + "A" * 24 + "\n",
        PREFIX + "é" * 24,
        PREFIX.upper() + "A" * 24,
    ],
)
def test_what_is_not_a_token_is_unfit(stored):
    result = EMAILS.decode(stored)
    assert isinstance(result, Unfit)
    assert "not a token" in result.reason


def test_every_flipped_character_is_unfit():
    token = EMAILS.encode("a@bank.example")
    assert isinstance(token, str)
    for position in range(len(PREFIX), len(token)):
        for other in "AZaz09-_":
            if token[position] != other:
                assert isinstance(EMAILS.decode(token[:position] + other + token[position + 1 :]), Unfit)


def test_another_spelling_of_the_same_bytes_is_unfit():
    token = EMAILS.encode("a@bank.example")
    assert isinstance(token, str)
    body = token.removeprefix(PREFIX)
    assert isinstance(EMAILS.decode(PREFIX + body.replace("-", "+").replace("_", "/") + "=" * (-len(body) % 4)), Unfit)


def test_a_token_is_not_wrapped_twice():
    token = EMAILS.encode("a@bank.example")
    assert EMAILS.encode(token) == Unfit("the value is a token already")
    assert isinstance(EMAILS.encode(PREFIX + "only looks like one"), str)


def test_bad_text_is_unfit_without_being_shown():
    for value in ("abc\ud800", "x" * 65537):
        result = EMAILS.encode(value)
        assert isinstance(result, Unfit)
        assert value not in result.reason


@pytest.mark.parametrize("size", [0, 16, 32, 48, 63, 65])
def test_key_of_another_length_is_refused(size):
    with pytest.raises(ValueError, match="64 bytes"):
        SIV(bytes(size), "email", 1)
