"""One node's whole part in a run: find node 0 (or be it), meet, obey, and come back with a report, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from ncclcheck import __version__, ending, outcome, received, run_token, safe_files, secrets, token_sharing, transport, triage, wire
from ncclcheck.agent import Agent, NodeLost, Paused
from ncclcheck.cluster import Cluster
from ncclcheck.collect import host, master
from ncclcheck.coordinator import Coordinator
from ncclcheck.doors import Doors
from ncclcheck.message_limits import Invalid
from ncclcheck.model import Fact, Report, Run
from ncclcheck.options import Options
from ncclcheck.permissions import Permissions, Refused
from ncclcheck.rollcall import task_fields
from ncclcheck.run_token import Token
from ncclcheck.secure_channel import KEY

SECOND_NODE0 = 8.0  # seconds in which an agent at the master address, which is not ours, must answer
MOST_EACH, MOST_MORE = 2, 64  # agents that node 0 lets in: so many for each node, and so many more
RETRY = 1.0  # seconds between two tries to resolve the master's name
REFUSALS = 3  # times that node 0 closes a connection at its beginning before that is said to be for the token


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP; args: its number."""


def run(cluster: Cluster, options: Options, token: Token | None, folder: Path, say: Callable[[str], None], show: Callable[[str], None]) -> Report:
    """Take part in one run. Raises Interrupted after everything has been ended. `folder` is where run directories are made.

    Without a `token`, it is this user's own; raises printing.Usage where that cannot be used.
    """
    return asyncio.run(_run(cluster, options, token, folder, say, show))


async def _run(
    cluster: Cluster, options: Options, token: Token | None, folder: Path, say: Callable[[str], None], show: Callable[[str], None]
) -> Report:
    work = asyncio.current_task()
    caught: list[int] = []

    def interrupt(number: int) -> None:
        caught.append(number)
        if work and len(caught) == 1:  # a second one must not cut the clean-up short
            work.cancel()

    loop = asyncio.get_running_loop()
    for number in ending.asking():
        loop.add_signal_handler(number, interrupt, number)
    try:
        report = await _Node(cluster, options, token, folder, say, show).run()
        if caught:  # it came when all was over: an interrupted run is never taken for another
            raise Interrupted(caught[0])
        if token and token.insecure:
            report = run_token.marked(report)
        if report.run.get("folders"):
            report.run["directory"] = str(folder / report.run["id"])
        return report
    except asyncio.CancelledError:
        if caught:
            raise Interrupted(caught[0]) from None
        raise


