"""One process or several under `torchrun`: who am I, and the few things processes must agree on.

Every process sees the same global sample order and takes its own contiguous share of each batch;
PyTorch's DistributedDataParallel averages the gradients (gloo on CPUs, nccl on GPUs).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch import distributed as dist

from wafergpt.config import require
from wafergpt.training.config import Device


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of this run. `World()` is one process alone on the CPU."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the terminal."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over processes, float64; the same on each."""
        if self.size == 1:
            return list(values)
        reduced = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(reduced)
        return [float(value) for value in reduced.cpu()]

    def mean(self, value: float) -> float:
        """Mean over processes."""
        return value if self.size == 1 else self.total([value])[0] / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.size == 1 else self.total([float(flag)])[0] > 0

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over processes, in place; every process gives them in one order."""
        if self.size == 1:
            return
        tensors = list(tensors)
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()
        for tensor in tensors:
            tensor /= self.size

    def alone(self, module: nn.Module) -> contextlib.AbstractContextManager[object]:
        """Inside, a backward pass of the replicated `module` speaks to no other process."""
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return module.no_sync()
        return contextlib.nullcontext()

    def replicate(self, module: nn.Module) -> nn.Module:
        """`module`, with gradients averaged over processes during backward."""
        if self.size == 1:
            return module
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=device_ids)  # there are no buffers


class LossModule(nn.Module):
    """`model.loss` as a forward pass, because DistributedDataParallel hooks into `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """input_ids, labels [B, T] -> mean nats, float32 scalar."""
        loss: Tensor = self.model.loss(input_ids, labels)  # type: ignore[operator]
        return loss


def pick_device(device: Device, local_rank: int) -> torch.device:
    """The torch device of this process. Raises ConfigError when CUDA is asked for and absent."""
    has_cuda = torch.cuda.is_available()
    require(device is not Device.CUDA or has_cuda, "device = cuda, but torch finds no CUDA device here")
    if device is Device.CPU or not has_cuda:
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def join(device: Device) -> Iterator[World]:
    """The world this process was started in: alone, or one of those `torchrun` started (RANK, WORLD_SIZE).

    A process group that is there already is used and left in place.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    picked = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(device=picked)
        return
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
    is_ours = not dist.is_initialized()
    if is_ours:
        dist.init_process_group("nccl" if picked.type == "cuda" else "gloo")
    try:
        yield World(rank=dist.get_rank(), size=size, device=picked)
    finally:
        if is_ours:
            dist.destroy_process_group()
