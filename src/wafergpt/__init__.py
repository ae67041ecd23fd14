"""wafergpt: the open, end-to-end Cerebras-GPT stack.

The public names are loaded on first use (PEP 562), so that `import wafergpt` costs nothing and works
without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wafergpt.api import generate, load, pipeline, train
    from wafergpt.devices.wse2 import WSE2
    from wafergpt.inference.sampling import SamplingConfig
    from wafergpt.model.cache import KVCache
    from wafergpt.model.config import GPTConfig
    from wafergpt.model.family import FAMILY
    from wafergpt.model.gpt import GPT
    from wafergpt.tokenizer.bpe import Tokenizer
    from wafergpt.training.config import TrainConfig

    __version__: str

__all__ = [
    "FAMILY",
    "GPT",
    "WSE2",
    "GPTConfig",
    "KVCache",
    "SamplingConfig",
    "Tokenizer",
    "TrainConfig",
    "__version__",
    "generate",
    "load",
    "pipeline",
    "train",
]

_HOME = {
    "FAMILY": "wafergpt.model.family",
    "GPT": "wafergpt.model.gpt",
    "GPTConfig": "wafergpt.model.config",
    "KVCache": "wafergpt.model.cache",
    "SamplingConfig": "wafergpt.inference.sampling",
    "Tokenizer": "wafergpt.tokenizer.bpe",
    "TrainConfig": "wafergpt.training.config",
    "WSE2": "wafergpt.devices.wse2",
    "generate": "wafergpt.api",
    "load": "wafergpt.api",
    "pipeline": "wafergpt.pipelines",
    "train": "wafergpt.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("wafergpt")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'wafergpt' has no attribute '{name}'")
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
