"""A real third-party GPT-2, trained on bacterial genera, published as an old `.bin`: against Transformers.

Ours comes through our own reader of `.bin` files and the safetensors it writes; theirs is loaded by torch
from the published file. So this holds the whole way in, on trained weights, to an independent one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpt2_lab import LIMIT
from wafergpt.assets.fetch import fetch
from wafergpt.checkpoints.huggingface.folder import read_folder
from wafergpt.checkpoints.torch_bin.convert import bin_to_safetensors
from wafergpt.errors import AssetError
from wafergpt.model.gpt import GPT

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.assets
BOS, FIRST_GENUS = 2, 4  # ids 0 to 3 are <pad>, <mask>, <bos>, <eos>; then the rows of phylogeny.csv


@pytest.fixture(scope="module")
def published() -> Path:
    try:
        return fetch("microformer-mgm")
    except AssetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ours(published: Path, tmp_path_factory: pytest.TempPathFactory) -> GPT:
    folder = tmp_path_factory.mktemp("microformer") / "converted"
    bin_to_safetensors(published, folder)
    return GPT.from_stored(read_folder(folder)).eval()


@pytest.fixture(scope="module")
def theirs(published: Path) -> torch.nn.Module:
    config = transformers.GPT2Config.from_json_file(str(published / "config.json"))
    model = transformers.GPT2LMHeadModel(config)
    weights = torch.load(published / "pytorch_model.bin", weights_only=True, map_location="cpu")
    model.load_state_dict(weights)
    return model.eval()


def samples(config_vocab: int, n_rows: int, n_positions: int) -> Tensor:
    """Genera drawn without repetition, as in the model's training samples, [n_rows, n_positions]."""
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randperm(config_vocab - FIRST_GENUS, generator=generator) for _ in range(n_rows)]
    return torch.stack([row[:n_positions] for row in rows]) + FIRST_GENUS


@pytest.mark.parametrize("dtype", LIMIT, ids=["f32", "f64"])
def test_logits(ours: GPT, theirs: torch.nn.Module, dtype: torch.dtype) -> None:
    """Every position of the window of 512, and of a row padded on the left."""
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    ids = samples(ours.config.vocab_size, 2, ours.config.max_seq_len)
    mask = torch.ones_like(ids)
    mask[1, :200] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        found = ours(ids, attention_mask=mask).logits[mask.bool()]
        expected = theirs(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    assert (found - expected).abs().max() <= LIMIT[dtype] * expected.abs().max()
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_it_is_trained(ours: GPT, published: Path) -> None:
    """With its vocabulary: gut bacteria follow Bacteroides, those of the mouth Streptococcus."""
    rows = (published / "phylogeny.csv").read_text(encoding="utf-8").splitlines()[1:]
    genera = [row.partition(",")[0].removeprefix("g__") for row in rows]
    likely = {
        ("Bacteroides",): ["Parabacteroides", "Faecalibacterium", "Alistipes"],
        ("Streptococcus", "Veillonella"): ["Gemella", "Rothia", "Granulicatella"],
    }
    for prompt, expected in likely.items():
        ids = torch.tensor([[BOS, *(FIRST_GENUS + genera.index(genus) for genus in prompt)]])
        with torch.no_grad():
            top = ours(ids, n_logits=1).logits[0, -1].topk(3).indices
        assert [genera[token_id - FIRST_GENUS] for token_id in top.tolist()] == expected


def test_another_activation_is_caught(
    ours: GPT, theirs: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: the erf form of GELU in one of its eight blocks fails the comparison."""
    monkeypatch.setattr(ours.h[3].mlp, "tanh", False)
    with pytest.raises(AssertionError):
        test_logits(ours, theirs, torch.float32)
