"""By whose code this node's vLLM would serve a kind of model. Its list of models is read as text: nothing is imported."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ncclcheck import whole

_MOST = 4 * 2**20  # bytes of a file of Python
_REGISTRY, _AUTO = "model_executor/models/registry.py", "models/auto/modeling_auto.py"
_NO_LONGER = "_PREVIOUSLY_SUPPORTED_MODELS"
_PLUGINS = "vllm.general_plugins"  # by which packages add kinds of models


def by(fields: Mapping[str, Any]) -> str | None:
    """`vllm`; `transformers`, where that library knows it, or the model brings its own code; `plugins`, where some are installed, which may; ``
    for nobody; None where vLLM is not installed, or its list was not found. `fields` is what config.json says.
    """
    listed = fields.get("architectures")
    kinds: Sequence[str] = [kind for kind in listed if isinstance(kind, str)] if isinstance(listed, list) else []
    known = _names("vllm", _REGISTRY)
    if not kinds or not known:
        return None
    if any(kind in known or _causal(kind) in known for kind in kinds):
        return "vllm"
    others = _names("transformers", _AUTO)
    if not others or fields.get("auto_map") or any(kind in others for kind in kinds):
        return "transformers"
    return "plugins" if any(not point.value.startswith(("vllm.", "ncclcheck.")) for point in metadata.entry_points(group=_PLUGINS)) else ""


def _causal(kind: str) -> str:
    """vLLM makes classifiers and embedding models of the language model of that name."""
    return re.sub(r"(?:For[A-Z]\w*|Model)?$", "", kind, count=1) + "ForCausalLM"


@functools.cache
def _names(package: str, file: str) -> set[str]:
    """Every word in quotes that may name a kind of model, up to those that a release has given up."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        try:
            text = whole.read(Path(folder) / file, _MOST).decode("utf-8", "replace")
        except (OSError, whole.TooLarge):
            continue
        return set(re.findall(r'"([A-Z]\w*)"', text.partition(f"\n{_NO_LONGER} ")[0]))
    return set()
