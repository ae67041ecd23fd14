"""How Cerebras-GPT was trained: the published table, run by run, with sources. Data and pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wafergpt.errors import ConfigError
from wafergpt.model import family
from wafergpt.model.config import FlopsConvention, GPTConfig
from wafergpt.recipes.scaling_law import law

SEQ_LEN = 2048  # max_sequence_length of every Cerebras_GPT/*.yaml

# Shared by every run. Source: Model Zoo Cerebras_GPT/*.yaml, `optimizer` and `precision` blocks.
ADAM_BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1  # not on biases and LayerNorm: Model Zoo common/optim_utils.py
GRADIENT_CLIP_NORM = 1.0  # max_gradient_norm
FINAL_LR_FRACTION = 0.1  # end_learning_rate is a tenth of the peak in every YAML
PRECISION = "bfloat16 mixed, float32 master weights"

# Source of each figure of the table, by the name it is printed under.
SOURCES = {
    "shape": "Model Zoo Cerebras_GPT/*.yaml; arXiv 2304.03208 table 1",
    "batch": "Model Zoo Cerebras_GPT/*.yaml batch_size; arXiv 2304.03208 table 1",
    "learning rate": "Model Zoo Cerebras_GPT/*.yaml schedulers; arXiv 2304.03208 tables 1 and 6",
    "steps": "Model Zoo Cerebras_GPT/*.yaml schedulers and max_steps",
    "optimizer": "Model Zoo Cerebras_GPT/*.yaml optimizer; common/optim_utils.py",
    "initialisation": "arXiv 2304.03208; Model Zoo layers/init.py",
    "muP": "Model Zoo gpt3/configs/muP/params_gpt3_40M.yaml; 1.9.1 gpt3/README.md",
    "systems": "Model Zoo Cerebras_GPT/*.yaml comments; arXiv 2304.03208",
    "eps": "Model Zoo Cerebras_GPT/*.yaml optimizer; rule eps <= sqrt(mean v)/1000, arXiv 2304.03208",
    "loss": "Model Zoo 1.9.1 Cerebras_GPT/README.md",
    "card loss": "Hugging Face Cerebras-GPT card",
    "headline FLOPs": "Model Zoo 1.9.1 Cerebras_GPT/README.md, Hugging Face card",
    "older FLOPs": "Model Zoo 1.9.1 Cerebras_GPT/README.md, steps table",
}


class Decay(StrEnum):
    """How the learning rate falls from its peak to a tenth of it."""

    LINEAR = "linear"
    COSINE = "cosine"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Part of a run at one batch size. The schedule counts from step 0, the phase from `first_step`."""

    batch_sequences: int
    warmup_steps: int
    decay_steps: int
    first_step: int
    last_step: int  # exclusive: the step counter when the phase ends
    n_systems: int | None = None  # CS-2 systems, where published

    @property
    def batch_tokens(self) -> int:
        """Tokens per optimiser step."""
        return self.batch_sequences * SEQ_LEN

    @property
    def n_curve_steps(self) -> int:
        """Steps of the learning-rate curve, of which the phase may take only a part."""
        return self.warmup_steps + self.decay_steps

    @property
    def n_steps(self) -> int:
        """Optimiser steps taken in this phase."""
        return self.last_step - self.first_step

    @property
    def n_tokens(self) -> int:
        """Tokens seen in this phase."""
        return self.n_steps * self.batch_tokens


