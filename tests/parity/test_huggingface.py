"""Folders that Transformers writes are read, and folders that we write are run by Transformers.

Tolerance: as in `gpt2_lab`, float32 within 2e-5 of the largest logit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2_lab import LIMIT, random_model
from model_lab import MUP, STANDARD, TANH, stored_model
from wafergpt.checkpoints.huggingface.folder import read_folder, write_folder
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 250, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def assert_same(ours: Any, theirs: Any) -> None:
    left, right = logits(ours), logits(theirs)
    assert (left - right).abs().max() <= LIMIT[torch.float32] * right.abs().max()
    assert torch.equal(left.argmax(-1), right.argmax(-1))


def their_model(kind: str = "GPT2LMHeadModel", **changes: Any) -> Any:
    """Their tiny model with every weight drawn, biases and LayerNorms too."""
    settings: dict[str, Any] = {
        "vocab_size": 261, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 2,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    model = getattr(transformers, kind)(transformers.GPT2Config(**settings | changes))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, 0.1, generator=generator)
    return model.eval()


def old_buffers(folder: Path) -> None:
    """As Transformers before 4.3x saved: masks as buffers, and the head beside the embedding."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for layer in range(2):
        mask = torch.tril(torch.ones(24, 24, dtype=torch.uint8)).view(1, 1, 24, 24)
        tensors[f"transformer.h.{layer}.attn.bias"] = mask
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def minimal_config(folder: Path) -> None:
    """As the published Cerebras-GPT files: no architectures, ids or dtype."""
    keep = (
        "activation_function", "attn_pdrop", "embd_pdrop", "layer_norm_epsilon", "model_type", "n_embd",
        "n_head", "n_inner", "n_layer", "n_positions", "resid_pdrop", "scale_attn_weights",
        "tie_word_embeddings", "vocab_size",
    )  # fmt: skip
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: document[name] for name in keep}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_function": "gelu", "n_inner": 128},
        {"n_inner": 40, "n_head": 4, "layer_norm_epsilon": 1e-3},
    ],
    ids=["gpt2", "cerebras", "odd"],
)
def test_we_load_what_they_write(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = their_model(**changes)
    theirs.save_pretrained(tmp_path)
    assert_same(GPT.from_pretrained(tmp_path), theirs)


@pytest.mark.parametrize("change", [old_buffers, minimal_config])
def test_we_load_older_and_smaller_folders(change: Any, tmp_path: Path) -> None:
    theirs = their_model()
    theirs.save_pretrained(tmp_path)
    change(tmp_path)
    assert_same(GPT.from_pretrained(tmp_path), theirs)


def test_we_load_their_shards(tmp_path: Path) -> None:
    theirs = their_model()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(GPT.from_pretrained(tmp_path), theirs)


def test_we_load_the_headless_layout(tmp_path: Path) -> None:
    body = their_model("GPT2Model")
    body.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    with torch.no_grad():
        left, right = ours(IDS).last_hidden_state, body(IDS).last_hidden_state
    assert (left - right).abs().max() <= LIMIT[torch.float32] * right.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_we_load_their_half_types(dtype: torch.dtype, tmp_path: Path) -> None:
    their_model().to(dtype).save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same(GPT.from_pretrained(tmp_path), theirs)


@pytest.fixture(scope="module", params=[STANDARD, TANH, MUP], ids=["erf", "tanh", "mup"])
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StoredModel, Path]:
    config: GPTConfig = request.param
    folder = tmp_path_factory.mktemp("published") / "model"
    model = stored_model(config)
    write_folder(model, folder, max_shard_bytes=60_000)
    return model, folder


def test_they_load_what_we_write(published: tuple[StoredModel, Path]) -> None:
    model, folder = published
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert_same(GPT.from_stored(model), theirs.eval())  # for muP: our muP model against the folded file
    assert theirs.config.eos_token_id == model.tokenizer.end_of_text_id  # type: ignore[union-attr]


