"""The published family as data: GPT-2's sizes, Cerebras-GPT's, the muP twins and the 40M proxy (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from wafergpt.errors import ConfigError, did_you_mean
from wafergpt.model.config import Activation, GPTConfig, Parametrization

# Shapes: Model Zoo (Release_2.10.0) gpt3/configs/Cerebras_GPT/*.yaml, confirmed by table 1 of the
# paper (arXiv 2304.03208) and by the Hugging Face config.json files.
_CEREBRAS_SOURCE = "Model Zoo Cerebras_GPT/{file}.yaml; arXiv 2304.03208 table 1"
_MUP_SOURCE = "Model Zoo Cerebras_GPT/{file}_mup.yaml; arXiv 2304.03208 table 1"
_PROXY_SOURCE = "Model Zoo gpt3/configs/muP/params_gpt3_40M.yaml"
_GPT2_SOURCE = "Hugging Face openai-community/{file} config.json; initialiser: GPT-2 paper section 2.3"


@dataclass(frozen=True, kw_only=True)
class FamilyMember:
    """One published model: its configuration, where that was published, and what to beware of."""

    name: str
    config: GPTConfig
    source: str
    note: str = ""


_INIT_NOTE = (
    "the shipped YAML initialises output projections with 0.0025 (exact for 32 layers only); "
    "the paper's formula 0.02/sqrt(2 L) is used here"
)
_HEADS_NOTE = (
    "older cards and the Model Zoo 1.9.1 README print 20 heads of 128; the configs, config.json and the "
    "corrected card say 32 heads of 80"
)
_NOTES = {"1.3B": _INIT_NOTE, "2.7B": _HEADS_NOTE, "13B": _INIT_NOTE, "2.7B-muP": _HEADS_NOTE}
_MUP_111M_NOTE = (
    "the checkpoint's config.json lacks the output scale, so a literal loader multiplies logits by 1; "
    "the training configuration says 1/3, which is used here"
)
_NOTES["111M-muP"] = _MUP_111M_NOTE

#                name: (YAML file, d_model, n_layers, n_heads)
_CEREBRAS_SHAPES = {
    "111M": ("111m", 768, 10, 12),
    "256M": ("256m", 1088, 14, 17),
    "590M": ("590m", 1536, 18, 12),
    "1.3B": ("1p3b", 2048, 24, 16),
    "2.7B": ("2p7b", 2560, 32, 32),
    "6.7B": ("6p7b", 4096, 32, 32),
    "13B": ("13b_bs720", 5120, 40, 40),
}
_MUP_SIZES = ("111M", "256M", "590M", "1.3B", "2.7B")

#            name: (d_model, n_layers, n_heads)
_GPT2_SHAPES = {
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
}


def _members() -> list[FamilyMember]:
    members = [
        FamilyMember(
            name=name,
            config=GPTConfig(
                d_model=d_model,
                n_layers=n_layers,
                n_heads=n_heads,
                max_seq_len=1024,
                activation=Activation.GELU_TANH,
            ),
            source=_GPT2_SOURCE.format(file=name),
        )
        for name, (d_model, n_layers, n_heads) in _GPT2_SHAPES.items()
    ]
    for name, (file, d_model, n_layers, n_heads) in _CEREBRAS_SHAPES.items():
        config = GPTConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads)
        source = _CEREBRAS_SOURCE.format(file=file)
        members.append(FamilyMember(name=name, config=config, source=source, note=_NOTES.get(name, "")))
    for size in _MUP_SIZES:
        file, d_model, n_layers, n_heads = _CEREBRAS_SHAPES[size]
        name, source = f"{size}-muP", _MUP_SOURCE.format(file=file)
        config = _mup(d_model, n_layers, n_heads)
        members.append(FamilyMember(name=name, config=config, source=source, note=_NOTES.get(name, "")))
    proxy_note = "the model on which the muP values were tuned; 32.3M parameters despite its name"
    proxy = _mup(d_model=256, n_layers=24, n_heads=4)
    members.append(FamilyMember(name="40M-muP", config=proxy, source=_PROXY_SOURCE, note=proxy_note))
    return members


def _mup(d_model: int, n_layers: int, n_heads: int) -> GPTConfig:
    return GPTConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads, parametrization=Parametrization.MUP)


FAMILY: dict[str, FamilyMember] = {member.name: member for member in _members()}


def get(name: str) -> FamilyMember:
    """The published model called `name`: `"1.3B"`, `"1.3b-mup"`, `"Cerebras-GPT-1.3B"`, `"gpt2-xl"`.

    Raises ConfigError for an unknown name, with the closest known one.
    """
    wanted = name.strip().lower().rpartition("/")[2].removeprefix("cerebras-gpt-")
    for known, member in FAMILY.items():
        if known.lower() == wanted:
            return member
    hint = did_you_mean(wanted.upper() if wanted[:1].isdigit() else wanted, list(FAMILY))
    raise ConfigError(f"unknown model '{name}'{hint or '; known: ' + ', '.join(FAMILY)}")
