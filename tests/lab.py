"""Two hosts of their own on this machine, joined by a cable, on which `ncclcheck` runs as on two nodes of a cluster."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from running import SOON, Job, environments, until

PYTHON = (sys.executable, "-m", "ncclcheck")


class Host:
    """A network, a host name and an /etc/hosts, kept by a process that ends when its standard input is closed.

    The namespaces have no name: once that process and those that entered are gone, the kernel removes them, even where the tests were killed.
    """

    def __init__(self, name: str, address: str, names: str, folder: Path) -> None:
        """`names` is what its /etc/hosts says."""
        self.name, self.address, self.interface = name, address, f"{name}-eth"
        hosts = folder / f"{name}.hosts"
        hosts.write_text(names)
        script = 'echo "$1" > /proc/sys/kernel/hostname && mount --bind "$2" /etc/hosts && echo made && exec cat'
        self._keeper = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "--propagation", "private", "sh", "-c", script, "sh", name, str(hosts)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._keeper.stdout and self._keeper.stderr
        if self._keeper.stdout.readline() != b"made\n":
            self.close()
            raise PermissionError(self._keeper.stderr.read().decode().strip())

    @property
    def pid(self) -> int:
        """The process that keeps this host."""
        return self._keeper.pid

    @property
    def enter(self) -> tuple[str, ...]:
        """What to put before a command to run it here."""
        return "nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--"

    def carrier_changes(self) -> int:
        """How often its end of the cable has come up or gone down."""
        from pyroute2 import IPRoute

        with IPRoute(netns=f"/proc/{self.pid}/ns/net") as ip:
            (cable,) = ip.get_links(ifname=self.interface)
            return int(cable.get_attr("IFLA_CARRIER_CHANGES"))

    def close(self) -> None:
        """Let the host go, with its end of the cable."""
        assert self._keeper.stdin
        self._keeper.stdin.close()
        self._keeper.wait(SOON)


class TwoHosts:
    """`node-a` (10.77.0.1) and `node-b` (10.77.0.2). Raises OSError where this user may not make them.

    As Debian writes it, each finds its own name at 127.0.1.1 and the other's at its address; `the-master` is 10.77.0.1
    to both, and `this-machine` is 127.0.1.1 to both.
    """

    def __init__(self, folder: Path) -> None:
        from pyroute2 import IPRoute

        self._folder = folder
        self._numbers = itertools.count()
        self.mark = f"NCCLCHECK_TEST={uuid.uuid4().hex}"
        self.hosts: list[Host] = []
        self._jobs: list[Job] = []
        self._others: list[subprocess.Popen[bytes]] = []
        names = "127.0.0.1 localhost\n127.0.1.1 {0} this-machine\n{1}\n10.77.0.1 the-master\n"
        try:
            self.a = self._host("node-a", "10.77.0.1", names.format("node-a", "10.77.0.2 node-b"))
            self.b = self._host("node-b", "10.77.0.2", names.format("node-b", "10.77.0.1 node-a"))
            with IPRoute() as ip:
                peer = {"ifname": self.b.interface, "net_ns_pid": self.b.pid}
                ip.link("add", ifname=self.a.interface, kind="veth", net_ns_pid=self.a.pid, peer=peer)
            for host in self.hosts:
                with IPRoute(netns=f"/proc/{host.pid}/ns/net") as ip:
                    (loopback,), (cable,) = ip.link_lookup(ifname="lo"), ip.link_lookup(ifname=host.interface)
                    ip.addr("add", index=cable, address=host.address, prefixlen=24)
                    for index in (loopback, cable):
                        ip.link("set", index=index, state="up")
            for host in self.hosts:
                with IPRoute(netns=f"/proc/{host.pid}/ns/net") as ip:
                    up = partial(_is_up, ip, host.interface)
                    until(up, SOON, f"{host.interface} to be up")  # else it changes while a test looks
        except BaseException:
            self.close()
            raise

    def _host(self, name: str, address: str, names: str) -> Host:
        host = Host(name, address, names, self._folder)
        self.hosts.append(host)
        return host

    def start(self, host: Host, *words: str, env: Mapping[str, str] | None = None) -> Job:
        """Run `ncclcheck WORDS...` on a host, in a folder of its own."""
        mark, _, value = self.mark.partition("=")
        plain = {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": host.interface, mark: value}
        folder = self._folder / f"{next(self._numbers)}-{host.name}"
        there = ("env", f"--chdir={folder}")  # entering a mount namespace leads to its root
        job = Job(folder, *words, command=(*host.enter, *there, *PYTHON), env={**plain, **(env or {})})
        self._jobs.append(job)
        return job

    def python(self, host: Host, script: str, *words: str) -> subprocess.Popen[bytes]:
        """Run a Python script on a host; returns once it has printed a line."""
        mark, _, value = self.mark.partition("=")
        command = [*host.enter, sys.executable, "-c", script, *words]
        process = subprocess.Popen(command, env={**os.environ, mark: value}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._others.append(process)
        assert process.stdout and process.stdout.readline(), f"the script on {host.name} ended: {process.wait(5)}"
        return process

    def left(self) -> list[int]:
        """Processes of any kind that were started here and still run."""
        mark = self.mark.encode()
        return [pid for pid, environ in environments() if mark in environ]

    def end(self) -> None:
        """End everything that was started here."""
        for job in self._jobs:
            job.kill()
        for process in self._others:
            process.kill()
            with contextlib.suppress(ValueError):  # a test has closed its output
                process.communicate()
            process.wait()

    def close(self) -> None:
        """End everything that was started here and let the hosts go."""
        self.end()
        for host in self.hosts:
            host.close()


def _is_up(ip: Any, interface: str) -> bool:
    (cable,) = ip.get_links(ifname=interface)
    return bool(cable.get_attr("IFLA_OPERSTATE") == "UP")