@dataclass(frozen=True, kw_only=True)
class PublishedRecipe:
    """One published run; `None` where the authors printed nothing."""

    name: str
    phases: tuple[Phase, ...]
    peak_lr: float  # under muP: the base rate, before the width rule
    decay: Decay
    adam_eps: float
    test_loss: float | None = None  # nats/token on the Pile's test set, paper and Model Zoo README
    card_loss: float | None = None  # the Hugging Face card's figure; differs for five of seven sizes
    headline_flops: float | None = None
    older_flops: float | None = None  # the README's steps table
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> GPTConfig:
        """Shape and parametrisation, from `model.family`."""
        return family.get(self.name).config

    @property
    def end_lr(self) -> float:
        """Learning rate at the end of the decay."""
        return self.peak_lr * FINAL_LR_FRACTION

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole run."""
        return sum(phase.n_tokens for phase in self.phases)

    @property
    def tokens_per_param(self) -> float:
        """Tokens per parameter, embeddings included; 20.00 but for the proxy."""
        return self.n_tokens / self.config.n_params

    def flops(self, convention: FlopsConvention = FlopsConvention.CEREBRAS) -> float:
        """Training FLOPs by formula."""
        return self.config.training_flops(self.n_tokens, convention, SEQ_LEN)

    @property
    def predicted_loss(self) -> float:
        """What the scaling law of its parametrisation says for `flops()`, nats/token."""
        return law(self.config.parametrization).loss(self.flops())


def _phase(batch_sequences: int, warmup_steps: int, decay_steps: int, n_systems: int | None) -> Phase:
    return Phase(
        batch_sequences=batch_sequences,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        first_step=0,
        last_step=warmup_steps + decay_steps,
        n_systems=n_systems,
    )


# Source: Cerebras_GPT/*.yaml (batch_size, schedulers, comments for the systems).
_PHASES: dict[str, tuple[Phase, ...]] = {
    "111M": (_phase(120, 1525, 7512, 1),),
    "256M": (_phase(264, 693, 8775, 1),),
    "590M": (_phase(264, 693, 21143, 1),),
    "1.3B": (_phase(528, 346, 23988, 4),),
    "2.7B": (_phase(528, 346, 48695, 4),),
    "6.7B": (_phase(1040, 176, 62346, 16),),
    # 13b_bs720.yaml, 13b_bs1080.yaml and the 1.9.1 README: after 57,000 steps the counter was set to
    # 57,000 * 720 / 1080 = 38,000 and the same curve went on at the larger batch.
    "13B": (
        Phase(
            batch_sequences=720,
            warmup_steps=254,
            decay_steps=174081,
            first_step=0,
            last_step=57000,
            n_systems=8,
        ),
        Phase(
            batch_sequences=1080,
            warmup_steps=169,
            decay_steps=116054,
            first_step=38000,
            last_step=116223,
            n_systems=12,
        ),
    ),
    "40M-muP": (_phase(256, 152, 1373, None),),  # gpt3/configs/muP/params_gpt3_40M.yaml
}

_CARD_DECAY = "the model card says '10x cosine decayed' for every size; YAML and paper table 1 say {0}"
_MUP_DECAY = (
    "the muP YAML says cosine, the paper's table 1 linear for all five muP runs; linear is given here"
)
_MUP_INIT = (
    "the *_mup.yaml files of Model Zoo 1.9.1 carry the standard initialisers (0.02 ...) by mistake; "
    "later releases use the muP values given here"
)
_TWO_PHASES = (
    "after 57,000 steps the batch grew from 720 to 1080 and the step counter was set to 57,000 * 720 / 1080 "
    "= 38,000: one learning-rate curve over tokens"
)
_SYSTEMS = "the paper says 16 systems, the YAML's comment 8"

_OWN_NOTES = {"6.7B": _SYSTEMS, "13B": _TWO_PHASES}

#  size: (peak LR, decay, eps, test loss, card loss, headline FLOPs, older FLOPs, muP loss), source: SOURCES
_RUNS: dict[str, tuple[float, Decay, float, float, float, float, float, float | None]] = {
    "111M": (6.0e-4, Decay.LINEAR, 1e-8, 2.608, 2.566, 2.6e18, 2.5e18, 2.588),
    "256M": (6.0e-4, Decay.LINEAR, 1e-8, 2.349, 2.299, 1.3e19, 1.1e19, 2.359),
    "590M": (2.0e-4, Decay.LINEAR, 1e-8, 2.181, 2.184, 6.1e19, 5.3e19, 2.155),
    "1.3B": (2.0e-4, Decay.COSINE, 1e-8, 1.997, 1.996, 2.8e20, 2.5e20, 1.984),
    "2.7B": (2.0e-4, Decay.COSINE, 1e-8, 1.834, 1.834, 1.1e21, 9.8e20, 1.846),
    "6.7B": (1.2e-4, Decay.LINEAR, 1e-9, 1.704, 1.704, 6.3e21, 5.9e21, None),
    "13B": (1.2e-4, Decay.COSINE, 1e-9, 1.572, 1.575, 2.3e22, 2.1e22, None),
}

MUP_BASE_LR = 6.0e-3  # tuned on the 40M proxy; gpt3/configs/muP/params_gpt3_40M.yaml


def _notes(name: str, *more: str) -> tuple[str, ...]:
    return tuple(note for note in (family.FAMILY[name].note, *more) if note)


def _recipes() -> list[PublishedRecipe]:
    recipes: list[PublishedRecipe] = []
    twins: list[PublishedRecipe] = []
    for size, (peak_lr, decay, eps, loss, card_loss, flops, older_flops, mup_loss) in _RUNS.items():
        card = _CARD_DECAY.format(decay.value) if decay is Decay.LINEAR else ""
        recipes.append(
            PublishedRecipe(
                name=size,
                phases=_PHASES[size],
                peak_lr=peak_lr,
                decay=decay,
                adam_eps=eps,
                test_loss=loss,
                card_loss=card_loss,
                headline_flops=flops,
                older_flops=older_flops,
                notes=_notes(size, card, _OWN_NOTES.get(size, "")),
            )
        )
        if mup_loss is None:
            continue
        twins.append(
            PublishedRecipe(
                name=f"{size}-muP",
                phases=tuple(
                    _phase(p.batch_sequences, p.warmup_steps, p.decay_steps, None) for p in _PHASES[size]
                ),
                peak_lr=MUP_BASE_LR,
                decay=Decay.LINEAR,
                adam_eps=eps,
                test_loss=mup_loss,
                headline_flops=flops,
                older_flops=older_flops,
                notes=_notes(f"{size}-muP", _MUP_INIT, _MUP_DECAY if decay is Decay.COSINE else ""),
            )
        )
    proxy = PublishedRecipe(
        name="40M-muP",
        phases=_PHASES["40M-muP"],
        peak_lr=MUP_BASE_LR,
        decay=Decay.LINEAR,
        adam_eps=1e-8,
        notes=_notes(
            "40M-muP", "about 200 random-search runs over base LR, init std and embedding multiplier"
        ),
    )
    return [*recipes, *twins, proxy]


RECIPES: dict[str, PublishedRecipe] = {recipe.name: recipe for recipe in _recipes()}


def get(name: str) -> PublishedRecipe:
    """The published recipe of `name` (spellings as `model.family.get`).

    Raises ConfigError for an unknown model, and for GPT-2, whose recipe was never published.
    """
    try:
        member = family.get(name)
    except ConfigError as error:
        raise ConfigError(f"{error}; a recipe for any other size: --params 8M") from None
    if member.name not in RECIPES:
        raise ConfigError(
            f"the training recipe of {member.name} was not published; derive one for its size with "
            f"--params {member.config.n_params / 1e6:.0f}M"
        )
    return RECIPES[member.name]
