from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given
from hypothesis import strategies as st

from grille.audit import chain

# Leaves and roots of the Certificate Transparency reference tree (merkle_tree_test.cc, RFC 6962 section 2.1).
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

HEADER = chain.Header(
    chain="c",
    worker=0,
    epoch=1,
    sequence=3,
    events=2,
    first_event=7,
    previous="0" * 64,
    root="1" * 64,
    t_min="2026-11-24T00:00:00.000000Z",
    t_max="2026-11-24T00:00:01.000000Z",
    policy_revision="r1",
)

leaf_lists = st.lists(st.binary(max_size=40), max_size=70)


def tree_hash(data: list[bytes]) -> bytes:
    """MTH as RFC 6962 section 2.1 defines it, word for word."""
    if not data:
        return hashlib.sha256().digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = 1
    while k * 2 < len(data):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_hash(data[:k]) + tree_hash(data[k:])).digest()


@pytest.mark.parametrize("size", range(9))
def test_the_reference_tree_has_the_published_roots(size: int) -> None:
    assert chain.merkle_root([chain.leaf_hash(leaf) for leaf in LEAVES[:size]]).hex() == ROOTS[size]


@given(leaf_lists)
def test_the_root_is_the_one_that_the_rfc_defines(data: list[bytes]) -> None:
    assert chain.merkle_root([chain.leaf_hash(leaf) for leaf in data]) == tree_hash(data)


@given(leaf_lists, st.data())
def test_any_other_list_of_events_has_another_root(data: list[bytes], draw: st.DataObject) -> None:
    other = list(data)
    kind = draw.draw(st.sampled_from(["change", "drop", "repeat", "swap", "insert"]))
    place = draw.draw(st.integers(0, max(0, len(data) - 1)))
    if kind == "insert" or not data:
        other.insert(place, draw.draw(st.binary(max_size=40)))
    elif kind == "change":
        other[place] = draw.draw(st.binary(max_size=40))
    elif kind == "drop":
        del other[place]
    elif kind == "repeat":
        other.insert(place, other[place])
    else:
        there = draw.draw(st.integers(0, len(data) - 1))
        other[place], other[there] = other[there], other[place]
    assume(other != data)
    assert chain.merkle_root(list(map(chain.leaf_hash, other))) != chain.merkle_root(list(map(chain.leaf_hash, data)))


def test_a_node_cannot_be_passed_off_as_a_leaf() -> None:
    left, right = chain.leaf_hash(b"a"), chain.leaf_hash(b"b")
    assert chain.node_hash(left, right) == chain.merkle_root([left, right])
    assert chain.leaf_hash(left + right) != chain.node_hash(left, right)


def test_a_block_reads_back_and_is_signed(key: Ed25519PrivateKey) -> None:
    leaves = (chain.leaf_hash(b"a"), chain.leaf_hash(b"b"))
    block = chain.decode_block(chain.encode_block(chain.seal(HEADER, leaves, key)))
    assert block is not None
    assert block.leaves == leaves
    assert chain.decode_header(block.header) == HEADER
    assert chain.signed(block.header, block.signature, key.public_key())
    assert not chain.signed(block.header, block.signature, Ed25519PrivateKey.generate().public_key())
    assert not chain.signed(block.header + b" ", block.signature, key.public_key())


def test_a_signature_over_bare_header_bytes_is_not_accepted(key: Ed25519PrivateKey) -> None:
    data = msgspec.json.encode(HEADER)
    assert not chain.signed(data, key.sign(data), key.public_key())


@given(st.binary(max_size=300))
def test_garbage_is_no_block_and_raises_nothing(data: bytes) -> None:
    block = chain.decode_block(data)
    assert block is None or chain.encode_block(block) == data


def write_key(path: Path, pem: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(pem)
    path.chmod(mode)
    return path


def private_pem(key: object) -> bytes:
    return key.private_bytes(  # type: ignore[attr-defined, no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_a_signing_key_is_read_from_its_file(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    read = chain.load_signing_key(write_key(tmp_path / "key.pem", private_pem(key)))
    assert chain.fingerprint(read.public_key()) == chain.fingerprint(key.public_key())


def test_a_signing_key_that_others_may_read_is_refused(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    with pytest.raises(ValueError, match="may be read by others: chmod 600"):
        chain.load_signing_key(write_key(tmp_path / "key.pem", private_pem(key), 0o644))


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1())
    with pytest.raises(ValueError, match="not an Ed25519 key"):
        chain.load_signing_key(write_key(tmp_path / "ec.pem", private_pem(other)))
    with pytest.raises(ValueError, match="not an unencrypted PEM"):
        chain.load_signing_key(write_key(tmp_path / "garbage.pem", b"nothing"))
    public = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(ValueError, match="not an Ed25519 key"):
        chain.parse_public_key(public)


def test_a_public_key_reads_back(key: Ed25519PrivateKey) -> None:
    pem = chain.public_pem(key.public_key())
    assert chain.public_pem(chain.parse_public_key(pem)) == pem
