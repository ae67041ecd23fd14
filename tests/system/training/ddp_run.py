"""What `torchrun` starts in the DDP test: train, and leave this process's losses and samples in a file.

torchrun --nproc-per-node 2 ddp_run.py DATA OUT
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "training"))

from tiny_training import tiny_config

from wafergpt.training import distributed, loop
from wafergpt.training.config import Device, Precision, ScheduleConfig, TrainConfig
from wafergpt.training.distributed import World
from wafergpt.training.fit import FitOptions, fit
from wafergpt.training.step import Ids

N_STEPS = 20


def configs(data: Path) -> dict[str, TrainConfig]:
    """The runs that are compared between one process and two."""
    schedule = ScheduleConfig(warmup_steps=4, total_steps=N_STEPS)
    plain = tiny_config(
        data, precision=Precision.FP32, batch_size=8, micro_batch_size=4, schedule=schedule, device=Device.CPU
    )
    return {
        "fp32": plain,
        "fp32 accumulated": replace(plain, micro_batch_size=2),
        "bf16 accumulated": replace(plain, micro_batch_size=2, precision=Precision.BF16),
    }


class Recorder:
    """Passes batches on and remembers which windows of the corpus they were."""

    def __init__(self, config: TrainConfig) -> None:
        self.loader = loop.open_batches(config)
        self.windows: list[int] = []

    def batch(self, index0: int, batch_size: int) -> tuple[Ids, Ids]:
        for index in range(index0, index0 + batch_size):
            epoch, position = divmod(index, self.loader.n_samples)
            self.windows.append(self.loader.sample_id(epoch, position))
        return self.loader.batch(index0, batch_size)

    def n_tokens(self, n_samples: int) -> int:
        return self.loader.n_tokens(n_samples)


def train(config: TrainConfig, world: World, *, same_share: bool = False) -> dict[str, list[float]]:
    """Losses and windows of this process. `same_share` plants a bug: all read the first share."""
    recorder = Recorder(config)
    trainer = loop.prepare(config, batches=recorder, world=world)
    if same_share:
        trainer.world = replace(world, rank=0)
    losses = [report.loss for report in loop.steps(config, trainer)]
    return {"losses": losses, "windows": list(recorder.windows)}


def main(data: Path, out: Path) -> None:
    """Every config, a planted bug, and one run of the standard caller, in this process of the group."""
    torch.set_num_threads(1)
    with distributed.join(Device.CPU) as world:
        found = {name: train(config, world) for name, config in configs(data).items()}
        found["planted"] = train(configs(data)["fp32"], world, same_share=True)
        (out / f"rank-{world.rank}.json").write_text(json.dumps(found))
        options = FitOptions(console=None, plot=False, measure_peak=False)
        fit(configs(data)["fp32"], out / "run", options=options)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
