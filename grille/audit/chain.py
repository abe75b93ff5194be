"""Blocks of events: an RFC 6962 Merkle tree over the events, and a signed header that names the block before it.

A block is ``signature || length of header || header || leaf hashes``.  The leaf hashes are stored, so that of a damaged
block one can still say which event was changed, and so that an event may be proven without showing the others.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

HASH_BYTES: Final = 32
FIRST_PREVIOUS: Final = "0" * 64
"""``previous`` of the first block."""

_CONTEXT: Final = b"grille audit block v1\n"
_SIGNATURE_BYTES: Final = 64
_LENGTH: Final = struct.Struct(">I")


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed of a block.  Hashes are hexadecimal text."""

    chain: str
    """Random name of the chain, the same in all its blocks."""
    worker: int
    epoch: int
    """Counts the signing keys of the chain, from 1."""
    sequence: int
    """Counts blocks from 0."""
    events: int
    first_event: int
    """Sequence of the block's first event; they are consecutive."""
    previous: str
    """SHA-256 of the previous block's header bytes."""
    root: str
    """Merkle tree hash over the events' bytes (RFC 6962 section 2.1)."""
    t_min: str
    t_max: str
    """Smallest and largest time of an event in the block."""
    policy_revision: str
    """Revision of the policy bundle in force when the block was sealed."""
    key: str = ""
    """In the first block: fingerprint of the public key."""


class Block(msgspec.Struct, frozen=True):
    """A block as it is stored: the header's own bytes, their signature, and a leaf hash for each event."""

    signature: bytes
    header: bytes
    leaves: tuple[bytes, ...]


_HEADER_DECODER: Final = msgspec.json.Decoder(Header)


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf (RFC 6962 section 2.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an interior node (RFC 6962 section 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Merkle tree hash over leaf hashes (RFC 6962 section 2.1); of none it is the hash of nothing.

    Joining neighbours level by level, and lifting an odd last one unchanged, gives the RFC's tree.
    """
    if not leaves:
        return hashlib.sha256().digest()
    sha256 = hashlib.sha256
    level = list(leaves)
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        pairs = iter(level)
        level = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)] + odd
    return level[0]


def header_hash(header: bytes) -> str:
    """What the next block's ``previous`` must be."""
    return hashlib.sha256(header).hexdigest()


def seal(header: Header, leaves: Sequence[bytes], key: Ed25519PrivateKey) -> Block:
    """Sign a header over these leaf hashes."""
    data = msgspec.json.encode(header)
    return Block(signature=key.sign(_CONTEXT + data), header=data, leaves=tuple(leaves))


def signed(header: bytes, signature: bytes, key: Ed25519PublicKey) -> bool:
    """Whether the signature is this key's for these header bytes."""
    try:
        key.verify(signature, _CONTEXT + header)
    except InvalidSignature:
        return False
    return True


def decode_header(data: bytes) -> Header:
    """The header of these bytes; raises msgspec.DecodeError if they hold none."""
    return _HEADER_DECODER.decode(data)


def encode_block(block: Block) -> bytes:
    """A block's bytes."""
    return b"".join((block.signature, _LENGTH.pack(len(block.header)), block.header, *block.leaves))


def decode_block(data: bytes) -> Block | None:
    """The block of these bytes, or None if they cannot be one; nothing is verified."""
    start = _SIGNATURE_BYTES + _LENGTH.size
    if len(data) < start:
        return None
    end = start + int(_LENGTH.unpack_from(data, _SIGNATURE_BYTES)[0])
    if end > len(data) or (len(data) - end) % HASH_BYTES:
        return None
    leaves = tuple(data[i : i + HASH_BYTES] for i in range(end, len(data), HASH_BYTES))
    return Block(signature=data[:_SIGNATURE_BYTES], header=data[start:end], leaves=leaves)


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 private key of a PEM file.

    Raises ValueError, with a sentence for the operator, if others may read the file or it holds no such key; OSError if
    it cannot be read.
    """
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path} may be read by others: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{path} is not an unencrypted PEM private key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} is not an Ed25519 key: openssl genpkey -algorithm ed25519 -out {path}")
    return key


def parse_public_key(pem: bytes) -> Ed25519PublicKey:
    """The Ed25519 public key of PEM text; raises ValueError if it holds none."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("not a PEM public key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 key")
    return key


def public_pem(key: Ed25519PublicKey) -> bytes:
    """PEM text of a public key."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo (DER), hexadecimal."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
