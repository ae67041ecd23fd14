"""One training step of a small GPT under the modelled wafer, and the report.

    python examples/wafer_train_step.py                     streaming, results as without the device
    python examples/wafer_train_step.py --numerics cb16     every operator rounded to the wafer's format

The host computes; the wafer's time is modelled. The step is an ordinary PyTorch step with AdamW.
"""

from __future__ import annotations

import argparse

import torch

from wafergpt import GPT, WSE2, GPTConfig

CONFIG = GPTConfig(d_model=128, n_layers=4, n_heads=4, vocab_size=4096, max_seq_len=128)
ROWS = 4


def main() -> None:
    """Build, step, report."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--numerics", choices=("exact", "cb16", "fp16", "bf16", "fp32"), default="exact")
    options.add_argument("--execution", choices=("streaming", "resident"), default="streaming")
    options.add_argument("--arch", default="WSE-2", help="WSE-2, WSE-3 or a mesh such as 64x64")
    chosen = options.parse_args()
    draws = torch.Generator().manual_seed(0)
    model = GPT(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    text = torch.randint(CONFIG.vocab_size, (ROWS, CONFIG.max_seq_len + 1), generator=draws)

    wafer = WSE2(chosen.arch, numerics=chosen.numerics, execution=chosen.execution)
    wafer.start()
    loss = model.loss(text[:, :-1], text[:, 1:])
    loss.backward()
    optimizer.step()
    report = wafer.stop()

    print(f"loss {loss.item():.6f}, numerics {chosen.numerics}")
    print("\n".join(report.lines()))


if __name__ == "__main__":
    main()
