"""The secure channel between two agents: Noise_NNpsk0_25519_ChaChaPoly_SHA256 of the Noise specification (revision 34), nothing added.

The psk is the run's key. Who has it proves so with its first message, and gets an answer; who has not can neither ask nor read.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

NAME = b"Noise_NNpsk0_25519_ChaChaPoly_SHA256"
KEY = 32  # bytes of every key
TAG = 16  # bytes that a message grows when it is sealed
HANDSHAKE = KEY + TAG  # bytes of each of the two messages of a handshake
LARGEST = 65535 - TAG  # bytes that are sealed together, at most


class Refused(ValueError):
    """What came was not sealed with the key that it should be: by a stranger, or changed on the way."""


class Cipher:
    """One direction of a channel (CipherState). Messages are opened in the order in which they were sealed, or not at all."""

    __slots__ = ("_aead", "_count")

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._count = 0

    def _nonce(self) -> bytes:
        nonce = bytes(4) + self._count.to_bytes(8, "little")
        self._count += 1
        return nonce

    def seal(self, data: bytes | memoryview, beside: bytes = b"") -> bytes:
        """`data` so that only the other end can read it, and nobody can change it or what stands `beside` it."""
        return self._aead.encrypt(self._nonce(), data, beside)

    def open(self, data: bytes | memoryview, beside: bytes = b"") -> bytes:
        """What the other end sealed. Raises Refused."""
        try:
            return self._aead.decrypt(self._nonce(), data, beside)
        except InvalidTag:
            raise Refused from None


@dataclass(frozen=True, slots=True)
class State:
    """What both ends have in common at a point of the handshake (SymmetricState, without its key)."""

    chaining: bytes
    digest: bytes

    def hashed(self, data: bytes) -> State:
        """MixHash."""
        return State(self.chaining, hashlib.sha256(self.digest + data).digest())

    def keyed(self, material: bytes) -> tuple[State, Cipher]:
        """MixKey."""
        chaining, key = _derive(self.chaining, material, 2)
        return State(chaining, self.digest), Cipher(key)

    def with_public(self, public: bytes) -> tuple[State, Cipher]:
        """The token `e` where there is a psk."""
        return self.hashed(public).keyed(public)

    def split(self) -> tuple[Cipher, Cipher]:
        """The two directions: from who asked, from who answered."""
        first, second = _derive(self.chaining, b"", 2)
        return Cipher(first), Cipher(second)


def agree(prologue: bytes, key: bytes) -> State:
    """Where a handshake begins: with a prologue that both ends know, and the run's key. It serves any number of them."""
    name = hashlib.sha256(NAME).digest()
    state = State(name, name).hashed(prologue)
    chaining, digest, _ = _derive(state.chaining, key, 3)  # MixKeyAndHash; its key is replaced before it is used
    return State(chaining, state.digest).hashed(digest)


class Asker:
    """The end that speaks first. `hello` is what it says."""

    def __init__(self, agreed: State) -> None:
        self._private = X25519PrivateKey.generate()
        public = self._private.public_key().public_bytes_raw()
        state, cipher = agreed.with_public(public)
        proof = cipher.seal(b"", state.digest)
        self.hello = public + proof
        self._state = state.hashed(proof)

    def finish(self, answer: bytes) -> tuple[Cipher, Cipher]:
        """The channel: what we seal with, what we open with. Raises Refused where whoever answered has not the run's key."""
        public, proof = answer[:KEY], answer[KEY:]
        state, _ = self._state.with_public(public)
        state, cipher = state.keyed(_exchange(self._private, public))
        if cipher.open(proof, state.digest):
            raise Refused
        return state.hashed(proof).split()


def heard(agreed: State, hello: bytes) -> State:
    """The state after a hello. Raises Refused where whoever said it has not the run's key; that is found out at little cost."""
    public, proof = hello[:KEY], hello[KEY:]
    state, cipher = agreed.with_public(public)
    if cipher.open(proof, state.digest):
        raise Refused
    return state.hashed(proof)


def answer(after: State, hello: bytes) -> tuple[bytes, Cipher, Cipher]:
    """The answer to a hello that was `heard`, and the channel: what we seal with, what we open with. Raises Refused.

    A hello may be an old one that somebody repeats. Who can seal a message for this channel said it now.
    """
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    state, _ = after.with_public(public)
    state, cipher = state.keyed(_exchange(private, hello[:KEY]))
    proof = cipher.seal(b"", state.digest)
    theirs, ours = state.hashed(proof).split()
    return public + proof, ours, theirs


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a point of low order
        raise Refused from None


def _derive(chaining: bytes, material: bytes, count: int) -> list[bytes]:
    """HKDF, as the specification has it."""
    key, made = hmac.digest(chaining, material, "sha256"), list[bytes]()
    for number in range(1, count + 1):
        made.append(hmac.digest(key, (made[-1] if made else b"") + bytes([number]), "sha256"))
    return made
