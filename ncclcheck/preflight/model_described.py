"""What a config.json that a node sent says of the model: its shape where that kind of model is known, else the few numbers that all have. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ncclcheck.plan import config
from ncclcheck.plan.fields import Config, Unreadable
from ncclcheck.plan.shape import Shape
from ncclcheck.survey import Section

_TEXT = ("text_config", "llm_config", "language_config")  # where models of several media describe their language model


@dataclass(frozen=True, slots=True)
class Described:
    """A model. Numbers are 0 where they are not told; `shape` is None for an architecture or a quantisation that is not known."""

    path: str
    host: str  # the node whose copy was read
    shape: Shape | None
    architecture: str
    heads: int
    kv_heads: int
    layers: int
    dtype: str
    method: str  # of quantisation
    stored: int  # bytes of the tensors on disk

    def refuses(self, tp: int) -> str:
        """Why its layers cannot be cut into `tp` slices; empty if they can, or if nothing is known of it."""
        if self.shape:
            return self.shape.refuses(tp)
        return f"{self.heads} attention heads are not divisible by TP={tp}" if self.heads and self.heads % tp else ""

    def slices(self, most: int) -> list[int]:
        """The values that TP can have, up to `most`."""
        return [tp for tp in range(1, most + 1) if not self.refuses(tp)]

    def said(self) -> str:
        """What config.json says of its heads and layers, as evidence."""
        told = {"num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "num_hidden_layers": self.layers}
        return f"{self.host}: {self.path}/config.json: {', '.join(f'{name} {value}' for name, value in told.items() if value)}"


def read(host: str, section: Section) -> Described:
    """From what the collector `model` found on a node."""
    fields: Mapping[str, Any] = section["config"]
    text: Mapping[str, Any] = next((fields[name] for name in _TEXT if isinstance(fields.get(name), dict)), {})
    inner = Config(fields if "num_attention_heads" in fields else {**fields, **text})
    stored = section.get("stored")
    stored = stored if isinstance(stored, int) else 0
    try:
        shape: Shape | None = replace(config.shape(fields), stored=stored)
    except Unreadable:
        shape = None
    listed, quantised = fields.get("architectures"), fields.get("quantization_config")
    return Described(
        path=str(section["path"]),
        host=host,
        shape=shape,
        architecture=str(listed[0]) if isinstance(listed, list) and listed else "",
        heads=_number(inner, "num_attention_heads"),
        kv_heads=shape.kv_heads if shape else _number(inner, "num_key_value_heads"),
        layers=_number(inner, "num_hidden_layers"),
        dtype=inner.text("dtype") or inner.text("torch_dtype"),
        method=str(quantised.get("quant_method", "")) if isinstance(quantised, dict) else "",
        stored=stored,
    )


def _number(fields: Config, name: str) -> int:
    try:
        return fields.number(name, 0)
    except Unreadable:
        return 0
