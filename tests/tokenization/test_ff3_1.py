"""FF3-1, which only decrypts: NIST's cases, and the ``ff3`` package as a second implementation."""

import json
import math
from pathlib import Path

import msgspec
import pytest
from ff3 import FF3Cipher
from ff3.ff3_test import testVectors_ACVP_AES_FF3_1 as OF_THE_PACKAGE
from hypothesis import given, settings
from hypothesis import strategies as st

from grille.tokenization import ff3_1, transformation
from grille.tokenization.embedded import EmbeddedProvider
from grille.tokenization.ff3_1 import FF3_1
from grille.tokenization.provider import ReadOnly, TokenizationError, TokenRequest, Unfit
from grille.tokenization.transformation import FPE, Key, OldFPE, Template, TemplateError, Transformation

NIST = [
    json.loads(line) for line in (Path(__file__).parent / "data" / "ff3-1-vectors.jsonl").read_text().splitlines()[1:]
]
CASES = [
    *((case["key"], case["tweak"], case["alphabet"], case["pt"], case["ct"]) for case in NIST),
    *((case["key"], case["tweak"], case["alphabet"], case["plaintext"], case["ciphertext"]) for case in OF_THE_PACKAGE),
]
KEY = bytes(range(32))
TWEAK = bytes.fromhex("D8E7920AFA330A")
OLD = Transformation(
    "old", "fpe", "old", "vault", "digits", r"(\d{3})-(\d{2})-(\d{4})", fpe_algorithm="ff3-1", supplied_tweak=TWEAK
)


def package(tweak: bytes, characters: str, key: bytes = KEY) -> FF3Cipher:
    return FF3Cipher.withCustomAlphabet(key.hex(), tweak.hex(), characters)


@pytest.mark.parametrize(("key", "tweak", "alphabet", "plain", "cipher"), CASES)
def test_published_cases(key, tweak, alphabet, plain, cipher):
    found = FF3_1(bytes.fromhex(key), len(alphabet), bytes.fromhex(tweak)).decrypt([alphabet.index(c) for c in cipher])
    assert "".join(alphabet[numeral] for numeral in found) == plain


def test_there_are_as_many_cases_as_the_page_says():
    assert (len(NIST), len(OF_THE_PACKAGE)) == (16, 18)
    assert {len(key) for key, *_ in CASES} == {32, 48, 64}


@settings(max_examples=300, deadline=None)
@given(
    key=st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    tweak=st.binary(min_size=7, max_size=7),
    radix=st.integers(2, 256),
    data=st.data(),
)
def test_undoes_what_the_package_does(key, tweak, radix, data):
    characters = "".join(chr(0x100 + numeral) for numeral in range(radix))
    least = math.ceil(math.log(1_000_000) / math.log(radix))
    length = data.draw(st.integers(least, ff3_1.longest(radix)))
    plain = data.draw(st.text(characters, min_size=length, max_size=length))
    cipher = package(tweak, characters, key).encrypt(plain)
    found = FF3_1(key, radix, tweak).decrypt([characters.index(c) for c in cipher])
    assert "".join(characters[numeral] for numeral in found) == plain


def test_the_longest_string_fills_ninety_six_bits_twice():
    assert [ff3_1.longest(radix) for radix in (2, 10, 16, 26, 64, 256, 65536)] == [192, 56, 48, 40, 32, 24, 12]


def test_nothing_encrypts():
    """Not in the mode, and not in the transformation that is made of it."""
    for kind in (FF3_1, OldFPE):
        assert not [name for name in vars(kind) if "encr" in name or "encode" in name]


@pytest.mark.parametrize("size", [0, 15, 33, 64])
def test_key_of_another_length_is_refused(size):
    with pytest.raises(ValueError, match="16, 24 or 32 bytes"):
        FF3_1(bytes(size), 10, TWEAK)


@pytest.mark.parametrize("size", [0, 6, 8])
def test_tweak_of_another_length_is_refused(size):
    with pytest.raises(ValueError, match="7 bytes"):
        FF3_1(KEY, 10, bytes(size))


@pytest.mark.parametrize("radix", [-1, 0, 1, 65537])
def test_radix_out_of_range_is_refused(radix):
    with pytest.raises(ValueError, match="radix"):
        FF3_1(KEY, radix, TWEAK)


