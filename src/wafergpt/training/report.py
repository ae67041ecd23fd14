"""What one training step reports (no torch)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did. All but `elapsed_s` is the same whenever the same step is run again."""

    step: int  # steps done, this one included
    loss: float  # mean over the batch, nats/token, before the update
    lr: float  # base learning rate of this update
    grad_norm: float  # global L2 norm before clipping
    n_tokens: int  # tokens of this step, over all processes
    total_tokens: int  # tokens since the start of the run
    skipped: bool  # loss or gradient was not finite: nothing was updated
    elapsed_s: float  # wall time of this step
