"""What of a model decides how it is laid out: its dimensions, and the parameters and bytes that follow from them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Latent:
    """Attention that keeps one compressed vector per token (DeepSeek's MLA). Ranks of the queries (0: not compressed) and of keys and values."""

    query_rank: int
    rank: int
    plain: int  # of a head's dimensions, those without a position,
    rotary: int  # those with one, which all heads share in the cache,
    value: int  # and those of its value


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in every layer but the first `dense` ones: `used` of `count` compute each token."""

    count: int
    used: int
    width: int  # intermediate size of one
    shared: int = 0  # intermediate size of those that always compute
    dense: Sequence[int] = ()  # layers that have an ordinary MLP instead
    gate_bias: bool = False
    shared_gate: bool = False


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the weights of the linear layers are stored. `computes`: fp8 or int8 where the tensor cores take them so, else half."""

    method: str
    bits: float  # per weight, scales and zero points with it
    computes: str
    block: int = 0  # weights that share a scale along a side: a slice must hold whole ones


@dataclass(frozen=True, slots=True)
class Total:
    """What some consecutive layers have together: parameters, and how many have experts."""

    layers: int
    mlp: int
    active: int
    small: int
    sparse: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's dimensions."""

    name: str
    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int  # intermediate size of an ordinary MLP
    vocabulary: int
    tied: bool  # the embedding is the output layer, too
    dtype: str  # of activations, and of weights that are not quantised
    longest: int  # tokens of a request at most
    biases: int = 0  # attention projections with a bias: 0, 3 (q, k, v) or 4 (o, too)
    head_norms: bool = False
    latent: Latent | None = None
    experts: Experts | None = None
    quantisation: Quantisation | None = None
    window: int = 0  # tokens that a layer with a sliding window keeps
    windowed: int = 0  # layers with one
    stored: int = 0  # bytes of the weights on disk; 0: not there

    @property
    def size(self) -> int:
        """Bytes of an activation, and of a weight that is not quantised."""
        return BYTES[self.dtype]

    def attention(self) -> int:
        """Linear weights of one layer's attention."""
        if latent := self.latent:
            key = latent.plain + latent.rotary
            queries = self.hidden * latent.query_rank + latent.query_rank * self.heads * key if latent.query_rank else self.hidden * self.heads * key
            keys = self.hidden * (latent.rank + latent.rotary) + latent.rank * self.heads * (latent.plain + latent.value)
            return queries + keys + self.heads * latent.value * self.hidden
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    def attention_slice(self, tp: int) -> float:
        """Linear weights of one layer's attention on one of `tp` GPUs: key-value heads fewer than GPUs, and what MLA compresses with, are on each."""
        if latent := self.latent:
            whole = self.hidden * (latent.query_rank + latent.rank + latent.rotary)
            return whole + (self.attention() - whole) / tp
        return self.hidden * self.head_dim * (2 * self.heads / tp + 2 * max(self.kv_heads / tp, 1))

    def mlp(self, layer: int, active: bool = False) -> int:
        """Linear weights of one layer's MLP or experts; `active`: of those alone that compute a token."""
        experts = self.experts
        if experts is None or layer in experts.dense:
            return 3 * self.hidden * self.width
        return 3 * self.hidden * (experts.width * (experts.used if active else experts.count) + experts.shared)

    def small(self, layer: int) -> int:
        """Parameters of one layer that are never quantised nor sliced: norms, biases, and what chooses the experts."""
        found = 2 * self.hidden
        if self.latent:
            found += self.latent.query_rank + self.latent.rank
        if self.biases:
            found += self.head_dim * (self.heads + 2 * self.kv_heads) + (self.hidden if self.biases == 4 else 0)
        if self.head_norms:
            found += 2 * self.head_dim
        if (experts := self.experts) and layer not in experts.dense:
            found += experts.count * (self.hidden + experts.gate_bias) + self.hidden * experts.shared_gate
        return found

    def total(self, layers: range) -> Total:
        """Of these layers."""
        sums = _sums(self)
        return Total(len(layers), *(after - before for before, after in zip(sums[layers.start], sums[layers.stop], strict=True)))

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        every = self.total(range(self.layers))
        return self.attention() * self.layers + every.mlp + every.small + self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def active(self) -> int:
        """Linear weights that one token is multiplied with, the output layer's too."""
        return self.attention() * self.layers + self.total(range(self.layers)).active + self.embedding

    @property
    def weight_bytes(self) -> float:
        """Bytes of one stored weight of a linear layer."""
        return self.quantisation.bits / 8 if self.quantisation else float(self.size)

    @property
    def loaded(self) -> float:
        """Bytes of all weights, by the dimensions."""
        linear = self.attention() * self.layers + self.total(range(self.layers)).mlp
        return linear * self.weight_bytes + (self.parameters - linear) * self.size

    @property
    def kv_token_layer(self) -> int:
        """Bytes that one layer keeps of one token, on all GPUs together where each head is kept once."""
        if self.latent:
            return (self.latent.rank + self.latent.rotary) * self.size
        return 2 * self.kv_heads * self.head_dim * self.size

    @property
    def kv_token(self) -> int:
        """Bytes that the whole model keeps of one token."""
        return self.kv_token_layer * self.layers

    def look_flops(self, prompt: bool) -> int:
        """FLOPs with which one layer looks back from one token at one other, over all heads.

        MLA widens keys and values of a prompt to those of each head; a decoding step works on the compressed ones instead.
        """
        if latent := self.latent:
            wide = latent.plain + latent.rotary + latent.value if prompt else 2 * latent.rank + latent.rotary
            return 2 * self.heads * wide
        return 4 * self.heads * self.head_dim

    @property
    def projected(self) -> int:
        """Elements of one token's queries, keys and values in one layer, over all heads."""
        if latent := self.latent:
            return self.heads * (2 * (latent.plain + latent.rotary) + latent.value)
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def kv_slice(self, tp: int) -> float:
        """Bytes that one layer keeps of one token on each of `tp` GPUs."""
        if self.latent:
            return self.kv_token_layer
        return 2 * max(self.kv_heads / tp, 1) * self.head_dim * self.size

    def served(self, dtype: str) -> Shape:
        """The same model with activations and unquantised weights in this dtype."""
        other = replace(self, dtype=dtype)
        return replace(other, stored=round(self.stored * other.loaded / self.loaded))

    def kept(self, tokens: int) -> float:
        """Tokens' worth of a request's cache, mean over the layers: those with a sliding window keep no more than it."""
        inside = min(tokens, self.window) if self.windowed else tokens
        return (tokens * (self.layers - self.windowed) + inside * self.windowed) / self.layers

    def refuses(self, tp: int) -> str:
        """Why its layers cannot be cut into `tp` slices; empty if they can."""
        if self.heads % tp:
            return f"{self.heads} attention heads are not divisible by TP={tp}"
        if not self.latent and self.kv_heads % tp and tp % self.kv_heads:
            return f"{self.kv_heads} key-value heads are neither divisible by TP={tp} nor divide it"
        block = self.quantisation.block if self.quantisation else 0
        widths = {self.width} if not self.experts or self.experts.dense else set()
        widths |= {size for size in (self.experts.width, self.experts.shared) if size} if self.experts else set()
        for width in sorted(widths):
            if width % tp:
                return f"the MLP's {width} columns are not divisible by TP={tp}"
            if block and (width // tp) % block:
                return f"the MLP's {width} columns in {tp} slices cut through blocks of {block} weights that share a scale"
        return ""

    def slices(self, most: int) -> list[int]:
        """The values that TP can have, up to `most`."""
        return [tp for tp in range(1, most + 1) if not self.refuses(tp)]


@functools.lru_cache(maxsize=64)
def _sums(shape: Shape) -> list[tuple[int, int, int, int]]:
    """Before each layer, and after the last: MLPs, their active part, small parameters and layers with experts so far."""
    found = [(0, 0, 0, 0)]
    for layer in range(shape.layers):
        sparse = shape.experts is not None and layer not in shape.experts.dense
        mine = (shape.mlp(layer), shape.mlp(layer, active=True), shape.small(layer), int(sparse))
        found.append((found[-1][0] + mine[0], found[-1][1] + mine[1], found[-1][2] + mine[2], found[-1][3] + mine[3]))
    return found
