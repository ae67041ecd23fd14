"""GPT-2 and Cerebras-GPT, standard and muP: the whole forward pass.

Shapes: B batch, T new positions, S positions seen (cached + T), D d_model, H heads, K d_head,
F d_ffn, V vocabulary, L layers.

Mixed precision: `to_compute_dtype` turns the matrices to bfloat16; LayerNorms, biases and the residual
stream stay float32. The same class runs in float64 for the tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wafergpt.checkpoints import native
from wafergpt.checkpoints.huggingface.config import MissingScale
from wafergpt.checkpoints.huggingface.folder import read_folder
from wafergpt.checkpoints.huggingface.hub import resolve
from wafergpt.checkpoints.stored_model import StoredModel, check_arrays
from wafergpt.config import from_dict, require
from wafergpt.errors import CheckpointError, ConfigError
from wafergpt.model.cache import KVCache, LayerCache
from wafergpt.model.config import Activation, GPTConfig
from wafergpt.model.init import initialize
from wafergpt.model.inputs import allowed_keys, check_ids, check_input_ids, positions_of, real_tokens
from wafergpt.model.mup import multipliers
from wafergpt.ops import dispatch, reference

IGNORED_LABEL = -100  # PyTorch's convention for positions the loss leaves out


class GPTOutput(NamedTuple):
    """What a forward pass returns, always these fields (a tuple, so that torch sees the tensors)."""

    last_hidden_state: Tensor  # [B, T, D] after the final LayerNorm, in the compute dtype
    logits: Tensor | None = None  # [B, n_logits, V]; None when n_logits = 0
    hidden_states: tuple[Tensor, ...] | None = None  # L + 1 of [B, T, D]: before each block, then the last
    attentions: tuple[Tensor, ...] | None = None  # L of [B, H, T, S]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What every layer of one forward pass must know."""

    compute_dtype: torch.dtype
    allowed: Tensor | None  # [B or 1, 1, T, S] True where a query may see a key; None: causal, nothing cached
    cache: LayerCache | None = None
    keep_attentions: bool = False
    lengths: tuple[int, ...] | None = None  # of examples that lie end to end in one row


class Linear(nn.Linear):
    """y = x W^T + b through `ops.dispatch`; W is [out, in]. `model.init` fills it."""

    int8 = False  # whether the products run in int8; see GPT.use_int8

    def reset_parameters(self) -> None:
        """Left to `model.init`."""

    def forward(self, x: Tensor) -> Tensor:
        return dispatch.linear(x, self.weight, self.bias, self.int8)


