"""Real third-party GPT-2 weights, taught a toy task: where in the body do these bacteria live?

The test's genera never occur in training, so only what pre-training knows of them can tell; the same model
from random weights can but guess.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wafergpt
from wafergpt.assets.fetch import fetch
from wafergpt.checkpoints.huggingface.folder import read_folder
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.checkpoints.task_files import read_task
from wafergpt.checkpoints.torch_bin.convert import bin_to_safetensors
from wafergpt.errors import AssetError
from wafergpt.evaluation.tasks import score
from wafergpt.finetuning.config import ExamplesConfig
from wafergpt.finetuning.job import FineTuning
from wafergpt.finetuning.material import Material
from wafergpt.inference.task_model import TaskModel
from wafergpt.model.config import LoRAConfig
from wafergpt.runs.finetune import DataShape, Plan, finetune
from wafergpt.tasks.classification import Classification
from wafergpt.tasks.examples import collect
from wafergpt.training.config import Precision
from wafergpt.training.fit import FitOptions, run

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "tasks"))
from task_lab import byte_tokenizer

pytestmark = pytest.mark.assets

# Genera that textbooks name for each site; the first half of each is trained on, the second tested.
GUT = [
    "Bacteroides", "Faecalibacterium", "Roseburia", "Blautia", "Ruminococcus", "Bifidobacterium",
    "Akkermansia", "Dialister", "Coprococcus", "Collinsella", "Parabacteroides", "Alistipes", "Dorea",
    "Lachnospira", "Sutterella", "Bilophila", "Odoribacter", "Barnesiella", "Anaerostipes",
    "Phascolarctobacterium",
]  # fmt: skip
MOUTH = [
    "Streptococcus", "Veillonella", "Rothia", "Neisseria", "Fusobacterium", "Leptotrichia", "Actinomyces",
    "Treponema", "Kingella", "Lautropia", "Gemella", "Granulicatella", "Haemophilus", "Porphyromonas",
    "Capnocytophaga", "Tannerella", "Aggregatibacter", "Cardiobacterium", "Eikenella", "Selenomonas",
]  # fmt: skip
N = 10
FIRST_GENUS = 4  # ids 0 to 3 are <pad>, <mask>, <bos>, <eos>; then the rows of phylogeny.csv


class Genera:
    """The model's own vocabulary, as the tasks ask for a tokenizer: a name is a token, 2 starts a sample."""

    end_of_text_id = 2

    def __init__(self, folder: Path) -> None:
        rows = (folder / "phylogeny.csv").read_text(encoding="utf-8").splitlines()[1:]
        names = [row.partition(",")[0].removeprefix("g__") for row in rows]
        self.ids = {name: FIRST_GENUS + i for i, name in enumerate(names)}
        self.vocab_size = FIRST_GENUS + len(names)

    def encode(self, text: str) -> list[int]:
        return [self.ids[name] for name in text.split()]

    def to_bytes(self) -> bytes:
        """What a checkpoint must carry; nothing here reads it."""
        return byte_tokenizer().to_bytes()


def records(part: slice, n: int, seed: int) -> list[dict[str, str]]:
    """Samples of three genera of one site."""
    draw = random.Random(seed)
    found = {}
    while len(found) < n:
        label = draw.choice(["gut", "mouth"])
        text = " ".join(draw.sample((GUT if label == "gut" else MOUTH)[part], 3))
        found[text] = {"text": text, "label": label}
    return list(found.values())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredModel, Genera]:
    try:
        published = fetch("microformer-mgm")
    except AssetError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("microformer") / "converted"
    bin_to_safetensors(published, folder)
    return read_folder(folder), Genera(published)


def accuracy(base: tuple[StoredModel, Genera], out: Path, **changes: Any) -> float:
    """Fine-tune on the first genera, load what was published, score it on the others."""
    stored, genera = base
    task = Classification(labels=("gut", "mouth"))
    train = collect(task, records(slice(0, N), 160, 1), genera, 16)  # type: ignore[arg-type]
    material = Material(base=stored, tokenizer=genera, task=task, train=train, validation=None)  # type: ignore[arg-type]
    plan = Plan(base=out, data=out, examples=ExamplesConfig(task="classification"), epochs=4.0, **changes)
    sizes = [row.n_positions for row in train.rows]
    config = finetune(plan, stored.config, DataShape(n_examples=len(sizes), n_tokens=sum(sizes), longest=4))
    config = replace(config, save_every=config.schedule.total_steps)  # 107 MB each
    options = FitOptions(console=None, plot=False, measure_peak=False)
    run(config, lambda: FineTuning(config, out, material), options=options)
    loaded = wafergpt.load(out)
    files = read_task(loaded.checkpoint_path)
    assert files is not None
    model = TaskModel(loaded.engine, genera, files.head)  # type: ignore[arg-type]
    return score(task, model, records(slice(N, None), 100, 2)).scores["accuracy"]


def test_real_weights_know_what_random_ones_cannot(base: tuple[StoredModel, Genera], tmp_path: Path) -> None:
    """100 samples: guessing gives 0.5 with a deviation of 0.05, so 0.8 is six deviations away from it."""
    pretrained = accuracy(base, tmp_path / "pretrained")
    assert pretrained >= 0.8
    assert pretrained > accuracy(base, tmp_path / "random", random_weights=True)


def test_adapters_on_real_weights(base: tuple[StoredModel, Genera], tmp_path: Path) -> None:
    found = accuracy(base, tmp_path / "lora", lora=LoRAConfig(rank=4), precision=Precision.FP32)
    assert found >= 0.8


def test_shuffled_weights_are_caught(base: tuple[StoredModel, Genera], tmp_path: Path) -> None:
    """The planted bug: genera read through another genus's embedding know nothing."""
    stored, genera = base
    arrays = {name: np.array(stored.arrays[name]) for name in stored.arrays}
    arrays["wte.weight"] = arrays["wte.weight"][
        np.random.default_rng(0).permutation(len(arrays["wte.weight"]))
    ]
    assert accuracy((replace(stored, arrays=arrays), genera), tmp_path / "shuffled") < 0.8
