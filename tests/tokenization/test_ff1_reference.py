"""FF1 against algorithms 7 and 8 of NIST SP 800-38G r1, written down step by step with no regard for speed."""

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grille.tokenization.ff1 import FF1


def prf(key: bytes, x: bytes) -> bytes:
    """Algorithm 6: CBC-MAC."""
    encryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor()
    return encryptor.update(x)[-16:]


def block(key: bytes, x: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(x)


def num(numerals: list[int], radix: int) -> int:
    """Algorithm 1."""
    x = 0
    for numeral in numerals:
        x = x * radix + numeral
    return x


def string(x: int, radix: int, m: int) -> list[int]:
    """Algorithm 3."""
    numerals = [0] * m
    for i in range(1, m + 1):
        numerals[m - i] = x % radix
        x //= radix
    return numerals


def ceil_log2(x: int) -> int:
    return (x - 1).bit_length()


def ff1(key: bytes, radix: int, tweak: bytes, x: list[int], *, decrypt: bool) -> list[int]:
    n, t = len(x), len(tweak)
    u = n // 2
    v = n - u
    a, b = x[:u], x[u:]
    width = -(-ceil_log2(radix**v) // 8)
    d = 4 * -(-width // 4) + 4
    p = bytes([1, 2, 1]) + radix.to_bytes(3, "big") + bytes([10, u % 256]) + n.to_bytes(4, "big") + t.to_bytes(4, "big")
    for i in reversed(range(10)) if decrypt else range(10):
        known = a if decrypt else b
        q = tweak + bytes((-t - width - 1) % 16) + bytes([i]) + num(known, radix).to_bytes(width, "big")
        r = prf(key, p + q)
        s = r
        for j in range(1, -(-d // 16)):
            s += block(key, bytes(one ^ other for one, other in zip(r, j.to_bytes(16, "big"), strict=True)))
        y = int.from_bytes(s[:d], "big")
        m = u if i % 2 == 0 else v
        if decrypt:
            c = (num(b, radix) - y) % radix**m
            b, a = a, string(c, radix, m)
        else:
            c = (num(a, radix) + y) % radix**m
            a, b = b, string(c, radix, m)
    return a + b


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    radix=st.one_of(st.integers(2, 65536), st.sampled_from([2, 3, 10, 26, 36, 62, 255, 256, 257, 65535, 65536])),
    length=st.one_of(st.integers(2, 40), st.integers(2, 600)),
    tweak=st.one_of(st.binary(max_size=32), st.binary(min_size=240, max_size=300)),
    data=st.data(),
)
def test_as_the_standard_says(key, radix, length, tweak, data):
    assume(radix**length >= 100)
    digit = st.one_of(st.integers(0, radix - 1), st.sampled_from([0, radix - 1]))
    numerals = data.draw(st.lists(digit, min_size=length, max_size=length))
    wanted = ff1(key, radix, tweak, numerals, decrypt=False)
    assert ff1(key, radix, tweak, wanted, decrypt=True) == numerals
    ours = FF1(key, radix)
    assert ours.encrypt(numerals, tweak) == wanted
    assert ours.decrypt(wanted, tweak) == numerals
    plain, cipher = ours.halves(numerals), ours.halves(wanted)
    for size in (2, 8, 40):
        assert ours.encrypt_halves(length, [plain] * size, tweak) == [cipher] * size
        assert ours.decrypt_halves(length, [cipher] * size, tweak) == [plain] * size