class Embedding(nn.Embedding):
    """Row look-up in the residual stream's dtype. `model.init` fills it."""

    def reset_parameters(self) -> None:
        """Left to `model.init`."""

    def forward(self, ids: Tensor, out_dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        return dispatch.embedding(ids, self.weight, out_dtype)

    def table(self) -> Tensor:
        """The rows [V, D] as the tied head uses them; adapters add to them."""
        return self.weight


class LayerNorm(nn.LayerNorm):
    """LayerNorm of the residual stream, result in the compute dtype."""

    def forward(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        return dispatch.layer_norm(x, self.weight, self.bias, self.eps, out_dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention, softmax(scale QK^T) V."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.scale = multipliers(config).attention_scale  # 1/sqrt(K); 1/K under muP
        self.c_attn = Linear(config.d_model, 3 * config.d_model)
        self.c_proj = Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, this: Pass) -> tuple[Tensor, Tensor | None]:
        """x [B, T, D] -> ([B, T, D], attention weights [B, H, T, S] if asked for)."""
        qkv = self.c_attn(x)  # [B, T, 3D]
        if this.allowed is None:  # training, evaluation, prefill without padding
            mixed = dispatch.causal_attention_packed(qkv, self.n_heads, self.scale, this.lengths)
            return self.c_proj(mixed), None
        q, k, v = qkv.unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, T, K]
        if this.cache is not None:
            k, v = this.cache.append(self.layer, k, v)  # [B, H, S, K]
        weights = None
        if this.keep_attentions:
            weights = reference.attention_weights(q, k, self.scale, this.allowed)  # [B, H, T, S]
            mixed = weights @ v  # [B, H, T, K]
        else:
            mixed = dispatch.attention(q, k, v, self.scale, this.allowed)  # [B, H, T, K]
        return self.c_proj(mixed.transpose(1, 2).flatten(2)), weights  # [B, T, D]


class MLP(nn.Module):
    """D -> F -> D with GELU between."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.tanh = config.activation is Activation.GELU_TANH
        self.c_fc = Linear(config.d_model, config.ffn_width)
        self.c_proj = Linear(config.ffn_width, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        hidden = dispatch.gelu(self.c_fc(x), self.tanh)  # [B, T, F]
        return self.c_proj(hidden)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-LayerNorm decoder layer: each branch reads a normalised copy and adds to the residual."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, this: Pass) -> tuple[Tensor, Tensor | None]:
        """x [B, T, D] -> ([B, T, D], attention weights if asked for)."""
        attended, weights = self.attn(self.ln_1(x, this.compute_dtype), this)
        x = x + attended
        x = x + self.mlp(self.ln_2(x, this.compute_dtype))
        return x, weights


class GPT(nn.Module):
    """The decoder-only language model. Parameter names are GPT-2's; the head is `wte`, so it has none."""

    def __init__(self, config: GPTConfig, *, seed: int = 0) -> None:
        """A freshly initialised float32 model; the same (config, seed) gives the same bits."""
        super().__init__()
        self.config = config
        self.multipliers = multipliers(config)
        self.int8 = False
        self.wte = Embedding(config.vocab_size, config.d_model)
        self.wpe = Embedding(config.max_seq_len, config.d_model)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_f = LayerNorm(config.d_model, eps=config.layer_norm_eps)
        initialize(self, config, seed)

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
        n_logits: int | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> GPTOutput:
        """input_ids [B, T] integers -> `GPTOutput`.

        attention_mask [B, S], 1 or True where the token is real, covers cached and new positions;
        without it, what is new is real and what is cached is as it was. Without position_ids [B, T],
        positions count the real tokens, so a padded row gives what it gives unpadded. Logits are
        computed for the last `n_logits` positions (None: all, 0: none).

        Raises ConfigError for ids outside the vocabulary, positions beyond max_seq_len, shapes that do
        not match, or a full cache.
        """
        past = 0 if cache is None else cache.length
        check_input_ids(input_ids, self.config.vocab_size)
        n_rows, n_new = input_ids.shape
        if cache is not None:
            cache.check_room(n_rows, n_new)
            attention_mask = cache.extended_mask(attention_mask, n_new)
        mask = real_tokens(attention_mask, (n_rows, past + n_new))
        positions = positions_of(position_ids, mask, past, input_ids)
        check_ids("position", positions, self.config.max_seq_len, "the context window")
        require(n_logits is None or 0 <= n_logits <= n_new, f"n_logits = {n_logits} is not in 0..{n_new}")
        plain = mask is None and cache is None and not output_attentions
        this = Pass(
            compute_dtype=self.wte.weight.dtype,
            allowed=None if plain else allowed_keys(mask, n_new, past + n_new, input_ids.device),
            cache=cache,
            keep_attentions=output_attentions,
        )
        x = self.embed(input_ids, positions)  # [B, T, D], the residual stream
        entered, attentions = [], []
        for block in self.h:
            entered += [x] if output_hidden_states else []
            x, weights = block(x, this)
            attentions.append(weights)
        hidden: Tensor = self.ln_f(x, this.compute_dtype)  # [B, T, D]
        if cache is not None:
            cache.advance(n_new, mask)
        return GPTOutput(
            last_hidden_state=hidden,
            logits=None if n_logits == 0 else self.logits(hidden[:, -(n_logits or n_new) :]),
            hidden_states=(*entered, hidden) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Token plus position, [B, T] both -> the residual stream [B, T, D]."""
        residual_dtype = self.ln_f.weight.dtype
        x: Tensor = self.wte(input_ids, residual_dtype) + self.wpe(positions, residual_dtype)  # [B, T, D]
        return x if self.multipliers.embedding == 1 else x * self.multipliers.embedding

    def logits(self, hidden: Tensor) -> Tensor:
        """The tied head: last_hidden_state [..., D] -> [..., V] in the residual stream's dtype."""
        scores: Tensor = dispatch.linear(hidden, self.wte.table(), None).to(self.ln_f.weight.dtype)
        return scores if self.multipliers.logits == 1 else scores * self.multipliers.logits

    def loss(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats (scalar, float32 or wider) of labels [B, T] given input_ids [B, T].

        Position t is judged on labels[:, t] (already shifted); -100 is not counted. The logits never
        exist all at once. Raises ConfigError as `forward`, and for a label outside the vocabulary.
        """
        require(
            labels.shape == input_ids.shape,
            f"labels have shape {list(labels.shape)}, input_ids {list(input_ids.shape)}",
        )
        counted = labels.masked_fill(labels == IGNORED_LABEL, 0)
        check_ids("label", counted, self.config.vocab_size, "the vocabulary")
        hidden = self(input_ids, n_logits=0).last_hidden_state  # [B, T, D]
        total, n_tokens = self.total_loss(hidden.flatten(0, 1), labels.flatten())
        return total / n_tokens.clamp(min=1)

    def total_loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of labels [N] given hidden [N, D]: (sum of nats, how many labels are not -100)."""
        return dispatch.linear_cross_entropy(
            hidden, self.wte.table(), labels, self.multipliers.logits, IGNORED_LABEL, self.int8
        )

    def packed(self, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Last hidden states [N, D] of examples end to end, input_ids [N] of `lengths`; none sees another.

        Each has the positions it would have alone. Raises ConfigError as `forward`, and for lengths that do
        not add up.
        """
        require(
            input_ids.ndim == 1 and sum(lengths) == len(input_ids) and min(lengths, default=0) >= 1,
            f"examples of {sum(lengths)} tokens do not fill input_ids of shape {list(input_ids.shape)}",
        )
        check_input_ids(input_ids[None], self.config.vocab_size)
        positions = torch.cat([torch.arange(n, device=input_ids.device) for n in lengths])
        check_ids("position", positions, self.config.max_seq_len, "the context window")
        this = Pass(compute_dtype=self.wte.weight.dtype, allowed=None, lengths=tuple(lengths))
        x = self.embed(input_ids[None], positions)  # [1, N, D]
        for block in self.h:
            x, _ = block(x, this)
        hidden: Tensor = self.ln_f(x, this.compute_dtype)[0]  # [N, D]
        return hidden

    def to_compute_dtype(self, dtype: torch.dtype) -> GPT:
        """Convert the matrices (and only them) in place; returns the model.

        They come out contiguous: our kernels read bfloat16 matrices by their address, and those of a Hugging
        Face file are transposed views.
        """
        for parameter in self.parameters():
            if parameter.ndim >= 2:
                parameter.data = parameter.data.to(dtype).contiguous()
        return self

    def use_int8(self, enabled: bool = True) -> GPT:
        """Run the products of a bfloat16 model, forward and backward, in int8; returns the model.

        Raises ConfigError where the CPU or the kernels cannot.
        """
        require(
            not enabled or dispatch.int8_supported(),
            "int8 products need our compiled kernels and a CPU with AVX-512 VNNI; see `wafergpt doctor`",
        )
        self.int8 = enabled
        for module in self.modules():
            if isinstance(module, Linear):
                module.int8 = enabled
        return self

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """A float32 copy of every parameter under its name; matrices are [out, in]."""
        return {
            name: p.detach().to("cpu", torch.float32, copy=True).numpy()
            for name, p in self.named_parameters()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], config: GPTConfig) -> GPT:
        """A float32 model holding copies of `arrays`.

        Raises CheckpointError naming the first array that is missing, unknown or of another shape.
        """
        check_arrays(config, arrays)
        return cls._holding(
            {name: torch.tensor(np.asarray(a, np.float32)) for name, a in arrays.items()}, config
        )

    @classmethod
    def _holding(cls, tensors: Mapping[str, Tensor], config: GPTConfig) -> GPT:
        """The model of exactly these parameters, not of copies."""
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(tensors, assign=True)
        return model

    @classmethod
    def from_stored(cls, stored: StoredModel, *, copy: bool = False) -> GPT:
        """The float32 model of a file, on the file's own mapped arrays where it has them in float32.

        Nothing is read before it is used, then, and matrices may be transposed views; what is written to them
        stays private, the file never changes. The file must stay as it is while the model lives; `copy` makes
        the model independent of it. Raises what `from_arrays` and reading an array raise.
        """
        arrays = {name: np.asarray(stored.arrays[name], np.float32) for name in stored.arrays}
        if copy:
            return cls.from_arrays(arrays, stored.config)
        check_arrays(stored.config, arrays)
        writable = {name: a if a.flags.writeable else a.copy() for name, a in arrays.items()}
        return cls._holding({name: torch.from_numpy(a) for name, a in writable.items()}, stored.config)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: Path | str,
        *,
        revision: str | None = None,
        mup_logit_scale: MissingScale | str | None = None,
    ) -> GPT:
        """The float32 model of a Hugging Face folder or hub name: GPT-2 or Cerebras-GPT, standard or muP.

        A hub name goes through huggingface_hub's cache, at `revision` if given. `mup_logit_scale` is for muP
        configs that leave their logit scale out (`MissingScale`). The weights stay in the mapped file, see
        `from_stored`; `read_folder` gives tokenizer and notes too. Raises CheckpointError, ConfigError,
        DataError, StorageError, MissingDependencyError.
        """
        folder = resolve(name_or_path, revision=revision)
        return cls.from_stored(read_folder(folder, mup_logit_scale=mup_logit_scale))

    @classmethod
    def load(cls, directory: Path | str) -> GPT:
        """The float32 model of a run folder (newest checkpoint that verifies) or of one checkpoint folder.

        Warns of every newer checkpoint it had to pass over. Raises CheckpointError, StorageError.
        """
        checkpoint = native.load_checkpoint(Path(directory), groups=["model"])
        for skipped in checkpoint.skipped:
            warnings.warn(f"skipped checkpoint '{skipped.path}': {skipped.reason}", stacklevel=2)
        return cls.from_checkpoint(checkpoint)

    @classmethod
    def from_checkpoint(cls, checkpoint: native.Checkpoint) -> GPT:
        """The float32 model of a checkpoint whose `model` tensors are loaded. Raises CheckpointError."""
        try:
            config = from_dict(GPTConfig, checkpoint.documents["config.json"]["model"], "model")
            return cls.from_arrays(checkpoint.tensors["model"], config)
        except KeyError as missing:
            raise CheckpointError(f"checkpoint '{checkpoint.path}' has no {missing}") from None
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"checkpoint '{checkpoint.path}': {error}") from None
