"""GPT-2's tensor names in a Hugging Face file <-> ours.

Ours are theirs without the prefix `transformer.`. The four matrices of a block are transposed: their Conv1D
keeps [in, out], our linear layers [out, in].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from wafergpt.errors import CheckpointError, did_you_mean, shown
from wafergpt.model.config import GPTConfig

PREFIX = (
    "transformer."  # the whole model's keys have it (GPT2LMHeadModel), the headless one's not (GPT2Model)
)
HEAD = "lm_head.weight"
_TRANSPOSED = re.compile(r"h\.[0-9]+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
# The causal mask and its fill value, which Transformers stored as buffers until 4.3x.
_OLD_BUFFER = re.compile(r"h\.[0-9]+\.attn\.(bias|masked_bias)")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each of our arrays is in the file, and what of the file is left over."""

    sources: Mapping[str, str]  # our name -> theirs
    stored_head: str | None  # a head that lies beside the embedding and must equal it
    notes: tuple[str, ...]


def is_transposed(name: str) -> bool:
    """Whether their tensor of our `name` is our array transposed."""
    return _TRANSPOSED.fullmatch(name) is not None


def their_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the file of our array `name` of `shape`."""
    return shape[::-1] if is_transposed(name) else shape


def layout(config: GPTConfig, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Find `config`'s arrays among a file's tensors; `shapes` maps every tensor's name to its shape.

    Raises CheckpointError naming the first tensor that is missing, unknown or of another shape.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in shapes) else ""
    expected = config.parameter_shapes()
    sources = {name: prefix + name for name in expected}
    notes, head = [], None
    if HEAD in shapes:
        head = HEAD
        if sources["wte.weight"] not in shapes:  # of a tied pair only the head was stored
            sources["wte.weight"], head = HEAD, None
            notes.append(f"{HEAD} is the token embedding, which is not stored under its own name")
    wanted = {*sources.values(), *([head] if head else [])}
    buffers = 0
    for name in shapes:
        if name in wanted:
            continue
        if not _OLD_BUFFER.fullmatch(name.removeprefix(prefix)):
            raise CheckpointError(f"tensor {shown(name)} is not this model's{did_you_mean(name, [*wanted])}")
        buffers += 1
    if buffers:
        notes.append(f"{buffers} attention-mask buffers dropped (attn.bias, attn.masked_bias): constants")
    for name, shape in expected.items():
        theirs = sources[name]
        if theirs not in shapes:
            raise CheckpointError(f"tensor '{theirs}' is missing")
        want = their_shape(name, shape)
        if tuple(shapes[theirs]) != want:
            raise CheckpointError(
                f"tensor '{theirs}' has shape {list(shapes[theirs])}, config.json says {list(want)}"
            )
    if head and tuple(shapes[head]) != expected["wte.weight"]:
        raise CheckpointError(
            f"tensor '{head}' has shape {list(shapes[head])}, the embedding it is tied to "
            f"{list(expected['wte.weight'])}"
        )
    return Layout(sources=sources, stored_head=head, notes=tuple(notes))
