"""Options that several verbs share, and what each says of a loaded model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wafergpt.api import LoadedModel

Backend = Annotated[
    str, typer.Option(help="native_cpu, torch_eager or torch_compiled; auto: native where it can be had.")
]
Precision = Annotated[
    str | None, typer.Option(help="f32, bf16, int8 or int4.", show_default="f32, or as quantized")
]
Device = Annotated[str | None, typer.Option(help="Of torch, e.g. cuda.", show_default="cpu")]

# How `inference.sampling.SamplingConfig` chooses tokens.
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens to write.")]
MinNewTokens = Annotated[int, typer.Option(help="Fewest tokens before the text may end.")]
Temperature = Annotated[
    float | None, typer.Option(help="Below 1 safer, above 1 wilder; 0 is greedy.", show_default="1.0")
]
TopK = Annotated[int | None, typer.Option(help="Choose among the k most likely tokens only.")]
TopP = Annotated[float, typer.Option(help="... among the fewest tokens that reach this probability.")]
MinP = Annotated[
    float, typer.Option(help="... among tokens at least this fraction as likely as the likeliest.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1: tokens of prompt and text become less likely.")
]
FrequencyPenalty = Annotated[float, typer.Option(help="Taken off a token's logit each time it was written.")]
PresencePenalty = Annotated[float, typer.Option(help="Taken off once if it was written at all.")]
LogitBias = Annotated[
    list[str] | None, typer.Option(help="ID=BIAS: added to a token's logit; several times.")
]
Seed = Annotated[int | None, typer.Option(help="Of the random draws; the same seed writes the same text.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")]
StopToken = Annotated[
    list[int] | None, typer.Option(help="End at this token id; may be given several times.")
]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the most likely token (temperature 0).")]


def say_notes(loaded: LoadedModel) -> None:
    """What reading a model passed over, dropped or fell back to, on standard error."""
    for skipped in loaded.skipped:
        print(f"note: skipped checkpoint '{skipped.path}': {skipped.reason}", file=sys.stderr)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
