"""What a plan tells to start is what vLLM takes, and each form of it is valid in its own language."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ncclcheck.plan import commands, emit
from ncclcheck.plan.commands import Engine
from ncclcheck.plan.emit import Launch
from ncclcheck.plan.layout import Layout

AWKWARD = '/models/it\'s 50% of $HOME; "quoted" `rm`'
LAYOUTS = {
    "one GPU each": (Layout(1, 1, 8), 4),
    "a whole node": (Layout(4, 1, 2), 4),
    "two stages in a node": (Layout(2, 2, 2), 4),
    "two nodes": (Layout(4, 2, 1, 2), 4),
    "sliced over two nodes": (Layout(8, 1, 1, 2), 4),
    "two replicas of two nodes": (Layout(4, 2, 2, 2), 4),
}


def launch(layout: Layout, each: int, hosts: tuple[str, ...] = (), only: int | None = None, model: str = AWKWARD) -> Launch:
    engine = Engine(model, "bfloat16", 8192, 20)
    return Launch(layout, each, engine, commands.servers(layout, each, engine), hosts, only)


def hosts(nodes: int) -> tuple[str, ...]:
    return tuple(f"192.0.2.{number + 1}" for number in range(nodes))


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment in which `vllm` and what the scripts ask are programs that tell how they were called."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    told = """#!/bin/bash
env -0 > "$TOLD/$$.environment"
printf '%s\\0' "$@" > "$TOLD/$$.part" && mv "$TOLD/$$.part" "$TOLD/$$.words"
for turn in {1..200}; do  # as a server would, it stays until all of its node have come
    [ "$(ls "$TOLD"/*.words | wc -l)" -ge "${SERVERS:-1}" ] && exit 0
    sleep 0.05
