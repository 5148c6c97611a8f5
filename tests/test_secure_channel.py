"""The secure channel is the one of the Noise specification, and nothing that was changed, cut or repeated gets through it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise.connection import NoiseConnection

from ncclcheck import secure_channel as channel

PROLOGUE = b"ncclcheck 9999\n"
KEY = bytes(range(32))
AGREED = channel.agree(PROLOGUE, KEY)


def other_library(asks: bool, key: bytes = KEY, prologue: bytes = PROLOGUE) -> NoiseConnection:
    """The end of a channel as an independent implementation has it."""
    end = NoiseConnection.from_name(channel.NAME)
    end.set_psks(key)
    end.set_prologue(prologue)
    if asks:
        end.set_as_initiator()
    else:
        end.set_as_responder()
    end.start_handshake()
    return end


def met() -> tuple[channel.Cipher, channel.Cipher, channel.Cipher, channel.Cipher]:
    """A channel between two ends of ours: who asked seals and opens, who answered seals and opens."""
    asker = channel.Asker(AGREED)
    said, ours, theirs = channel.answer(channel.heard(AGREED, asker.hello), asker.hello)
    return *asker.finish(said), ours, theirs


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=8))
def test_another_implementation_answers_us_and_understands_what_we_say(said: list[tuple[bool, bytes]]) -> None:
    asker, other = channel.Asker(AGREED), other_library(asks=False)
    assert other.read_message(asker.hello) == b""
    seal, unseal = asker.finish(bytes(other.write_message()))
    for ours, data in said:
        if ours:
            assert other.decrypt(seal.seal(data)) == data
        else:
            assert unseal.open(other.encrypt(data)) == data


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=8))
def test_another_implementation_asks_and_understands_what_we_answer(said: list[tuple[bool, bytes]]) -> None:
    other = other_library(asks=True)
    hello = bytes(other.write_message())
    answer, seal, unseal = channel.answer(channel.heard(AGREED, hello), hello)
    assert other.read_message(answer) == b""
    for ours, data in said:
        if ours:
            assert other.decrypt(seal.seal(data)) == data
        else:
            assert unseal.open(other.encrypt(data)) == data


@pytest.mark.parametrize("key, prologue", [(bytes(32), PROLOGUE), (KEY, b"ncclcheck 9998\n")])
def test_another_key_or_another_prologue_is_refused_at_the_first_message(key: bytes, prologue: bytes) -> None:
    with pytest.raises(channel.Refused):
        channel.heard(AGREED, bytes(other_library(asks=True, key=key, prologue=prologue).write_message()))


@given(st.integers(0, channel.HANDSHAKE - 1), st.integers(1, 255))
def test_a_handshake_that_was_changed_on_the_way_is_refused(place: int, change: int) -> None:
    asker = channel.Asker(AGREED)
    changed = bytearray(asker.hello)
    changed[place] ^= change
    with pytest.raises(channel.Refused):
        channel.heard(AGREED, bytes(changed))
    said, _, _ = channel.answer(channel.heard(AGREED, asker.hello), asker.hello)
    changed = bytearray(said)
    changed[place] ^= change
    with pytest.raises(channel.Refused):
        asker.finish(bytes(changed))


@given(st.integers(0, channel.HANDSHAKE - 1))
def test_a_handshake_that_was_cut_is_refused(length: int) -> None:
    asker = channel.Asker(AGREED)
    said, _, _ = channel.answer(channel.heard(AGREED, asker.hello), asker.hello)
    with pytest.raises(channel.Refused):
        channel.heard(AGREED, asker.hello[:length])
    with pytest.raises(channel.Refused):
        asker.finish(said[:length])


def test_who_repeats_an_old_hello_cannot_speak_in_the_channel_that_comes_of_it() -> None:
    asker = channel.Asker(AGREED)
    said, _, theirs = channel.answer(channel.heard(AGREED, asker.hello), asker.hello)
    seal, _ = asker.finish(said)
    overheard = seal.seal(b"who I am")
    assert theirs.open(overheard) == b"who I am"
    _, _, theirs = channel.answer(channel.heard(AGREED, asker.hello), asker.hello)
    with pytest.raises(channel.Refused):
        theirs.open(overheard)


def test_an_answer_to_another_hello_is_refused() -> None:
    one, other = channel.Asker(AGREED), channel.Asker(AGREED)
    said, _, _ = channel.answer(channel.heard(AGREED, one.hello), one.hello)
    with pytest.raises(channel.Refused):
        other.finish(said)


@pytest.mark.parametrize("low", [bytes(32), b"\1" + bytes(31)])
def test_a_public_key_that_would_give_no_secret_is_refused(low: bytes) -> None:
    state, cipher = AGREED.with_public(low)
    hello = low + cipher.seal(b"", state.digest)
    with pytest.raises(channel.Refused):
        channel.answer(channel.heard(AGREED, hello), hello)


@given(st.binary(max_size=200), st.data())
def test_what_was_changed_cut_repeated_or_left_out_is_refused(text: bytes, data: st.DataObject) -> None:
    seal, _, _, unseal = met()
    sealed = seal.seal(text)
    changed = bytearray(sealed)
    changed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    for wrong in (bytes(changed), sealed[: data.draw(st.integers(0, len(sealed) - 1))], os.urandom(len(sealed))):
        seal, _, _, unseal = met()
        with pytest.raises(channel.Refused):
            unseal.open(wrong)
    seal, _, _, unseal = met()
    first, second = seal.seal(text), seal.seal(text)
    assert unseal.open(first) == text
    with pytest.raises(channel.Refused):
        unseal.open(first)
    seal, _, _, unseal = met()
    first, second = seal.seal(text), seal.seal(text)
    with pytest.raises(channel.Refused):
        unseal.open(second)
