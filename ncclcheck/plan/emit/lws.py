"""A Kubernetes LeaderWorkerSet, a group of pods for each replica, and a service before their leaders: `kubectl apply -f FILE`."""

from __future__ import annotations

import json
from dataclasses import replace

from ncclcheck.plan.commands import API_PORT, Server, placed
from ncclcheck.plan.emit import Launch

IMAGE = "vllm/vllm-openai:latest"


def write(launch: Launch) -> str:
    """Two YAML documents. The controller tells each pod its leader (LWS_LEADER_ADDRESS) and its number (LWS_WORKER_INDEX)."""
    group = [server for server in launch.servers if server.replica == 0]
    gpus = launch.layout.gpus // launch.layout.nodes
    worker = ["    workerTemplate:", *_template(launch, group[-1], "worker" if len(group) > 1 else "leader", gpus)]
    leader = ["    leaderTemplate:", *_template(launch, group[0], "leader", gpus)] if len(group) > 1 else []
    lines = [
        f"# {launch.title()}",
        f"# pin the image; the model must lie under {json.dumps(launch.engine.model)} on every node",
        "apiVersion: leaderworkerset.x-k8s.io/v1",
        "kind: LeaderWorkerSet",
        "metadata:",
        "  name: vllm",
        "spec:",
        f"  replicas: {launch.layout.replicas}",
        "  leaderWorkerTemplate:",
        f"    size: {len(group)}",
        "    restartPolicy: RecreateGroupOnPodRestart",
        *leader,
        *worker,
        "---",
        "apiVersion: v1",
        "kind: Service",
        "metadata:",
        "  name: vllm",
        "spec:",
        "  selector:",
        '    leaderworkerset.sigs.k8s.io/name: "vllm"',
        '    leaderworkerset.sigs.k8s.io/worker-index: "0"',
        "  ports:",
        f"    - port: {API_PORT}",
    ]
    return "\n".join(lines) + "\n"


def _template(launch: Launch, server: Server, role: str, gpus: int) -> list[str]:
    path = json.dumps(launch.engine.model)
    here = replace(server, port=API_PORT, gpus=None)  # each pod has an address and GPUs of its own
    told = ["vllm", "serve", launch.engine.model.replace("$", "$$"), *server.arguments, *placed(here, "$(LWS_LEADER_ADDRESS)")]
    if not server.head:  # the same words in every worker: its number is the controller's to say
        told[told.index("--node-rank") + 1] = "$(LWS_WORKER_INDEX)"
    probe = ["            readinessProbe:", f"              httpGet: {{path: /health, port: {API_PORT}}}"] if server.head else []
    return [
        "      metadata:",
        f"        labels: {{role: {role}}}",
        "      spec:",
        "        containers:",
        "          - name: vllm",
        f"            image: {IMAGE}",
        f"            command: {json.dumps(told)}",
        "            env:",
        "              - name: VLLM_HOST_IP",
        "                valueFrom: {fieldRef: {fieldPath: status.podIP}}",
        "            resources:",
        f'              limits: {{nvidia.com/gpu: "{gpus}"}}',
        *probe,
        "            volumeMounts:",
        "              - {mountPath: /dev/shm, name: shm}",
        f"              - {{mountPath: {path}, name: model, readOnly: true}}",
        "        volumes:",
        "          - {name: shm, emptyDir: {medium: Memory}}",
        f"          - {{name: model, hostPath: {{path: {path}, type: Directory}}}}",
    ]