done
exit 1
"""
    for name, text in {
        "vllm": told,
        "scontrol": "#!/bin/bash\nprintf '%s\\n' 192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4\n",
        "srun": '#!/bin/bash\nshift\nexec "$@"\n',
        "ip": '#!/bin/bash\necho "2: eth7    inet ${*: -1}/24 brd 127.0.0.255 scope global eth7"\n',
    }.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    (tmp_path / "told").mkdir()
    return {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told")}


def called(environment: dict[str, str]) -> list[tuple[list[str], dict[str, str]]]:
    """The arguments and the environment of each `vllm` that was started, in the order of their GPUs."""
    found = []
    for file in Path(environment["TOLD"]).glob("*.words"):
        words = file.read_text().split("\0")[:-1]
        pairs = file.with_suffix(".environment").read_text().split("\0")
        found.append((words, dict(pair.partition("=")[::2] for pair in pairs if pair)))
        file.unlink()
    return sorted(found, key=lambda one: one[1].get("CUDA_VISIBLE_DEVICES", ""))


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("form", ["shell", "slurm"])
def test_each_node_starts_its_part_and_no_other(name: str, form: str, programs: dict[str, str], tmp_path: Path) -> None:
    layout, each = LAYOUTS[name]
    work = launch(layout, each, hosts(4) if form == "shell" else ())
    script = tmp_path / "serve.sh"
    script.write_text(emit.write(work, form))
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    ports: dict[int, list[str | None]] = {}
    for node in range(work.nodes):
        expected = [server for server in work.servers if server.node == node]
        environment = {**programs, "SLURM_NODEID": str(node), "SLURM_JOB_NODELIST": "n[0-3]", "SERVERS": str(len(expected))}
        done = subprocess.run(
            ["bash", str(script), *([str(node)] if form == "shell" else [])], env=environment, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        started = called(programs)
        assert len(started) == len(expected)
        if layout.gpus < each:
            assert [variables["CUDA_VISIBLE_DEVICES"].split(",") for _, variables in started] == [
                [str(gpu) for gpu in server.gpus or ()] for server in expected
            ]
        for words, variables in started:
            assert words[:2] == ["serve", AWKWARD]
            assert (option(words, "--tensor-parallel-size"), option(words, "--pipeline-parallel-size")) == (str(layout.tp), str(layout.pp))
            if layout.nodes > 1:
                (server,) = expected
                assert (option(words, "--nnodes"), option(words, "--node-rank")) == (str(layout.nodes), str(server.place))
                assert option(words, "--master-addr") == f"192.0.2.{server.first + 1}"
                assert variables["VLLM_HOST_IP"] == f"192.0.2.{node + 1}" and variables["GLOO_SOCKET_IFNAME"] == "eth7"
                assert ("--headless" in words) == (server.place > 0) == (option(words, "--port") is None)
            else:
                assert "--nnodes" not in words and "--headless" not in words
                ports.setdefault(node, []).append(option(words, "--port"))
    assert all(len(set(found)) == len(found) for found in ports.values())


def test_replicas_of_one_node_have_gpus_and_ports_of_their_own() -> None:
    servers = launch(*LAYOUTS["one GPU each"]).servers
    assert [(server.node, server.gpus, server.port) for server in servers] == [
        (node, (gpu,), 8000 + gpu) for node in range(2) for gpu in range(4)
    ]  # fmt: skip
    assert [server.gpus for server in launch(*LAYOUTS["two stages in a node"]).servers] == [None, None]


def test_a_script_for_a_node_that_is_not_in_the_plan_fails(programs: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "serve.sh"
    script.write_text(emit.write(launch(*LAYOUTS["two nodes"]), "shell"))
    told = {"": "say the addresses of the nodes", "a b": "say the number of this node"}
    for known, said in told.items():
        done = subprocess.run(["bash", str(script)], env={**programs, "HOSTS": known}, capture_output=True, text=True, timeout=120)
        assert done.returncode != 0 and said in done.stderr
    done = subprocess.run(["bash", str(script), "2"], env={**programs, "HOSTS": "a b"}, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, "this plan has no node 2\n")


def started(names: tuple[str, ...], node: int, programs: dict[str, str], form: str = "shell") -> subprocess.CompletedProcess[str]:
    script = emit.write(launch(*LAYOUTS["two nodes"], names), form)
    return subprocess.run(["bash", "-c", script, "serve.sh", str(node)], env=programs, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["no-such-host.invalid", "127.0.1.1", "localhost", "2001:db8::1"])
def test_a_host_that_others_cannot_reach_starts_nothing(name: str, programs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "ip").write_text("#!/bin/bash\n")
    for node, names in ((0, (name, "192.0.2.2")), (1, (name, "192.0.2.2")), (1, ("192.0.2.1", name))):
        done = started(names, node, programs)
        assert done.returncode != 0 and f"{name} is not an IPv4 address" in done.stderr
    assert called(programs) == []


def test_a_node_whose_name_is_a_loopback_address_takes_the_one_that_others_see(programs: dict[str, str], tmp_path: Path) -> None:
    seen = r"2: eth7    inet 192.0.2.9/24 scope global eth7\n3: docker0    inet 172.17.0.1/16 scope global docker0\n"
    (tmp_path / "bin" / "ip").write_text(f"#!/bin/bash\nprintf '{seen}'\n")
    assert started(("localhost", "192.0.2.2"), 0, programs).returncode == 0
    ((words, variables),) = called(programs)
    assert variables["VLLM_HOST_IP"] == option(words, "--master-addr") == "192.0.2.9"
    two = r"2: eth7    inet 192.0.2.9/24 scope global eth7\n3: eth8    inet 198.51.100.9/24 scope global eth8\n"
    (tmp_path / "bin" / "ip").write_text(f"#!/bin/bash\nprintf '{two}'\n")
    assert started(("localhost", "192.0.2.2"), 0, programs).returncode != 0  # which one? not ours to guess


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_unit_is_one_that_systemd_takes(name: str, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    layout, each = LAYOUTS[name]
    work = launch(layout, each, hosts(4))
    units = emit.write(work, "systemd").split("# node ")[1:]
    assert len(units) == len(work.servers)
    for number, unit in enumerate(units):
        file = tmp_path / f"vllm{number}.service"
        file.write_text(f"# node {unit}")
        done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), unit


def test_a_unit_starts_what_the_script_starts(programs: dict[str, str]) -> None:
    """Read as systemd reads it (systemd.service(5), systemd.syntax(7)), and run."""
    work = launch(*LAYOUTS["two nodes"], hosts(2), only=1)
    line = next(line for line in emit.write(work, "systemd").splitlines() if line.startswith("ExecStart="))
    quoted = line.removeprefix("ExecStart=/bin/bash -c ")
    assert quoted[0] == quoted[-1] == '"'
    text, at = "", 1
    while at < len(quoted) - 1:
        pair = quoted[at : at + 2]
        assert quoted[at] != '"' and (quoted[at] not in "%$\\" or pair in ("%%", "$$", '\\"', "\\\\", "\\n")), quoted[at:]
        text += "\n" if pair == "\\n" else pair[1] if quoted[at] in "%$\\" else quoted[at]
        at += 2 if quoted[at] in "%$\\" else 1
    assert subprocess.run(["/bin/bash", "-c", text], env=programs, timeout=120).returncode == 0
    ((words, variables),) = called(programs)
    assert words[1] == AWKWARD and "--headless" in words and option(words, "--master-addr") == "192.0.2.1"
    assert variables["VLLM_HOST_IP"] == "192.0.2.2"


def test_units_over_nodes_need_addresses() -> None:
    with pytest.raises(ValueError, match="--hosts"):
        emit.write(launch(*LAYOUTS["two nodes"]), "systemd")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_leader_worker_set_is_valid_and_asks_for_what_the_layout_needs(name: str) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    layout, each = LAYOUTS[name]
    group, service = yaml.safe_load_all(emit.write(launch(layout, each), "lws"))
    assert (group["apiVersion"], group["kind"], service["kind"]) == ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "Service")
    assert group["spec"]["replicas"] == layout.replicas
    template = group["spec"]["leaderWorkerTemplate"]
    assert template["size"] == layout.nodes
    assert ("leaderTemplate" in template) == (layout.nodes > 1)
    for role in ("leaderTemplate", "workerTemplate"):
        if role in template:
            (container,) = template[role]["spec"]["containers"]
            words = container["command"]
            assert words[:3] == ["vllm", "serve", AWKWARD.replace("$", "$$")]  # Kubernetes expands $(NAME), and $$ is $
            assert container["resources"]["limits"] == {"nvidia.com/gpu": str(layout.gpus // layout.nodes)}
            head = layout.nodes == 1 or role == "leaderTemplate"
            assert ("readinessProbe" in container) == head == ("--headless" not in words)
            if layout.nodes > 1:
                assert option(words, "--master-addr") == "$(LWS_LEADER_ADDRESS)"
                assert option(words, "--node-rank") == ("0" if head else "$(LWS_WORKER_INDEX)")
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts == {"/dev/shm", AWKWARD}


@pytest.mark.parametrize("form", ["systemd", "lws"])
def test_a_name_with_a_line_break_makes_no_line_of_its_own(form: str) -> None:
    text = emit.write(launch(*LAYOUTS["two nodes"], hosts(2)), form)
    assert not any(line.startswith('"quoted"') for line in text.splitlines())


@pytest.mark.slow
def test_vllm_knows_every_option() -> None:
    """The parser of the installed vLLM, if there is one: it imports a lot, so in a process of its own."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    lines: list[list[str]] = []
    for layout, each in LAYOUTS.values():
        for server in launch(layout, each, model="m").servers:
            lines.append(["m", *server.arguments, *commands.placed(server, "10.0.0.1")])
    script = (
        "import json, sys\nfrom vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "for words in json.load(sys.stdin):\n    made = make_arg_parser(FlexibleArgumentParser()).parse_args(words)\n"
        "    print(json.dumps([made.tensor_parallel_size, made.pipeline_parallel_size, made.nnodes, made.node_rank, made.headless]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(lines), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    parsed: list[Any] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    servers = [server for layout, each in LAYOUTS.values() for server in launch(layout, each).servers]
    shapes = [layout for layout, each in LAYOUTS.values() for _ in launch(layout, each).servers]
    assert parsed == [[shape.tp, shape.pp, server.nodes, server.place, server.place > 0] for shape, server in zip(shapes, servers, strict=True)]


def test_commands_are_shell_words_whatever_the_model_is_called() -> None:
    from ncclcheck.plan.emit import shell

    (server,) = launch(Layout(4, 1, 1), 4).servers
    assert shlex.split(shell.command(server, AWKWARD))[:3] == ["vllm", "serve", AWKWARD]
