"""What a Cerebras-GPT or GPT-2 model is, as numbers, and what follows from them (no torch).

`GPTConfig` fixes the shape and the parametrisation; parameter counts, FLOPs per token and key-value
bytes are derived here and nowhere else. Initialisation and multipliers are in `model.mup`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wafergpt.config import require, require_finite
from wafergpt.errors import did_you_mean


class Parametrization(StrEnum):
    """How initialisation, learning rates and multipliers depend on the width (table: `model.mup`)."""

    STANDARD = "standard"
    MUP = "mup"


class Activation(StrEnum):
    """GELU in its exact form (Cerebras-GPT) or the tanh approximation (GPT-2's `gelu_new`)."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


class FlopsConvention(StrEnum):
    """Which training FLOPs are counted per token; forward and backward, no recomputation.

    With W = L (4 D^2 + 2 D F), which is 12 L D^2 for F = 4 D, and sequence length S:

    - CEREBRAS: 6 W + 24 L S D + 10 V D + 9 L H S. Gives all seven headline figures of the family to
      the two printed digits; it counts the attention products twice relative to the usual count.
      10 V D is 6 V D for the head and 4 V D for the embedding (which has no input gradient),
      9 L H S is the softmax. Source: Cerebras-GPT paper (arXiv 2304.03208) appendix F; constants
      derived by matching the published figures.
    - CEREBRAS_TABLE: the same with 12 L S D. Gives the older steps table for six of seven sizes
      (Model Zoo 1.9.1 Cerebras_GPT README; 111M is printed there as 2.5e18, the formula says 2.2e18).
    - SIX_N: 6 N, N the total parameter count (Kaplan et al., arXiv 2001.08361).
    - BENCHMARK: 6 (W + V D) + 6 L D S: matrix products only, causal attention counted once. Our own
      convention for measuring a machine's utilisation.
    """

    CEREBRAS = "cerebras"
    CEREBRAS_TABLE = "cerebras_table"
    SIX_N = "six_n"
    BENCHMARK = "benchmark"


@dataclass(frozen=True, kw_only=True)
class MuPConfig:
    """The base shape and tuned multipliers of maximal update parametrisation.

    Defaults are those of the published 40M proxy (Model Zoo gpt3/configs/muP/params_gpt3_40M.yaml).
    The attention scale 1/d_head and the scaling rules are in `model.mup`.
    """

    base_d_model: int = 256
    base_d_ffn: int = 1024
    embedding_multiplier: float = 10.0  # on (token + position) embeddings
    output_multiplier: float = 1.0  # logits are multiplied by output_multiplier / m; not tuned

    def __post_init__(self) -> None:
        require_finite("base_d_model", self.base_d_model, minimum=1)
        require_finite("base_d_ffn", self.base_d_ffn, minimum=1)
        _require_positive("embedding_multiplier", self.embedding_multiplier)
        _require_positive("output_multiplier", self.output_multiplier)


# sigma of the truncated normal at base width: 0.02 in every Cerebras-GPT YAML and in GPT-2;
# 0.08 tuned on the 40M proxy (params_gpt3_40M.yaml).
_DEFAULT_INIT_STD = {Parametrization.STANDARD: 0.02, Parametrization.MUP: 0.08}


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Shape and parametrisation of one model. Defaults are Cerebras-GPT's.

    `d_ffn`, `init_std` and, under muP, `mup` are resolved when left out, so a stored config is complete.
    Raises ConfigError for a value out of range, `d_model` not divisible by `n_heads`, or a `mup` block
    under the standard parametrisation.
    """

    d_model: int
    n_layers: int
    n_heads: int
    d_ffn: int | None = None  # None: 4 * d_model
    vocab_size: int = 50257  # GPT-2 BPE
    max_seq_len: int = 2048
    activation: Activation = Activation.GELU
    parametrization: Parametrization = Parametrization.STANDARD
    mup: MuPConfig | None = None  # None under muP: MuPConfig()
    init_std: float | None = None  # None: 0.02 standard, 0.08 muP (at base width)
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "vocab_size", "max_seq_len"):
            require_finite(name, getattr(self, name), minimum=1)
        if self.d_model % self.n_heads:
            fits = [h for h in range(1, self.d_model + 1) if self.d_model % h == 0]
            nearest = min(fits, key=lambda h: abs(h - self.n_heads))
            require(
                False,
                f"d_model = {self.d_model} is not divisible by n_heads = {self.n_heads}; "
                f"the nearest number of heads that divides it is {nearest}",
            )
        if self.d_ffn is None:
            object.__setattr__(self, "d_ffn", 4 * self.d_model)
        require_finite("d_ffn", self.ffn_width, minimum=1)
        if self.init_std is None:
            object.__setattr__(self, "init_std", _DEFAULT_INIT_STD[self.parametrization])
        _require_positive("init_std", self.base_init_std)
        _require_positive("layer_norm_eps", self.layer_norm_eps)
        if self.parametrization is Parametrization.MUP and self.mup is None:
            object.__setattr__(self, "mup", MuPConfig())
        require(
            self.mup is None or self.parametrization is Parametrization.MUP,
            "mup is set but parametrization is 'standard'; set parametrization = 'mup' or remove mup",
        )

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def ffn_width(self) -> int:
        """`d_ffn` as a plain int (the field is resolved, its type admits None)."""
        assert self.d_ffn is not None
        return self.d_ffn

    @property
    def base_init_std(self) -> float:
        """`init_std` as a plain float (the field is resolved, its type admits None)."""
        assert self.init_std is not None
        return self.init_std

    @property
    def n_params(self) -> int:
        """Exact number of trained values; the head is tied to the embedding and counted once.

        Source: Cerebras-GPT paper appendix E: V D + S D + L (12 D^2 + 13 D) + 2 D for F = 4 D.
        """
        return self.n_params_non_embedding + (self.vocab_size + self.max_seq_len) * self.d_model

    @property
    def n_params_non_embedding(self) -> int:
        """`n_params` without token and position embeddings."""
        d, f = self.d_model, self.ffn_width
        biases_and_norms = (3 * d + d) + (f + d) + 4 * d  # attention, FFN, two LayerNorms
        return self.n_layers * (4 * d * d + 2 * d * f + biases_and_norms) + 2 * d

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape, in the model's order; weights are [out, in].

        The head has no entry: it is `wte.weight`.
        """
        d, f = self.d_model, self.ffn_width
        shapes: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocab_size, d),
            "wpe.weight": (self.max_seq_len, d),
        }
        block: dict[str, tuple[int, ...]] = {
            "ln_1.weight": (d,),
            "ln_1.bias": (d,),
            "attn.c_attn.weight": (3 * d, d),
            "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d),
            "attn.c_proj.bias": (d,),
            "ln_2.weight": (d,),
            "ln_2.bias": (d,),
            "mlp.c_fc.weight": (f, d),
            "mlp.c_fc.bias": (f,),
            "mlp.c_proj.weight": (d, f),
            "mlp.c_proj.bias": (d,),
        }
        for layer in range(self.n_layers):
            shapes.update({f"h.{layer}.{name}": shape for name, shape in block.items()})
        shapes.update({"ln_f.weight": (d,), "ln_f.bias": (d,)})
        return shapes

    def flops_per_token(
        self, convention: FlopsConvention = FlopsConvention.CEREBRAS, seq_len: int | None = None
    ) -> float:
        """Training FLOPs (forward and backward) per token at `seq_len` (default: `max_seq_len`)."""
        s = self.max_seq_len if seq_len is None else seq_len
        require_finite("seq_len", s, minimum=1, maximum=self.max_seq_len)
        d, layers = self.d_model, self.n_layers
        matrices = layers * (4 * d * d + 2 * d * self.ffn_width)
        vocabulary = self.vocab_size * d
        if convention is FlopsConvention.SIX_N:
            return 6.0 * self.n_params
        if convention is FlopsConvention.BENCHMARK:
            return 6.0 * (matrices + vocabulary) + 6.0 * layers * d * s
        attention = 24 if convention is FlopsConvention.CEREBRAS else 12
        softmax = 9 * layers * self.n_heads * s
        return 6.0 * matrices + attention * layers * s * d + 10.0 * vocabulary + softmax

    def training_flops(
        self,
        n_tokens: float,
        convention: FlopsConvention = FlopsConvention.CEREBRAS,
        seq_len: int | None = None,
    ) -> float:
        """FLOPs of training on `n_tokens` tokens."""
        return n_tokens * self.flops_per_token(convention, seq_len)

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes the key-value cache needs per token: keys and values, all layers (2 = bfloat16)."""
        return 2 * self.n_layers * self.d_model * bytes_per_value


# What low-rank adapters may stand beside; `wte` is embedding and head at once.
LORA_TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "wte")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters (arXiv 2106.09685): W + (alpha / rank) B A with A [rank, in] and B [out, rank]."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = LORA_TARGETS[:4]  # every matrix of the layers

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"lora.rank = {self.rank} must be at least 1")
        _require_positive("lora.alpha", self.alpha)
        require(len(self.targets) > 0, "lora.targets is empty; there would be nothing to train")
        for target in self.targets:
            hint = did_you_mean(target, LORA_TARGETS)
            known = ", ".join(LORA_TARGETS)
            require(target in LORA_TARGETS, f"lora.targets: '{target}' is not one of {known}{hint}")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def _require_positive(name: str, value: float) -> None:
    require_finite(name, value)
    require(value > 0, f"{name} = {value!r} must be above zero")
