"""Model Zoo configurations rebuilt from facts: what the fourteen files say, in each generation's words.

The figures are those of gpt3/configs/Cerebras_GPT/*.yaml and muP/params_gpt3_40M.yaml of
github.com/Cerebras/modelzoo (Apache-2.0); the text of the files is not here. Written independently of
`recipes.cerebras_gpt`, with the literals the files print, so that the two can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

FOLDERS = [f"./pile/train_shuffled_msl2048/{i}/" for i in range(10)]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One file. `out_std` as printed; `base_std` and `mup` for the muP files."""

    hidden: int
    layers: int
    heads: int
    batch: int
    peak: float
    warmup: int
    decay: int
    cosine: bool = False
    eps: float = 1e-8
    max_steps: int | None = None
    out_std: float | None = 0.0025
    mup: bool = False
    eval_every: int = 1000
    eval_steps: int = 1000
    eval_batch: int = 120

    @property
    def steps(self) -> int:
        return self.max_steps or self.warmup + self.decay


def _mup(facts: Facts, *, cosine: bool = False) -> Facts:
    return replace(facts, mup=True, peak=6e-3, out_std=0.08, cosine=cosine)


_S111 = Facts(hidden=768, layers=10, heads=12, batch=120, peak=6e-4, warmup=1525, decay=7512,
              out_std=0.004472135954999579, eval_every=903, eval_steps=1546)  # fmt: skip
_S256 = Facts(hidden=1088, layers=14, heads=17, batch=264, peak=6e-4, warmup=693, decay=8775,
              out_std=0.0037796447300922722)  # fmt: skip
_S590 = Facts(hidden=1536, layers=18, heads=12, batch=264, peak=2e-4, warmup=693, decay=21143,
              out_std=0.003333333333333333)  # fmt: skip
_S1300 = Facts(hidden=2048, layers=24, heads=16, batch=528, peak=2e-4, warmup=346, decay=23988, cosine=True)
_S2700 = Facts(hidden=2560, layers=32, heads=32, batch=528, peak=2e-4, warmup=346, decay=48695, cosine=True)
_13B = {"hidden": 5120, "layers": 40, "heads": 40, "peak": 1.2e-4, "cosine": True, "eps": 1e-9}

# name of the published run -> its file
FILES: dict[str, Facts] = {
    "111M": _S111,
    "256M": _S256,
    "590M": _S590,
    "1.3B": _S1300,
    "2.7B": _S2700,
    "6.7B": Facts(
        hidden=4096, layers=32, heads=32, batch=1040, peak=1.2e-4, warmup=176, decay=62346, eps=1e-9
    ),
    "13B-phase1": Facts(**_13B, batch=720, warmup=254, decay=174081, max_steps=57000),
    "13B-phase2": Facts(**_13B, batch=1080, warmup=169, decay=116054),
    "111M-muP": _mup(_S111),
    "256M-muP": _mup(_S256),
    "590M-muP": _mup(_S590),
    "1.3B-muP": _mup(_S1300, cosine=True),
    "2.7B-muP": _mup(_S2700, cosine=True),
    "40M-muP": Facts(
        hidden=256,
        layers=24,
        heads=4,
        batch=256,
        peak=6e-3,
        warmup=152,
        decay=1373,
        out_std=None,
        mup=True,
        eval_steps=1447,
        eval_batch=128,
    ),
}


def _truncated(std: float) -> dict[str, Any]:
    return {"mean": 0.0, "name": "truncated_normal", "std": std, "a": -2 * std, "b": 2 * std}


def _model(facts: Facts, std: float, hidden_std: float, out_std: float | None) -> dict[str, Any]:
    model: dict[str, Any] = {
        "hidden_size": facts.hidden,
        "position_embedding_type": "learned",
        "share_embedding_weights": True,
        "max_position_embeddings": 2048,
        "vocab_size": 50257,
        "num_hidden_layers": facts.layers,
        "dropout_rate": 0.0,
        "layer_norm_epsilon": 1.0e-5,
        "num_heads": facts.heads,
        "attention_type": "scaled_dot_product",
        "attention_dropout_rate": 0.0,
        "use_projection_bias_in_attention": True,
        "use_ffn_bias_in_attention": True,
        "filter_size": 4 * facts.hidden,
        "nonlinearity": "gelu",
        "use_ffn_bias": True,
        "embedding_initializer": _truncated(std),
        "initializer": _truncated(hidden_std),
        "loss_scaling": "batch_size",
        "loss_weight": 0.00048828125,
        "use_bias_in_output": False,
    }
    if out_std is not None:
        model["output_layer_initializer"] = _truncated(out_std)
    return model


def _loader(batch: int, **more: Any) -> dict[str, Any]:
    return {"data_processor": "GptHDF5DataProcessor", "batch_size": batch, "num_workers": 1, **more}


