"""What agents say arrives whole at those who have the run's token, and at nobody else, whoever stands at the door."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from doorstep import BOUND, HELLO, KEY, OTHER_KEY, Doorstep, answer, descriptors, hello, plays, received, say, until
from hypothesis import given, settings
from hypothesis import strategies as st

from ncclcheck import connection, handshake, newcomers, run_token, transport, wire
from ncclcheck.secure_channel import Asker, agree

# -- agents ----------------------------------------------------------------------------------------------------------


@settings(max_examples=5)
@given(st.text(max_size=20), st.text(max_size=20))
def test_the_same_token_gives_the_same_key_and_another_gives_another(one: str, other: str) -> None:
    assert len(run_token.derive_key(one)) == 32
    assert (run_token.derive_key(one) == run_token.derive_key(other)) == (one == other)


@pytest.mark.parametrize("address, other", [("127.0.0.1", "127.0.0.2"), ("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
@plays
async def test_a_server_speaks_to_its_clients_and_listens_on_its_own_address_only(address: str, other: str) -> None:
    try:
        opened = Doorstep(address)
    except OSError as error:
        pytest.skip(f"{address}: {error}")
    async with opened as line:
        line.open()
        first, second = line.client(), line.client()
        peer, other_peer = await line.arrives(first, HELLO), await line.arrives(second, wire.Goodbye("x"))
        assert peer != other_peer and line.server.address(peer) == address
        line.server.send(peer, wire.Welcome("run", 1))
        line.server.send(other_peer, wire.Welcome("run", 2))
        line.server.send_all([peer, other_peer], wire.Beat())
        assert [await received(first), await received(first)] == [wire.Welcome("run", 1), wire.Beat()]
        assert [await received(second), await received(second)] == [wire.Welcome("run", 2), wire.Beat()]
        assert (line.server.strangers, line.server.wrong_keys, line.server.wrong_versions) == ({}, {}, {})
        with pytest.raises(OSError):
            await asyncio.open_connection(other, line.port)


@plays
async def test_node_0_speaks_to_its_own_agent_without_the_network() -> None:
    async with Doorstep() as line:
        line.open()
        agent = line.server.local()
        peer = await line.arrives(agent, HELLO)
        line.server.send(peer, wire.Beat())
        assert await received(agent) == wire.Beat()
        assert line.server.address(peer) == ""


@plays
async def test_an_agent_that_was_there_first_meets_the_server_when_it_comes() -> None:
    async with Doorstep() as line:
        early = line.client()
        early.send(wire.Goodbye("nobody is there to hear this"))
        line.open()
        await line.arrives(early, HELLO)
        assert {message for _, message in line.heard if isinstance(message, wire.Goodbye)} == set()
        assert early.refused == 0


@plays
async def test_a_message_as_large_as_may_be_arrives_whole_in_both_directions() -> None:
    overhead = len(wire.encode(wire.Result(b"x" * 2**19))) - 2**19
    large = wire.Result(random.randbytes(wire.MAX_MESSAGE - overhead))
    async with Doorstep() as line:
        agent = line.open().client()
        peer = await line.arrives(agent, HELLO)
        agent.send(large)
        line.server.send(peer, large)
        line.server.send(peer, wire.Beat())
        assert [await received(agent), await received(agent)] == [large, wire.Beat()]
        await until(lambda: (peer, large) in line.heard)


@plays
async def test_an_agent_whose_connection_is_lost_comes_back_as_the_same_peer() -> None:
    async with Doorstep() as line:
        agent = line.open().client()
        peer = await line.arrives(agent, HELLO)
        assert agent._connection
        agent._connection._sock.shutdown(socket.SHUT_RDWR)
        assert await line.arrives(agent, wire.Goodbye("back")) == peer


@plays
async def test_each_end_knows_when_the_other_has_closed_the_connection() -> None:
    async with Doorstep() as line:
        agent = line.open().client()
        await line.arrives(agent, HELLO)
        assert agent.closed is None and line.server.closed == {}
        await line.server.close()
        await until(lambda: agent.closed)
    async with Doorstep() as line:
        agent = line.open().client()
        await line.arrives(agent, HELLO)
        await agent.close()
        await until(lambda: line.server.closed.get("127.0.0.1"))
        await line.arrives(line.client(), wire.Beat())
        assert line.server.closed == {}


@plays
async def test_what_was_said_before_an_end_is_closed_still_arrives() -> None:
    async with Doorstep() as line:
        agent = line.open().client()
        peer = await line.arrives(agent, HELLO)
        line.server.send(peer, large := wire.Result(bytes(2**19)))
        closing = asyncio.create_task(line.server.close())
        assert await received(agent) == large
        await closing
    async with Doorstep() as line:
        agent = line.open().client()
        peer = await line.arrives(agent, HELLO)
        for _ in range(10):
            line.server.send(peer, wire.Beat())  # not read: a careless close would lose what goes the other way
        agent.send(large)
        agent.send(wire.Ack())
        await agent.close()
        await until(lambda: (peer, wire.Ack()) in line.heard)
        assert (peer, large) in line.heard


@plays
async def test_a_peer_that_was_ended_hears_what_was_sent_to_it_and_does_not_come_back() -> None:
    async with Doorstep() as line:
        agent = line.open().client()
        peer = await line.arrives(agent, HELLO)
        line.server.send(peer, wire.Result(b"no"))
        line.server.end(peer)
        assert await received(agent) == wire.Result(b"no")
        await until(lambda: agent.closed)
        before = list(line.heard)
        await line.arrives(line.client(), wire.Beat())
        agent.send(wire.Goodbye("still here"))
        assert [message for _, message in line.heard if message == wire.Goodbye("still here")] == [] and before == line.heard[: len(before)]


# -- tokens and versions ---------------------------------------------------------------------------------------------


@plays
async def test_who_has_another_token_is_never_answered_and_is_counted_and_told_so() -> None:
    async with Doorstep() as line:
        line.open()
        stranger = line.client(OTHER_KEY)
        await until(lambda: line.server.wrong_keys.get("127.0.0.1", 0) >= 2)
        assert stranger.refused >= 1
        stranger.send(HELLO)
        sock = await line.knock()
        await say(sock, hello(key=OTHER_KEY))
        assert await answer(sock) == b""
        sock.close()
        await line.arrives(line.client(), wire.Goodbye("one of us"))
        assert {type(message) for _, message in line.heard} == {wire.Goodbye}
        assert line.server.strangers.keys() == line.server.wrong_keys.keys() == {"127.0.0.1"}


OLD = handshake.MAGIC + b"0001\n"


@plays
async def test_who_has_the_token_and_another_version_is_recognised_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Doorstep() as line:
        line.open()
        monkeypatch.setattr(handshake, "LINE", OLD)  # (the server has its own by now)
        old = line.client()
        await until(lambda: old.wrong_version)
        assert (old.wrong_version, old.refused) == (wire.PROTOCOL, 0)
        assert line.server.wrong_versions == {"127.0.0.1": 1}
        assert (line.server.strangers, line.server.wrong_keys) == ({}, {})


@plays
async def test_who_has_another_version_and_not_the_token_gets_no_answer() -> None:
    async with Doorstep() as line:
        line.open()
        sock = await line.knock()
        await say(sock, hello(OLD, OTHER_KEY))
        assert await answer(sock) == b""
        sock.close()
        assert (line.server.wrong_versions, line.server.wrong_keys) == ({}, {"127.0.0.1": 1})


@plays
async def test_who_only_looks_is_answered_and_is_neither_a_peer_nor_a_stranger() -> None:
    async with Doorstep() as line:
        line.open()
        peer = await line.peer(handshake.LOOKING)
        assert await answer(peer.sock) == b""
        peer.sock.close()
        assert (line.heard, line.server.strangers) == ([], {})


# -- strangers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00", bytes(4096), handshake.MAGIC + b"abcd\n" + bytes(48), handshake.LINE + bytes(48)],
    ids=["browser", "TLS", "zeros", "no number", "no key"],
)
@plays
async def test_who_says_something_else_is_hung_up_on_without_a_word(said: bytes) -> None:
    async with Doorstep() as line:
        agent = line.open().client()
        await line.arrives(agent, HELLO)
        for index in range(1, 4):
            sock = await line.knock()
            await say(sock, said)
            assert await answer(sock) == b""
            sock.close()
            assert line.server.strangers == {"127.0.0.1": index}
        await line.arrives(agent, wire.Goodbye("still here"))


@plays
async def test_random_bytes_at_every_point_of_a_handshake_disturb_nobody() -> None:
    dice = random.Random(7)
    async with Doorstep() as line:
        agent = line.open().client()
        await line.arrives(agent, HELLO)
        for _ in range(200):
            sock, said = await line.knock(), hello()
            cut = dice.randrange(len(said))
            await say(sock, said[:cut] + dice.randbytes(len(said) - cut + dice.choice([0, 35, 400])))
            if dice.random() < 0.5:
                await answer(sock)
            sock.close()
        await line.arrives(agent, wire.Goodbye("still here"))
        assert {peer for peer, _ in line.heard} == {line.heard[0][0]}


@plays
async def test_a_hello_that_is_repeated_gets_an_answer_of_some_bytes_and_makes_no_peer() -> None:
    async with Doorstep() as line:
        line.open()
        sock, loop = await line.knock(), asyncio.get_running_loop()
        asker = Asker(agree(handshake.LINE, KEY))
        await loop.sock_sendall(sock, handshake.LINE + asker.hello)
        seal, _ = asker.finish(await answer(sock))
        proof = connection.record(seal, os.urandom(handshake.IDENTITY))
        await loop.sock_sendall(sock, proof + connection.record(seal, wire.encode(HELLO)))
        await until(lambda: line.heard)
        again = await line.knock()
        await say(again, handshake.LINE + asker.hello + proof)
        said = await answer(again)
        assert len(said) <= handshake.HELLO
        assert await answer(again) == b""
        assert line.server.strangers == {"127.0.0.1": 1}
        line.server.send(line.heard[0][0], wire.Beat())  # the real one has kept its place
        assert len(await answer(sock)) > 0 and len(line.heard) == 1
        again.close()
        sock.close()


@plays
async def test_nobody_takes_the_place_of_a_peer_whose_identity_it_does_not_know() -> None:
    async with Doorstep() as line:
        line.open()
        identity = os.urandom(handshake.IDENTITY)
        one = await line.peer(identity)
        await one.say(wire.encode(HELLO))
        await until(lambda: line.heard)
        other = await line.peer()  # has the token, and another identity
        await other.say(wire.encode(wire.Beat()))
        await until(lambda: len(line.heard) == 2)
        (peer, _), (other_peer, _) = line.heard
        assert peer != other_peer
        line.server.send(peer, wire.Beat())
        assert len(await answer(one.sock)) > 0
        same = await line.peer(identity)
        assert await answer(one.sock) == b""  # its owner has come back
        line.server.send(peer, wire.Beat())
        assert len(await answer(same.sock)) > 0
        for end in (one, other, same):
            end.sock.close()


@plays
async def test_a_slow_sender_is_a_stranger_until_it_is_done_and_has_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "BOUND", 0.5)
    async with Doorstep() as line:
        line.open()
        sock, said = await line.knock(), hello()
        for byte in itertools.cycle(said[:20]):
            try:
                await asyncio.get_running_loop().sock_sendall(sock, bytes([byte]))
            except ConnectionError:
                break
            await asyncio.sleep(0.05)
        sock.close()
        half, silent = await line.knock(), await line.knock()
        await say(half, said)
        assert len(await answer(half)) == 48
        assert [await answer(half), await answer(silent)] == [b"", b""]
        half.close()
        silent.close()
        assert line.server.strangers == {"127.0.0.1": 3}


@plays
async def test_in_a_crowd_the_oldest_goes_and_an_agent_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "MOST", 50)
    monkeypatch.setattr(newcomers, "BOUND", 10 * BOUND)
    async with Doorstep() as line:
        line.open()
        crowd = [await line.knock() for _ in range(120)]
        await line.arrives(line.client(), HELLO)
        assert [await answer(sock) for sock in crowd[:70]] == [b""] * 70
        assert line.server.strangers["127.0.0.1"] >= 70
        for sock in crowd:
            sock.close()


@plays
async def test_strangers_are_named_until_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: newcomers.Counts = {}
    for index in range(newcomers.MOST_NAMED + 30):
        newcomers.count(counts, f"10.0.{index // 256}.{index % 256}")
    newcomers.count(counts, "10.0.0.0")
    assert len(counts) == newcomers.MOST_NAMED + 1
    assert (counts["10.0.0.0"], counts[newcomers.OTHERS]) == (2, 30)


# -- peers that have the token and keep no rule ----------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["sealed with another key", "too long", "larger than a message may be", "of nothing", "repeated"])
@plays
async def test_a_peer_that_breaks_a_rule_of_the_wire_is_dropped_and_the_others_stay(wrong: str) -> None:
    async with Doorstep() as line:
        agent = line.open().client()
        await line.arrives(agent, HELLO)
        peer, loop = await line.peer(), asyncio.get_running_loop()
        await peer.say(wire.encode(wire.Goodbye("a peer")))
        await until(lambda: len(line.heard) > 1)
        if wrong == "sealed with another key":
            await say(peer.sock, b"\0\x20" + bytes(32))
        elif wrong == "too long":
            await say(peer.sock, b"\xff\xff" + bytes(65535))
        elif wrong == "of nothing":
            await peer.say(b"", last=False)
        elif wrong == "repeated":
            twice = connection.record(peer.seal, wire.encode(wire.Beat()))
            await say(peer.sock, twice + twice)
        else:
            for _ in range(wire.MAX_MESSAGE // connection.RECORD + 1):
                await say(peer.sock, connection.record(peer.seal, bytes(connection.RECORD), False))
        while await answer(peer.sock):
            pass
        peer.sock.close()
        await line.arrives(agent, wire.Goodbye("still here"))
        assert loop.is_running()


@plays
async def test_what_waits_for_a_peer_that_does_not_read_is_bounded_and_the_peer_is_dropped() -> None:
    async with Doorstep() as line:
        agent = line.open().client()
        others = await line.arrives(agent, HELLO)
        deaf = await line.peer()
        await deaf.say(wire.encode(wire.Goodbye("deaf")))
        peer = (await until(lambda: [peer for peer, message in line.heard if message == wire.Goodbye("deaf")]))[0]
        large, sent = wire.Result(bytes(2**19)), 0
        while line.server.address(peer):
            line.server.send(peer, large)
            sent += 1
            await asyncio.sleep(0)
        assert sent * 2**19 < transport.MOST_QUEUED + 64 * 2**20  # the kernel takes some
        line.server.send(others, wire.Beat())
        assert await received(agent) == wire.Beat()
        deaf.sock.close()


@plays
async def test_a_server_that_is_not_listened_to_reads_no_more_and_reads_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MOST_UNHEARD", 2**21)
    async with Doorstep() as line:
        line.server.bind(line.address, line.port)
        agent = line.client()
        await until(lambda: agent._connection)
        for _ in range(8):
            agent.send(wire.Result(bytes(2**19)))
        await until(lambda: line.server._unheard > 2**21)
        assert line.server._unheard < 2**21 + 2**20
        for _ in range(8):
            _, data = await asyncio.wait_for(line.server.receive(), BOUND)
            assert len(data) > 2**19


@plays
async def test_more_agents_than_there_may_be_are_not_let_in_and_one_that_is_there_may_come_again() -> None:
    async with Doorstep(most=2) as line:
        line.open()
        identity = os.urandom(handshake.IDENTITY)
        peers = [await line.peer(identity), await line.peer()]
        for peer in peers:
            await peer.say(wire.encode(HELLO))
        await until(lambda: len(line.heard) == 2)
        third = await line.peer()
        assert await answer(third.sock) == b""
        again = await line.peer(identity)
        await again.say(wire.encode(wire.Beat()))
        await until(lambda: len(line.heard) == 3)
        for end in (*peers, third, again):
            end.sock.close()


# -- the process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address, number", [("127.0.0.1", errno.EADDRINUSE), ("192.0.2.1", errno.EADDRNOTAVAIL)])
@plays
async def test_an_address_that_cannot_be_had_is_an_error_of_the_system(address: str, number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with Doorstep() as line:
            with pytest.raises(OSError) as error:
                line.server.bind(address, taken.getsockname()[1])
            assert error.value.errno == number


@plays
async def test_thousands_of_connections_leave_no_descriptor_and_an_agent_is_heard_all_the_time() -> None:
    async with Doorstep() as line:
        agent = line.open().client()
        await line.arrives(agent, HELLO)
        before = descriptors()
        said = [b"", b"\0", handshake.MAGIC, hello(key=OTHER_KEY), hello()]
        for turn in range(100):
            batch = [await line.knock() for _ in range(30)]
            for index, sock in enumerate(batch):
                await say(sock, said[index % len(said)])
            for sock in batch:
                sock.close()
            await line.arrives(agent, wire.Goodbye(f"{turn}"))
        await until(lambda: line.server.strangers["127.0.0.1"] == 3000)
        assert descriptors() == before


@plays
async def test_a_server_closes_while_strangers_keep_coming() -> None:
    async with Doorstep() as line:
        agent = line.open().client()
        peer = await line.arrives(agent, HELLO)
        script = "import socket, sys\nprint(flush=True)\nheld = []\nwhile True:\n try:\n  held.append(socket.create_connection(('127.0.0.1', int(sys.argv[1]))))\n except OSError:\n  pass\n held = held[-200:]"  # noqa: E501
        flood = subprocess.Popen([sys.executable, "-c", script, str(line.port)], stdout=subprocess.PIPE)
        assert flood.stdout and flood.stdout.readline()
        try:
            await until(lambda: line.server.strangers.get("127.0.0.1", 0) > 300)
            line.server.send(peer, wire.Result(b"done"))
            await asyncio.wait_for(line.server.close(), BOUND)
            assert await received(agent) == wire.Result(b"done")
        finally:
            flood.kill()
            flood.communicate()


FEW = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
sys.path[:0] = [TESTS]
from doorstep import HELLO, Doorstep, descriptors
async def scene():
    async with Doorstep() as line:
        line.open()
        print(line.port, flush=True)
        agent = line.client()
        await line.arrives(agent, HELLO)
        held = []
        if LIMIT < 100:  # nothing is left for anybody
            while True:
                try:
                    held.append(open("/dev/null"))
                except OSError:
                    break
        begun = asyncio.get_running_loop().time()
        while sum(line.server.strangers.values()) < 2000:
            await asyncio.sleep(0.02)
            agent.send(HELLO)
        if not held:
            print(open("/proc/self/limits").read().count("open files"))  # what a run opens can be opened
            from subprocess import run
            run(["true"], check=True)
            await line.arrives(line.client(), HELLO)
        for file in held:
            file.close()
        print("ok", flush=True)
asyncio.run(asyncio.wait_for(scene(), 120))
"""


@pytest.mark.parametrize("limit", [64, 256, 1024])
def test_a_crowd_where_descriptors_are_few_neither_ends_the_server_nor_takes_what_the_run_needs(limit: int) -> None:
    script = f"LIMIT, TESTS = {limit}, {str(Path(__file__).parent)!r}\n" + textwrap.dedent(FEW)
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout and server.stderr
    held: list[socket.socket] = []
    try:
        port = int(server.stdout.readline())
        while server.poll() is None:
            sock = socket.socket()
            sock.settimeout(BOUND)
            try:
                sock.connect(("127.0.0.1", port))
            except OSError:
                sock.close()
                break
            held.append(sock)
            if len(held) > 400:
                held.pop(0).close()
        out, err = server.communicate(timeout=BOUND)
        assert (server.returncode, out.split()[-1:]) == (0, ["ok"]), err
        assert err == ""
    finally:
        server.kill()
        for sock in held:
            sock.close()
