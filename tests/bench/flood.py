"""What a flood of connections to node 0 costs: `python tests/bench/flood.py [PAIRS] [RATE]`, 3 pairs and 1000 a second if not said.

`bandwidth` runs on two hosts made of namespaces; a third one on the same switch connects to node 0's agent all the time: with nothing said,
with random bytes, with a browser's words, and with the first words of an agent of another run. Each run has its like without a flood.

The flood itself needs a core, as an attacker's machine has one of its own. Where this machine has spare cores, ranks and agents are bound
to the others; where it has not, the run without a flood is accompanied by the same flood against a port of the third host itself, so
that both runs share the machine with an equal one: what differs is what node 0 has to do.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from lab import Host  # noqa: E402
from pyroute2 import IPRoute  # noqa: E402
from running import SOON, Job, until  # noqa: E402

PORT = 29600
SECONDS = 20.0
FLOOD = """
import os, socket, sys, time
from ncclcheck.handshake import LINE
from ncclcheck.secure_channel import Asker, agree
address, port, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
if address == "self":
    listener = socket.create_server(("10.78.0.3", port), backlog=4096)
    if not os.fork():
        while True:
            listener.accept()[0].close()
    address = "10.78.0.3"
said = [b"", os.urandom(90), b"GET / HTTP/1.1\\r\\n\\r\\n", LINE + Asker(agree(LINE, os.urandom(32))).hello]
print("ready", flush=True)
begun, made, held = time.monotonic(), 0, []
while True:
    ahead = begun + made / rate - time.monotonic()
    if ahead > 0:
        time.sleep(ahead)
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((address, port))
    held.append(sock)
    made += 1
    if len(held) > 100:
        try:
            held[-50].send(said[made % 4])
        except OSError:
            pass
        held.pop(0).close()
    if made % 1000 == 0:
        print(made, time.monotonic() - begun, flush=True)
"""


class Switch:
    """Hosts `a`, `b` and `c` (10.78.0.1 to 3) on one switch, which is in a namespace of its own."""

    def __init__(self, folder: Path) -> None:
        names = "127.0.0.1 localhost\n"
        self.hosts = [Host(name, f"10.78.0.{index}", names, folder) for index, name in enumerate("abc", 1)]
        self._switch = Host("switch", "", names, folder)
        with IPRoute(netns=f"/proc/{self._switch.pid}/ns/net") as ip:
            ip.link("add", ifname="bridge", kind="bridge")
            (bridge,) = ip.link_lookup(ifname="bridge")
            ip.link("set", index=bridge, state="up")
            for host in self.hosts:
                ip.link("add", ifname=f"to-{host.name}", kind="veth", peer={"ifname": host.interface, "net_ns_pid": host.pid})
                (port,) = ip.link_lookup(ifname=f"to-{host.name}")
                ip.link("set", index=port, state="up", master=bridge)
        for host in self.hosts:
            with IPRoute(netns=f"/proc/{host.pid}/ns/net") as ip:
                for index in (*ip.link_lookup(ifname="lo"), *ip.link_lookup(ifname=host.interface)):
                    ip.link("set", index=index, state="up")
                ip.addr("add", index=ip.link_lookup(ifname=host.interface)[0], address=host.address, prefixlen=24)

    def close(self) -> None:
        """All of it is gone."""
        for host in (*self.hosts, self._switch):
            host.close()


@contextlib.contextmanager
def flood(host: Host, target: str, rate: float, cores: str) -> Iterator[None]:
    """Connections from a host to node 0, or to itself."""
    command = [*host.enter, "taskset", "-c", cores, sys.executable, "-c", FLOOD, target, str(PORT), str(rate)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, env={**os.environ, "PYTHONPATH": str(TESTS.parent)})
    assert process.stdout and process.stdout.readline() == b"ready\n"
    try:
        yield
    finally:
        os.killpg(process.pid, 9)
        told = process.communicate()[0].split()
        print(f"    {float(told[-2]) / float(told[-1]):.0f} connections a second" if told else "    a short one", file=sys.stderr)


def once(switch: Switch, folder: Path, cores: str) -> tuple[float, str, int]:
    """Seconds of a run of `bandwidth` on the first two hosts, its verdict, and the strangers that it counted."""
    common = (
        "probe",
        "bandwidth",
        "--nnodes",
        "2",
        "--master",
        "10.78.0.1",
        "--nproc-per-node",
        "1",
        "--format",
        "json",
        "--token",
        "a-token-of-the-bench",
    )
    jobs: list[Job] = []
    began = time.monotonic()
    for rank, host in enumerate(switch.hosts[:2]):
        place = folder / f"{began}-{rank}"
        command = (*host.enter, "taskset", "-c", cores, "env", f"--chdir={place}", sys.executable, "-m", "ncclcheck")
        env = {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": host.interface, "PYTHONPATH": str(TESTS.parent)}
        jobs.append(Job(place, *common, "--node-rank", str(rank), command=command, env=env))
    try:
        until(lambda: all(job.process.poll() is not None for job in jobs), 3 * SOON, "the end of both agents")
        took = time.monotonic() - began
        report = jobs[0].report
        return took, report["status"], report["run"].get("strangers", {}).get("connections", 0)
    finally:
        for job in jobs:
            job.kill()


def main(pairs: int, rate: float) -> None:
    """A line for each pair, and the ratio of the medians."""
    allowed = sorted(os.sched_getaffinity(0))
    spare = len(allowed) >= 4
    theirs, ours = (f"{allowed[-2]},{allowed[-1]}", ",".join(map(str, allowed[:-2]))) if spare else (",".join(map(str, allowed)),) * 2
    took: dict[str, list[float]] = {"self" if not spare else "nobody": [], "10.78.0.1": []}
    with tempfile.TemporaryDirectory() as folder:
        switch = Switch(Path(folder))
        try:
            for pair in range(pairs):
                for target, seconds in list(took.items())[:: 1 if pair % 2 else -1]:
                    with contextlib.nullcontext() if target == "nobody" else flood(switch.hosts[2], target, rate, theirs):
                        one, status, strangers = once(switch, Path(folder), ours)
                    seconds.append(one)
                    print(f"flood against {target}: {status.upper()} after {one:.1f} s, {strangers} strangers", flush=True)
        finally:
            switch.close()
    without, under = (statistics.median(seconds) for seconds in took.values())
    print(f"median {under:.1f} s under a flood, {without:.1f} s without: {under / without:.2f}")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(int(words[0]) if words else 3, float(words[1]) if len(words) > 1 else 1000.0)
