"""The article's first listing (section 5.1), running: it prints `torch.Size([1, 6, 768])`.

    python examples/article_5_1.py                         our GPT inside
    python examples/article_5_1.py --inside transformers   Transformers' GPT2Model inside

The weights are the hub's `gpt2` if they can be had (its cache counts). Otherwise the model has the shape of
GPT-2 small and random weights, and says so: same program, same shapes, numbers without meaning.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor, nn

import wafergpt
from wafergpt.assets.fetch import fetch
from wafergpt.errors import CheckpointError, MissingDependencyError
from wafergpt.model.config import Activation

# Radford et al. 2019; layers, heads and GELU as in the config.json of the hub's gpt2.
GPT2_SMALL = wafergpt.GPTConfig(
    d_model=768, n_layers=12, n_heads=12, max_seq_len=1024, activation=Activation.GELU_TANH
)


class GPT(nn.Module):
    """The article's class. What `tokenizer` and `model` are is chosen by `inside`."""

    def __init__(self, inside: str = "wafergpt") -> None:
        super().__init__()
        self.tokenizer, self.model = {"wafergpt": ours, "transformers": theirs}[inside]()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, T], [B, T] -> hidden states after the last LayerNorm [B, T, D]."""
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return outputs.last_hidden_state


def ours() -> tuple[Any, nn.Module]:
    """wafergpt's tokenizer and model."""
    try:
        model = wafergpt.GPT.from_pretrained("gpt2")
    except (CheckpointError, MissingDependencyError) as error:
        say_random(error)
        model = wafergpt.GPT(GPT2_SMALL)
    return wafergpt.Tokenizer.gpt2(), model.eval()


def theirs() -> tuple[Any, nn.Module]:
    """Transformers' tokenizer and model."""
    from transformers import GPT2Config, GPT2Model, GPT2Tokenizer

    try:
        return GPT2Tokenizer.from_pretrained("gpt2"), GPT2Model.from_pretrained("gpt2")
    except OSError as error:
        say_random(error)
        files = fetch("gpt2-tokenizer")
        tokenizer = GPT2Tokenizer(str(files / "encoder.json"), str(files / "vocab.bpe"))
        return tokenizer, GPT2Model(GPT2Config()).eval()  # its defaults are GPT-2 small


def say_random(reason: Exception) -> None:
    """One line on stderr."""
    print(f"random weights, because: {str(reason).splitlines()[0]}", file=sys.stderr)


def main() -> None:
    """The article's six lines."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--inside", choices=("wafergpt", "transformers"), default="wafergpt")
    model = GPT(options.parse_args().inside)
    input_text = "Hello, how are you?"
    input_ids = torch.tensor([model.tokenizer.encode(input_text)])
    attention_mask = torch.ones_like(input_ids)
    with torch.no_grad():
        outputs = model(input_ids, attention_mask)
    print(outputs.shape)


if __name__ == "__main__":
    main()
