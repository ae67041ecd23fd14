"""What the bits of a result depend on besides the configuration: stored with a run, compared on resume."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from wafergpt.ops.status import kernels_in_use
from wafergpt.training.distributed import World

Fingerprint = dict[str, str | int]


def fingerprint(world: World) -> Fingerprint:
    """Versions, threads, CPU features and kernels of this process; plain data."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device,
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_flags_sha256": _cpu_flags_sha256(),
        "kernels": kernels_in_use(),
    }


def _cpu_flags_sha256() -> str:
    """Digest of the CPU's feature flags as Linux lists them; '' where there is no /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16]


def mismatches(stored: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """One phrase per entry that differs, e.g. `threads was 2, is 1`."""
    names = [*stored, *(name for name in now if name not in stored)]
    return [
        f"{name} was {stored.get(name)!r}, is {now.get(name)!r}"
        for name in names
        if stored.get(name) != now.get(name)
    ]