@pytest.mark.parametrize(("radix", "length"), [(10, 0), (10, 5), (2, 19), (26, 4), (10, 57), (65536, 13)])
def test_strings_that_are_too_short_or_too_long_are_refused(radix, length):
    with pytest.raises(ValueError, match="numerals"):
        FF3_1(KEY, radix, TWEAK).decrypt([0] * length)


def test_numerals_out_of_range_are_refused_without_being_shown():
    with pytest.raises(ValueError, match="within 0 to 9") as caught:
        FF3_1(KEY, 10, TWEAK).decrypt([1, 2, 3, 4, 5, 777777])
    assert "777777" not in str(caught.value)


def test_repr_shows_no_key():
    assert repr(FF3_1(b"secretsecretsecretsecretsecretse", 10, TWEAK)) == "FF3_1(radix=10)"


async def test_old_tokens_are_read_and_none_is_made():
    provider = EmbeddedProvider([OLD], [Key("vault", 1, KEY)])
    token = package(TWEAK, "0123456789").encrypt("123456789")
    stored = f"{token[:3]}-{token[3:5]}-{token[5:]}"
    assert await provider.decode([TokenRequest("old", stored), TokenRequest("old", "no")]) == [
        "123-45-6789", Unfit("the stored value does not fit the template"),
    ]  # fmt: skip
    with pytest.raises(ReadOnly, match="'old' only reads") as caught:
        await provider.encode([TokenRequest("old", "123-45-6789")])
    assert isinstance(caught.value, TokenizationError)
    assert "6789" not in str(caught.value)


async def test_a_batch_with_one_value_for_it_makes_no_token_at_all():
    new = Transformation("new", "fpe", "new", "fpe", "digits", r"(\d{9})")
    provider = EmbeddedProvider([new, OLD], [Key("vault", 1, KEY), Key("fpe", 1, bytes(32))])
    with pytest.raises(ReadOnly):
        await provider.encode([TokenRequest("new", "123456789"), TokenRequest("old", "123-45-6789")])


@pytest.mark.parametrize(
    ("change", "keys", "why"),
    [
        ({"supplied_tweak": b""}, [Key("vault", 1, KEY)], "'old': an FF3-1 tweak has 7 bytes, not 0"),
        ({"fpe_algorithm": "ff1"}, [Key("vault", 1, KEY)], "has a tweak of its own, which only ff3-1 has"),
        ({}, [Key("vault", 1, KEY[:16])], "'vault' has 16 bytes; an fpe key has 32"),
        ({"kind": "siv", "template": ""}, [Key("vault", 1, KEY * 2)], "ff3-1 is an algorithm of fpe, not of siv"),
        ({"template": r"(\d{6,57})"}, [Key("vault", 1, KEY)], "hold up to 57 characters; ff3-1 has at most 56 of 10"),
        ({"template": "([0-9A-Za-z]{9})", "alphabet": "alphanumeric"}, [Key("vault", 1, KEY)],
         "'old': ff3-1 reads the alphabets digits, lower, upper; in which order"),
        ({"template": r"(\d{5})"}, [Key("vault", 1, KEY)], "fewer than a million"),
    ],
)  # fmt: skip
def test_bad_configurations_are_refused(change, keys, why):
    with pytest.raises(ValueError, match=why):
        EmbeddedProvider([msgspec.structs.replace(OLD, **change)], keys)


def test_a_token_domain_and_a_key_have_one_algorithm():
    new = Transformation("new", "fpe", "old", "vault", "digits", r"(\d{9})")
    with pytest.raises(ValueError, match="share the token domain 'old' but differ in kind, alphabet, key, algorithm"):
        EmbeddedProvider([OLD, new], [Key("vault", 1, KEY)])
    apart = Transformation("new", "fpe", "new", "vault", "digits", r"(\d{9})")
    with pytest.raises(ValueError, match="'vault' serves ff1 and ff3-1"):
        EmbeddedProvider([OLD, apart], [Key("vault", 1, KEY)])


def test_ff1_and_ff3_1_are_not_the_same():
    (token,) = FPE(Key("k", 1, KEY), "old", Template(OLD.template, "digits")).encode(["123-45-6789"])
    assert OldFPE(Key("k", 1, KEY), TWEAK, Template(OLD.template, "digits")).decode([token]) != ["123-45-6789"]
    assert set(transformation.PLAIN_ORDER) < set(transformation.ALPHABETS)
    with pytest.raises(TemplateError):
        OldFPE(Key("k", 1, KEY), TWEAK, Template("([0-9A-Za-z]{9})", "alphanumeric"))