class _Node:
    def __init__(
        self, cluster: Cluster, options: Options, token: Token | None, folder: Path, say: Callable[[str], None], show: Callable[[str], None]
    ) -> None:
        self._cluster, self._options, self._token, self._folder = cluster, options, token, folder
        self._say, self._show = say, show
        self._name = host.name()
        self._permissions = Permissions(options)
        self._doors = Doors()
        self._addresses = host.addresses()
        self._started = time.monotonic()

    async def run(self) -> Report:
        """Meet and obey; or say what kept this node from it."""
        try:
            return await self._meet()
        finally:  # node 0 may wait for the others longer than its own agent works: they must not find it gone
            self._doors.close()

    async def _meet(self) -> Report:
        address, facts = await self._master()
        if facts:
            return self._alone(facts)
        first = self._cluster.node_rank == 0 or (self._cluster.node_rank is None and master.own(address, self._addresses))
        if first and not master.own(address, self._addresses):
            seen = await self._other_node0(address)
            if seen.get("answer") not in master.AGENTS:
                mine = ", ".join(sorted(found for found in self._mine() if not found.startswith(("127.", "::1", "fe80"))))
                return self._alone([replace(seen, fields={**seen.fields, "answer": "not-ours", "text": f"{self._name} has {mine}"})])
            first = False  # another agent is node 0 there: it is told of a second one
        self._token = self._token or await token_sharing.obtain(self._cluster, first, self._started + self._options.roll_call_timeout, self._say)
        if not self._token:
            fields = {
                "file": str(run_token.home_file()),
                "seconds": self._options.roll_call_timeout,
                "remedy": token_sharing.handed_on(self._cluster),
            }
            return self._alone([Fact("no-token", self._name, fields=fields)])
        key = run_token.derive_key(self._token.text)
        if not first:
            return await self._member(transport.Client(_endpoint(address, self._cluster.port), key), address, key, first=False)
        server = transport.Server(key, MOST_EACH * self._cluster.nnodes + MOST_MORE)
        try:
            try:
                server.bind(address, self._cluster.port)
            except OSError as error:
                return self._alone([self._bind(address, error)])
            coordinator = Coordinator(server, replace(self._cluster, master=address), self._options, self._folder, self._say, self._show)
            deciding = asyncio.create_task(coordinator.run())
            listening = asyncio.create_task(self._name_strangers(server))
            try:
                member = asyncio.create_task(self._member(server.local(), address, key, first=True))
                report = await deciding
                await member
                return report
            except Exception as error:
                return self._crashed(error)
            finally:
                for task in (deciding, member, listening):
                    task.cancel()
                await asyncio.gather(deciding, member, listening, return_exceptions=True)
        finally:
            await server.close()

    async def _master(self) -> tuple[str, list[Fact]]:
        """The master's numeric address; or, at the deadline, why there is none."""
        name, error = self._cluster.master, ""
        while True:
            try:
                resolved = await master.resolve(name)
            except (OSError, TimeoutError) as failed:
                error = str(failed) or f"no answer in {master.RESOLVE_BOUND:g} s"
            else:
                if self._cluster.nnodes > 1 and master.loopback_by_name(name, resolved):
                    return "", [Fact("resolve", self._name, fields={"name": name, "addresses": resolved})]
                return resolved[0], []
            left = self._started + self._options.roll_call_timeout - time.monotonic()
            if left <= 0:
                return "", [Fact("resolve", self._name, fields={"name": name, "error": error})]
            self._show(f"the master's name {name} does not resolve yet ({error}); {left:.0f} s left")
            await asyncio.sleep(min(RETRY, left))

    async def _other_node0(self, address: str) -> Fact:
        """Whether another agent answers as node 0 there; it is given a little time to come up."""
        end = time.monotonic() + min(SECOND_NODE0, self._options.roll_call_timeout)
        key = run_token.derive_key(self._token.text) if self._token else os.urandom(KEY)  # with any other key, it hangs up as an agent does
        while True:
            seen = await master.look(self._name, self._cluster.master, address, self._cluster.port, key)
            if seen.get("answer") in master.AGENTS or time.monotonic() > end:
                return seen
            self._show(f"{address} is not an address of this node; looking whether another node is node 0 there")
            await asyncio.sleep(RETRY)

    def _mine(self) -> set[str]:
        return {found for addresses in self._addresses.values() for found in addresses}

    def _bind(self, address: str, error: OSError) -> Fact:
        fields = {
            "address": address,
            "port": self._cluster.port,
            "errno": error.errno,
            "text": str(error),
            "owner": master.listener(self._cluster.port),
        }
        return Fact("bind", self._name, fields=fields)

    async def _name_strangers(self, server: transport.Server) -> None:
        """Say once, and as soon as it is seen, that somebody knocked with another token."""
        while not server.wrong_keys:
            await asyncio.sleep(RETRY)
        self._say(f"ncclcheck: {', '.join(sorted(server.wrong_keys)[:3])} knocked with another run token and was refused; {self._own_token}")

    @property
    def _own_token(self) -> str:
        return f"this node's comes from {self._token.source}; `ncclcheck explain token-mismatch`" if self._token else ""

    async def _member(self, client: transport.Client | transport.Local, address: str, key: bytes, first: bool) -> Report:
        """This node's agent, from hello to the verdict."""
        await self._doors.open(master.address_towards(address))
        agent = Agent(client, self._hello(first), self._folder, self._show, self._permissions, address, self._doors)
        work = asyncio.create_task(agent.run())
        told = False
        try:
            while not work.done() and not agent.met:
                left = self._started + self._options.roll_call_timeout - time.monotonic()
                if left <= 0:
                    work.cancel()
                    seen = await master.look(self._name, self._cluster.master, address, self._cluster.port, key)
                    return self._alone([replace(seen, fields={**seen.fields, "token_from": self._token.source if self._token else ""})])
                if not told and client.refused >= REFUSALS:
                    told = True
                    self._say(f"ncclcheck: node 0 at {self._cluster.master}:{self._cluster.port} refuses this node's run token; {self._own_token}")
                self._show(f"waiting for node 0 at {self._cluster.master}:{self._cluster.port} ({left:.0f} s left)")
                await asyncio.wait([work], timeout=min(0.5, max(left, 0.01)))
            report = received.report(await work)
            received.must_be_seen(report, agent.run_id, agent.seen, examined=self._options.examine)
            return report
        except NodeLost as lost:
            node0 = agent.lost_node0
            return self._alone([replace(node0, host=node0.host or self._cluster.master), *lost.args[0]], agent.run_id)
        except Paused as paused:
            agent.leave(reason := f"it was itself stopped for {paused.args[0]:.0f} s")
            fields = {"node_rank": self._cluster.node_rank, "reason": reason}
            return self._alone([Fact("agent-lost", self._name, fields=fields)], agent.run_id)
        except (Refused, Invalid) as error:
            agent.leave(f"{'it refused an order' if isinstance(error, Refused) else 'node 0 sent what is no order'}: {error}")
            return self._alone([_refused(self._name, error, self._cluster.master)], agent.run_id)
        except asyncio.CancelledError:
            agent.leave("interrupted")
            raise
        except Exception as error:
            agent.leave(f"{type(error).__name__}: {error}")
            return self._crashed(error)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await client.close()

    def _crashed(self, error: Exception) -> Report:
        """The report of a node on which ncclcheck itself failed; the traceback is kept beside the runs."""
        path = self._folder / f"crash-{self._name}-{os.getpid()}.txt"
        with contextlib.suppress(OSError):  # a full disk may be the very error
            safe_files.write(path, secrets.mask("".join(traceback.format_exception(error))).encode("utf-8", "replace"))
        fields = {"type": type(error).__name__, "message": str(error), "errno": getattr(error, "errno", None), "traceback": str(path)}
        return self._alone([Fact("agent-failed", self._name, fields=fields)])

    def _hello(self, first: bool) -> wire.Hello:
        """What this node says of itself; who has the master's address is number 0, said or not."""
        cluster = self._cluster
        return wire.Hello(
            wire.PROTOCOL,
            __version__,
            cluster.nnodes,
            0 if first else cluster.node_rank,
            cluster.nproc_per_node,
            self._name,
            os.getpid(),
            cluster.source,
            self._addresses,
            cast("list[wire.Gpu]", host.gpus()),
            host.versions(),
            host.nvidia_present(),
            cast("wire.Task | None", task_fields(cluster)),
            (self._doors.first.address, self._doors.first.port),
            self._doors.found,
            self._doors.secret,
            self._permissions.told,
        )

    def _alone(self, facts: list[Fact], run_id: str = "") -> Report:
        """The report of a node that could not take part to the end; with a `run_id`, it was lost in the middle."""
        cluster = self._cluster
        return outcome.of_run(
            self._options,
            run_id=run_id,
            hellos={cluster.node_rank or 0: self._hello(first=False)},
            results=[],
            findings=triage.findings(Run(facts=facts)),
            lacking=[],
            ranks={},
            added={},
            world_size=cluster.nnodes * cluster.nproc_per_node,
            seconds=time.monotonic() - self._started,
        )


def _refused(host: str, error: Refused | Invalid, master: str) -> Fact:
    """What ended this node's part: an order that its user did not permit, or a message that no node 0 of this version sends."""
    if isinstance(error, Refused):
        return Fact("order-refused", host, fields={"reason": str(error)})
    return Fact("invalid-message", master, fields={"node_rank": 0, "reason": str(error)})


def _endpoint(address: str, port: int) -> str:
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
