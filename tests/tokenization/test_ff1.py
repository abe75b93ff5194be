import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grille.tokenization.ff1 import FF1

VECTORS = [
    json.loads(line) for line in (Path(__file__).parent / "data" / "ff1-vectors.jsonl").read_text().splitlines()[1:]
]
VALID = [vector for vector in VECTORS if vector["result"] == "valid"]
INVALID = [vector for vector in VECTORS if vector["result"] == "invalid"]

K128 = "2B7E151628AED2A6ABF7158809CF4F3C"
K192 = K128 + "EF4359D8D580AA4F"
K256 = K192 + "7F036D6F04FC6A94"
TWEAK10 = "39383736353433323130"
TWEAK11 = "3737373770717273373737"
NIST = [
    (K128, 10, "", "0123456789", "2433477484"),
    (K128, 10, TWEAK10, "0123456789", "6124200773"),
    (K128, 36, TWEAK11, "0123456789abcdefghi", "a9tv40mll9kdu509eum"),
    (K192, 10, "", "0123456789", "2830668132"),
    (K192, 10, TWEAK10, "0123456789", "2496655549"),
    (K192, 36, TWEAK11, "0123456789abcdefghi", "xbj3kv35jrawxv32ysr"),
    (K256, 10, "", "0123456789", "6657667009"),
    (K256, 10, TWEAK10, "0123456789", "1001623463"),
    (K256, 36, TWEAK11, "0123456789abcdefghi", "xs8a0azh2avyalyzuwd"),
]


@pytest.mark.parametrize(("key", "radix", "tweak", "plain", "cipher"), NIST)
def test_nist_samples(key, radix, tweak, plain, cipher):
    ff1 = FF1(bytes.fromhex(key), radix)
    numerals = [int(character, 36) for character in plain]
    expected = [int(character, 36) for character in cipher]
    assert ff1.encrypt(numerals, bytes.fromhex(tweak)) == expected
    assert ff1.decrypt(expected, bytes.fromhex(tweak)) == numerals


def test_every_valid_vector():
    assert len(VALID) == 312
    for vector in VALID:
        ff1 = FF1(bytes.fromhex(vector["key"]), vector["radix"])
        tweak = bytes.fromhex(vector["tweak"])
        assert ff1.encrypt(vector["msg"], tweak) == vector["ct"], vector["id"]
        assert ff1.decrypt(vector["ct"], tweak) == vector["msg"], vector["id"]


def test_every_valid_vector_in_batches():
    """Each vector as a batch of 9 and of 50 equal values: the plain and the NumPy path, where they apply."""
    for vector in VALID:
        ff1 = FF1(bytes.fromhex(vector["key"]), vector["radix"])
        tweak = bytes.fromhex(vector["tweak"])
        plain, cipher = ff1.halves(vector["msg"]), ff1.halves(vector["ct"])
        for size in (9, 50):
            assert ff1.encrypt_halves(len(vector["msg"]), [plain] * size, tweak) == [cipher] * size, vector["id"]
            assert ff1.decrypt_halves(len(vector["msg"]), [cipher] * size, tweak) == [plain] * size, vector["id"]


def test_every_invalid_vector_is_refused():
    assert len(INVALID) == 187
    for vector in INVALID:
        with pytest.raises(ValueError):
            FF1(bytes.fromhex(vector["key"]), vector["radix"]).encrypt(vector["msg"], bytes.fromhex(vector["tweak"]))
        with pytest.raises(ValueError):
            FF1(bytes.fromhex(vector["key"]), vector["radix"]).decrypt(vector["msg"], bytes.fromhex(vector["tweak"]))


@given(
    key=st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    radix=st.integers(2, 65536),
    tweak=st.binary(max_size=40),
    data=st.data(),
)
def test_round_trip(key, radix, tweak, data):
    numerals = data.draw(st.lists(st.integers(0, radix - 1), min_size=7, max_size=60))
    ff1 = FF1(key, radix)
    cipher = ff1.encrypt(numerals, tweak)
    assert len(cipher) == len(numerals)
    assert all(0 <= numeral < radix for numeral in cipher)
    assert ff1.decrypt(cipher, tweak) == numerals