def trainer_style(facts: Facts) -> dict[str, Any]:
    """The file of release 2.3 and later."""
    std = 0.08 if facts.mup else 0.02
    model = {"name": "gpt3", **_model(facts, std, std, facts.out_std)}
    if facts.mup:
        model |= {"mup_base_filter_size": 1024, "mup_base_hidden_size": 256, "scale_qk_dot_by_d": True}
        model |= {"output_logits_alpha": 1.0, "embeddings_scale": 10}
    proxy = facts.out_std is None
    if proxy:
        model |= {"loss_scaling": "num_tokens", "loss_weight": 1.0}
    down = "CosineDecayLR" if facts.cosine else "LinearLR"
    end = 0.0006000000000000001 if proxy else facts.peak / 10
    pieces = [
        {
            "LinearLR": {
                "initial_learning_rate": 0.0,
                "end_learning_rate": facts.peak,
                "total_iters": facts.warmup,
            }
        },
        {down: {"initial_learning_rate": facts.peak, "end_learning_rate": end, "total_iters": facts.decay}},
    ]
    precision = {"enabled": True, "fp16_type": "bfloat16", "precision_opt_level": 0}
    if proxy:
        precision = {"enabled": True, "fp16_type": "cbfloat16", "loss_scaling_factor": "dynamic"}
    validation = _loader(facts.eval_batch, data_dir="./pile/val_msl2048/", shuffle=False)
    fit = {
        "train_dataloader": _loader(
            facts.batch,
            data_dir=FOLDERS,
            shuffle=not proxy,
            shuffle_seed=0,
            prefetch_factor=10,
            persistent_workers=True,
        ),
        "val_dataloader": validation,
    }
    init = {
        "backend": {"backend_type": "CSX"},
        "model": model,
        "optimizer": {
            "AdamW": {"betas": [0.9, 0.95], "eps": facts.eps, "weight_decay": 0.1, "correct_bias": True}
        },
        "schedulers": [{"SequentialLR": {"schedulers": pieces}}],
        "precision": {**precision, "max_gradient_norm": 1.0, "log_loss_scale": True},
        "loop": {
            "max_steps": facts.steps,
            "eval_frequency": facts.eval_every,
            "eval_steps": facts.eval_steps,
        },
        "checkpoint": {"steps": facts.eval_every, "save_initial_checkpoint": False},
        "logging": {"log_steps": 1},
        "callbacks": [{"ComputeNorm": {}}],
    }
    body = {"init": init, "fit": fit, "validate": {"val_dataloader": validation}}
    return {"trainer": {**body, "validate_all": {"val_dataloaders": validation}}}


def old_style(facts: Facts, release: str) -> dict[str, Any]:
    """The file of release `1.7` (batch per system), `1.9.1` (muP with the standard initialisers) or `2.2`."""
    wide = facts.hidden / 256
    std, hidden_std, out_std = 0.02, 0.02, facts.out_std
    if facts.mup and release == "2.2":
        std, hidden_std, out_std = 0.08, 0.08 / wide**0.5, 0.08 / (2 * facts.layers * wide) ** 0.5
    elif facts.mup:
        out_std = 0.0025
    model = {**_model(facts, std, hidden_std, out_std), "mixed_precision": True}
    optimizer: dict[str, Any] = {"optimizer_type": "AdamW", "eps": facts.eps, "max_gradient_norm": 1.0}
    optimizer |= {"log_summaries": True, "correct_bias": True}
    steps = {"1.7": "steps", "1.9.1": "steps", "2.2": "total_iters"}[release]
    down = "CosineDecay" if facts.cosine else "Linear"
    optimizer["learning_rate"] = [
        {"scheduler": "Linear", "initial_learning_rate": 0.0, "end_learning_rate": facts.peak,
         steps: facts.warmup},
        {"scheduler": down, "initial_learning_rate": facts.peak, "end_learning_rate": facts.peak / 10,
         steps: facts.decay},
    ]  # fmt: skip
    runconfig: dict[str, Any] = {"max_steps": facts.steps, "eval_steps": facts.eval_steps, "log_steps": 1}
    runconfig |= {"checkpoint_steps": facts.eval_every, "enable_distributed": False}
    runconfig["save_initial_checkpoint"] = False
    train = _loader(facts.batch, data_dir=FOLDERS, shuffle=True, shuffle_seed=0, persistent_workers=True)
    evaluation = _loader(facts.eval_batch, data_dir="./pile/val_msl2048/", shuffle=False)
    if release == "2.2":
        model["fp16_type"] = "bfloat16"
        optimizer |= {"betas": [0.9, 0.95], "weight_decay": 0.1}
        runconfig["precision_opt_level"] = 0
    else:
        model |= {"use_bfloat16": True, "use_position_embedding": True}
        optimizer |= {"beta1": 0.9, "beta2": 0.95, "weight_decay_rate": 0.1}
        runconfig |= {"save_losses": True, "use_appliance_data": True}
    if release == "1.9.1":
        runconfig |= {"use_cs_grad_accum": True, "precision_opt_level": 0}
    if release == "1.7":
        del model["loss_scaling"], model["loss_weight"]
        model["precision_opt_level"] = 0
        runconfig |= {"execution_strategy": "weight_streaming", "save_summary_steps": 1}
        for loader in (train, evaluation):
            loader |= {"max_sequence_length": 2048, "vocab_size": 50257, "repeat": True}
        train["batch_size"] = {720: 90, 1080: 90, 528: 132, 1040: 130}.get(facts.batch, facts.batch)
    if facts.mup:
        model |= {"scale_qk_dot_by_d": True, "output_logits_scale": 1 / wide, "embeddings_scale": 10}
        optimizer["adjust_learning_rate"] = {"decoder_kernel": 1 / wide}
    return {
        "train_input": train,
        "eval_input": evaluation,
        "model": model,
        "optimizer": optimizer,
        "runconfig": runconfig,
    }


def write(tree: dict[str, Any], path: Path) -> Path:
    """As a YAML file, with an anchor and alias where an object stands twice, as in the Zoo's own."""
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path