def test_the_comparison_would_see_another_activation(tmp_path: Path) -> None:
    model = stored_model(STANDARD)
    write_folder(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"gelu"', '"gelu_new"'))
    with pytest.raises(AssertionError):
        assert_same(GPT.from_stored(model), GPT.from_pretrained(tmp_path / "model"))


def test_their_tokenizer_classifier_and_pipeline(published: tuple[StoredModel, Path]) -> None:
    model, folder = published
    assert model.tokenizer is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("the weather", " whether\n\n it's 12 o'clock? \t✓ 日本", ""):
        assert tokenizer(text).input_ids == model.tokenizer.encode(text)
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.model_max_length == model.config.max_seq_len
    assert tokenizer.chat_template == model.chat_template
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        assert classifier(IDS[:1]).logits.shape == (1, 2)
    pipe = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    written = pipe("the weather", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert written.startswith("the weather")
    ids = model.tokenizer.encode("the weather")
    gpt = GPT.from_stored(model).eval()
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(gpt(torch.tensor([ids]), n_logits=1).logits[0, -1].argmax()))
            if ids[-1] == model.tokenizer.end_of_text_id:
                break
    assert model.tokenizer.decode(ids).startswith(written.removesuffix("<|endoftext|>"))


def test_they_save_again_what_we_read_again(published: tuple[StoredModel, Path], tmp_path: Path) -> None:
    model, folder = published
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert_same(GPT.from_pretrained(tmp_path), GPT.from_stored(model))
    back = read_folder(tmp_path)
    assert back.tokenizer is not None and model.tokenizer is not None
    assert back.tokenizer.encode("the matter") == model.tokenizer.encode("the matter")
    assert back.chat_template == model.chat_template


# -- a model on transposed, mapped weights trains and computes as one on its own copies


def both(tmp_path: Path) -> tuple[GPT, GPT]:
    model = random_model(TANH, torch.float32)
    write_folder(StoredModel(config=TANH, arrays=model.to_arrays()), tmp_path / "model")
    mapped = GPT.from_pretrained(tmp_path / "model")
    assert not mapped.h[0].attn.c_attn.weight.is_contiguous()
    return mapped, model


def test_gradients_are_the_same(tmp_path: Path) -> None:
    mapped, model = both(tmp_path)
    for gpt in (mapped, model):
        gpt.loss(IDS, IDS.roll(-1, 1)).backward()
    for (name, a), (_, b) in zip(mapped.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compute_dtype_makes_matrices_contiguous(dtype: torch.dtype, tmp_path: Path) -> None:
    mapped, model = both(tmp_path)
    mapped.to_compute_dtype(dtype)
    model.to_compute_dtype(dtype)
    assert all(p.is_contiguous() for p in mapped.parameters())
    assert torch.equal(logits(mapped), logits(model))


def test_optimiser_steps_are_the_same(tmp_path: Path) -> None:
    from wafergpt.training import optim
    from wafergpt.training.config import OptimConfig, Precision
    from wafergpt.training.state import TrainState

    masters = []
    for gpt in both(tmp_path):
        state = TrainState.fresh(dict(gpt.named_parameters()))
        weights = optim.bind_weights(gpt, state, Precision.FP32)
        rules = optim.update_rules(TANH, OptimConfig(peak_lr=1e-2), weights)
        gpt.loss(IDS, IDS.roll(-1, 1)).backward()
        grads = {name: p.grad for name, p in gpt.named_parameters() if p.grad is not None}
        optim.update(state, weights, grads, rules, OptimConfig(peak_lr=1e-2), lr=1e-2, grad_scale=1.0)
        masters.append(state.master)
    for name, value in masters[0].items():
        # Adam's first step is lr g / (|g| + eps): where g is near zero its rounding can turn the step round.
        agree = (value - masters[1][name]).abs() < 1e-4
        assert agree.float().mean() > 0.99, name


def test_the_file_is_never_written_through_the_model(tmp_path: Path) -> None:
    mapped, _ = both(tmp_path)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in mapped.parameters():
            parameter.add_(1)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_a_copy_outlives_its_file(tmp_path: Path) -> None:
    model = stored_model()
    write_folder(model, tmp_path / "model")
    copied = GPT.from_stored(read_folder(tmp_path / "model"), copy=True)
    with open(tmp_path / "model" / "model.safetensors", "r+b") as file:
        file.truncate(0)
    assert_same(copied, GPT.from_stored(model))
