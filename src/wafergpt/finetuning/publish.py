"""The model a fine-tuning run leaves: plain weights, its head, its tokenizer and what it was taught."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wafergpt.checkpoints.native import CHECKPOINTS_NAME, CheckpointStore
from wafergpt.checkpoints.native_model import CONFIG_DOCUMENT, MODEL_GROUP, ORIGIN_DOCUMENT
from wafergpt.checkpoints.task_files import HEAD_GROUP, TASK_DOCUMENT
from wafergpt.config import to_dict
from wafergpt.finetuning.config import FineTuneConfig
from wafergpt.finetuning.material import Material
from wafergpt.model import heads, lora
from wafergpt.tasks import registry
from wafergpt.tokenizer.bpe import FILE_NAME as TOKENIZER_NAME
from wafergpt.training.state import TrainState

Arrays = dict[str, NDArray[np.float32]]
_HEAD_PREFIX = f"{heads.NAME}."


def model_arrays(state: TrainState, material: Material, config: FineTuneConfig) -> Arrays:
    """The plain float32 weights: those that were trained, or the base's with the adapters merged in."""
    trained = {name: tensor.detach().cpu() for name, tensor in state.master.items()}
    if config.lora is None:
        return {n: t.numpy() for n, t in trained.items() if not n.startswith(_HEAD_PREFIX)}
    arrays = {name: np.asarray(material.base.arrays[name], np.float32) for name in material.base.arrays}
    for name, b in trained.items():
        layer, _, kind = name.rpartition(".")
        if kind == lora.B:
            weight = torch.from_numpy(np.array(arrays[f"{layer}.weight"]))
            a = trained[f"{layer}.{lora.A}"]
            arrays[f"{layer}.weight"] = lora.merged_weight(weight, a, b, config.lora.scale).numpy()
    return arrays


def head_arrays(state: TrainState) -> Arrays:
    """`weight` and `bias` of the head; empty when there is none."""
    return {
        name.removeprefix(_HEAD_PREFIX): tensor.detach().cpu().numpy()
        for name, tensor in state.master.items()
        if name.startswith(_HEAD_PREFIX)
    }


def publish(folder: Path, state: TrainState, material: Material, config: FineTuneConfig) -> Path:
    """Save the model of `state` as the folder's only checkpoint; `wafergpt.load(folder)` reads it."""
    groups: dict[str, Mapping[str, NDArray[Any]]] = {MODEL_GROUP: model_arrays(state, material, config)}
    head = head_arrays(state)
    if head:
        groups[HEAD_GROUP] = head
    facts = {"base": str(config.base), "base_provenance": to_dict(dict(material.base.provenance))}
    documents = {
        CONFIG_DOCUMENT: to_dict(config),
        TASK_DOCUMENT: {
            "format": 1,
            "task": material.task.name,
            "settings": registry.settings_of(material.task),
        },
        ORIGIN_DOCUMENT: {**facts, "task": material.task.name, "step": state.step, "seed": config.seed},
    }
    blobs = {TOKENIZER_NAME: material.tokenizer.to_bytes()}
    return CheckpointStore(folder / CHECKPOINTS_NAME, keep=1).save(state.step, groups, documents, blobs)