@settings(max_examples=60)
@given(
    radix=st.sampled_from([2, 10, 26, 36, 62, 256, 65536]),
    length=st.integers(7, 24),
    tweak=st.binary(max_size=20),
    data=st.data(),
)
def test_the_three_ways_agree(radix, length, tweak, data):
    top = radix ** (length // 2) - 1, radix ** (length - length // 2) - 1
    some = st.tuples(st.integers(0, top[0]), st.integers(0, top[1]))
    batch = [*data.draw(st.lists(some, min_size=2, max_size=8)), (0, 0), top]
    ff1 = FF1(bytes(range(32)), radix)
    shape = ff1._shape(length, tweak)
    for rounds in (range(10), range(9, -1, -1)):
        one = [ff1._one(shape, halves, rounds) for halves in batch]
        if shape.one_block:
            assert ff1._plain(shape, batch, rounds) == one
        if shape.one_block and shape.fits_uint64:
            assert ff1._numpy(shape, batch, rounds) == one
        for times in (1, 4, 20):
            assert ff1._transform(length, batch * times, tweak, rounds) == one * times


def test_numpy_serves_eighteen_digits_and_a_seven_byte_tweak():
    ff1 = FF1(bytes(32), 10)
    for length in range(6, 19):
        shape = ff1._shape(length, bytes(7))
        assert shape.one_block
        assert shape.fits_uint64
    assert not ff1._shape(19, bytes(7)).fits_uint64


def test_encryption_permutes_a_small_domain():
    ff1 = FF1(bytes(16), 10)
    assert sorted(ff1.encrypt_halves(2, [(a, b) for a in range(10) for b in range(10)], b"")) == [
        (a, b) for a in range(10) for b in range(10)
    ]


def test_tweak_and_length_matter():
    ff1 = FF1(bytes(32), 10)
    assert ff1.encrypt([1] * 9, b"a") != ff1.encrypt([1] * 9, b"b")
    assert ff1.encrypt([0] * 9) != ff1.encrypt([0] * 10)[:9]


@pytest.mark.parametrize("size", [0, 1, 15, 17, 31, 33, 64])
def test_key_of_another_length_is_refused(size):
    with pytest.raises(ValueError, match="16, 24 or 32 bytes"):
        FF1(bytes(size), 10)


@pytest.mark.parametrize("radix", [-1, 0, 1, 65537])
def test_radix_out_of_range_is_refused(radix):
    with pytest.raises(ValueError, match="radix"):
        FF1(bytes(32), radix)


@pytest.mark.parametrize(("radix", "length"), [(10, 0), (10, 1), (2, 6), (9, 2), (65536, 1)])
def test_domain_below_a_hundred_is_refused(radix, length):
    with pytest.raises(ValueError, match="fewer than 100"):
        FF1(bytes(32), radix).encrypt([0] * length)


def test_long_tweak_is_refused_and_the_longest_works():
    ff1 = FF1(bytes(32), 10)
    assert ff1.decrypt(ff1.encrypt([1] * 9, bytes(65535)), bytes(65535)) == [1] * 9
    with pytest.raises(ValueError, match="65535 bytes"):
        ff1.encrypt([1] * 9, bytes(65536))


def test_numerals_out_of_range_are_refused_without_being_shown():
    with pytest.raises(ValueError, match="within 0 to 9") as caught:
        FF1(bytes(32), 10).encrypt([1, 2, 3, 4, 5, 777777])
    assert "777777" not in str(caught.value)


def test_repr_shows_no_key():
    assert repr(FF1(b"secretsecretsecretsecretsecretse", 10)) == "FF1(radix=10)"


def test_kept_shapes_are_bounded():
    ff1 = FF1(bytes(32), 10)
    for number in range(1500):
        ff1.encrypt([1] * 9, number.to_bytes(2, "big"))
    assert len(ff1._shapes) <= 1024
