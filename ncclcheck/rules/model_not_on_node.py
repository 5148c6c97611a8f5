"""A node does not have the model, or only a part of it, and cannot download it.

Every node reads its own copy unless the folder is shared; a worker that starts to download waits while the others load.

Blames
    log gpu-11.log: (Worker_TP8 pid=71) huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': \
'/models/big'. Use
    => gpu-11

Blames
    log gpu-11.log: ValueError: Invalid repository ID or local directory specified: '/models/big'.
    => gpu-11

Blames
    log gpu-11.log: huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder and outgoing traffic has been \
disabled.
    => gpu-11

Blames
    log gpu-11.log: RuntimeError: Cannot find any model weights with `/models/big`
    => gpu-11

Blames
    log gpu-11.log: OSError: big-model is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'
    => gpu-11

Blames
    log gpu-11.log: OSError: /models/big does not appear to have a file named config.json. Checkout
    => gpu-11

Blames
    log gpu-11.log: OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.
    => gpu-11

Blames
    log gpu-11.log: OSError: We couldn't connect to 'https://hf-mirror.com' to load this file, couldn't find it in the cached files and it looks \
like big is not the path
    => gpu-11

Blames
    log gpu-11.log: FileNotFoundError: [Errno 2] No such file or directory: '/models/big/model-00003-of-00008.safetensors'
    => gpu-11

Blames
    log gpu-11.log: FileNotFoundError: No such file or directory: "/models/big/model-00003-of-00008.safetensors"
    => gpu-11

Blames
    log gpu-11.log: OSError: Can't load the configuration of '/models/big'. If you were trying to load it from 'https://huggingface.co/models'
    => gpu-11

Blames
    log gpu-11.log: safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer
    => gpu-11

Blames
    log gpu-11.log: huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url \
https://huggingface.co/org/big/resolve/main/config.json.
    => gpu-11

Blames
    log gpu-11.log: OSError: Incorrect path_or_model_id: '/models/big'. Please provide either the path to a local folder or the repo_id of a model \
on the Hub.
    => gpu-11

Blames
    log gpu-11.log: OSError: An error happened while trying to locate the files on the Hub and we cannot find the appropriate snapshot folder for \
the \
specified revision on the local disk.
    => gpu-11

Blames
    log gpu-11.log: Repository Not Found for url: https://huggingface.co/api/models/org/big/tree/main?recursive=true.
    => gpu-11

Blames
    log ray.log: (RayWorkerWrapper pid=71, ip=10.9.0.2) ERROR 03-02 10:00:00 worker_base.py:480] Error executing method load_model. This might cause \
deadlock
    log ray.log: (RayWorkerWrapper pid=71, ip=10.9.0.2) ERROR 03-02 10:00:00 worker_base.py:480]   File "/opt/urllib3/connection.py", line 199, in \
_new_conn
    log ray.log: (RayWorkerWrapper pid=71, ip=10.9.0.2) ERROR 03-02 10:00:00 worker_base.py:480] TimeoutError: timed out
    => 10.9.0.2

Spares
    log gpu-11.log: (Worker_TP0 pid=71) INFO 03-02 10:00:00 [weight_utils.py:533] Time spent downloading weights for big: 120.500000 seconds
    log gpu-11.log: (Worker_TP0 pid=71) WARNING 03-02 10:00:00 [base.py:1] Retrying: HTTPSConnectionPool(host='huggingface.co', port=443): Read \
timed out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from ncclcheck.evidence._reads import Block, Line, Statement
from ncclcheck.model import Culprit, Fact, Finding, Run

EXPLAINS = ("rank_died_exception", "model_load_slow", "rpc_timeout", "peer_reset")

_COPY = (
    "ls -L {model}/*.safetensors on every node; copy what is missing, use the same path on a shared file system, "
    "or hf download with the same HF_HOME on each"
)
_DOWNLOAD = (
    "hf download MODEL on every node with the same HF_HOME, or copy the model to the same path on every node and name that path; "
    "HF_ENDPOINT or HTTPS_PROXY where the hub is reached another way"
)
_TRACEBACK = 80  # lines of a traceback that are looked through


def _load_failed(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """A worker whose load_model failed while it talked to the hub: the first line of its traceback that shows it."""
    for other in islice(following, _TRACEBACK):
        same = other.place.pid == line.place.pid and other.place.host == line.place.host
        if same and re.search(r"urllib3|huggingface_hub|hf_hub_download|modelscope|snapshot_download", other.text):
            yield line.fact("download-failed")
            return


def check(run: Run) -> list[Finding]:
    """Nodes that had to download the model while they loaded it, and could not."""
    failed = run.of("download-failed")
    if not failed:
        return []
    hosts = list(dict.fromkeys(fact.host for fact in failed if fact.host))
    where = ", ".join(hosts) or "a node"
    evidence = [fact.source for fact in failed if fact.source]
    title = f"{where} does not have the model: it tried to download it while loading, and could not"
    return [Finding("model-not-on-node", title, Culprit(hosts=hosts or None), 0.8, evidence, _DOWNLOAD)]


READS = (
    Block(r"Error executing method '?load_model", _load_failed),
    Statement(
        r"(?:Invalid repository ID or local directory specified:|Repo id must be in the form .{0,300}?:) '(?P<model>[^']+)'",
        "this node has no model {model}",
        _COPY,
    ),
    Statement(
        r"outgoing traffic has been disabled",
        "the model is not in this node's Hugging Face cache, and downloads are off",
        "hf download MODEL on every node, or HF_HOME=FOLDER on a shared file system; HF_HUB_OFFLINE=0 allows downloads",
    ),
    Statement(
        r"Cannot find any (?:safetensors )?model weights with `(?P<model>[^`]+)`",
        "this node has {model} without its weights",
        _COPY,
    ),
    Statement(
        r"OSError: (?P<model>\S+) is not a local folder and is not a valid model identifier",
        "this node has no folder {model}, and no such model can be downloaded",
        _COPY,
    ),
    Statement(
        r"OSError: (?P<model>\S+) does not appear to have a file named (?P<file>\S+)\.", "this node has {model} without {file}", _COPY, blames="host"
    ),
    Statement(
        r"We couldn't connect to '(?P<site>https?://[^']+)' to load (?:this file|the files), (?:and )?couldn't find (?:it|them) in the cached files",
        "this node has no copy of the model, and cannot reach {site}",
        _DOWNLOAD,
    ),
    Statement(
        r"No such file or directory: ['\"](?P<model>/[^'\"]*"
        r"(?:\.(?:safetensors|gguf|safetensors\.index\.json)|/config\.json|/pytorch_model[^'\"]*\.bin))['\"]",
        "this node lacks {model}",
        "ls -lL {model} on every node; copy what is missing, or use the same path on a shared file system",
    ),
    Statement(
        r"Incorrect path_or_model_id: '(?P<model>[^']+)'",
        "this node has no folder {model}, and no such model can be downloaded",
        _COPY,
    ),
    Statement(
        r"cannot find the (?:appropriate snapshot folder|requested files)[^.]{0,80} (?:on|in) the local (?:disk|cache)",
        "this node has no copy of the model, and cannot reach the hub",
        _DOWNLOAD,
    ),
    Statement(
        r"Repository Not Found for url: \S*?/(?:api/models/)?(?P<model>[\w.-]+/[\w.-]+)/(?:tree|resolve|revision)/",
        "the hub has no model {model} (or shows it only with a token), and this node has no copy",
        "check the name; export HF_TOKEN=TOKEN on every node where it is private; or copy the model to the same path on every node",
        0.85,
    ),
    Statement(
        r"Can't load the configuration of '(?P<model>[^']+)'",
        "this node has no configuration of {model}",
        _COPY,
    ),
    Statement(
        r"Error while deserializing header: (?:MetadataIncompleteBuffer|InvalidHeader\w*|HeaderToo\w+)",
        "a file of the model is cut short or damaged on this node",
        "ls -lL MODEL/*.safetensors and sha256sum on every node; copy the file that differs again (git lfs pull where it is a pointer of 130 bytes)",
        0.85,
    ),
    Statement(
        r"Cannot access gated repo for url \S*?huggingface\.co/(?P<model>[^/\s]+/[^/\s]+)",
        "this node may not download {model}: the repository is gated",
        "export HF_TOKEN=TOKEN on every node (its account must have been granted access), or copy the model to every node",
    ),
)
