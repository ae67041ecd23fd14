"""The family's scaling law: Pile test loss from training FLOPs, and back. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from wafergpt.errors import ConfigError
from wafergpt.model.config import Parametrization


class Status(StrEnum):
    """Where a number comes from. Every figure this package prints carries one."""

    PUBLISHED = "published"  # printed by the family's authors
    DERIVED = "derived"  # follows from published figures by a stated formula or fit
    ASSUMED = "assumed"  # our own choice
    MEASURED = "measured"  # on this machine


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """loss = (flops / scale_flops) ** -exponent + irreducible, for models trained on 20 tokens per parameter.

    The loss is in nats per GPT-2 token on the Pile's test set; FLOPs are in the headline convention
    (`FlopsConvention.CEREBRAS`). Outside `fitted_flops` the law is an extrapolation.
    """

    scale_flops: float
    exponent: float
    irreducible: float
    fitted_flops: tuple[float, float]
    status: Status
    source: str

    def loss(self, flops: float) -> float:
        """Expected loss in nats/token. Raises ConfigError unless `flops` is positive and finite."""
        if not (math.isfinite(flops) and flops > 0):
            raise ConfigError(f"flops = {flops!r} must be positive and finite")
        return float((flops / self.scale_flops) ** -self.exponent) + self.irreducible

    def flops(self, loss: float) -> float:
        """Training FLOPs needed to reach `loss`; the inverse of `loss`.

        Raises ConfigError for a loss at or below the irreducible one, which no budget reaches.
        """
        if not (math.isfinite(loss) and loss > self.irreducible):
            raise ConfigError(f"loss = {loss!r} is out of reach: the law never goes below {self.irreducible}")
        return float(self.scale_flops * (loss - self.irreducible) ** (-1 / self.exponent))

    def extrapolates(self, flops: float) -> bool:
        """Whether `flops` lies outside the runs the law was fitted to."""
        low, high = self.fitted_flops
        return not low <= flops <= high


STANDARD_LAW = ScalingLaw(
    scale_flops=5.984e22,
    exponent=0.0737,
    irreducible=0.5066,
    fitted_flops=(2.6e18, 2.3e22),  # 111M to 13B
    status=Status.PUBLISHED,
    source="arXiv 2304.03208 equation 1",
)

# The authors' muP coefficients are in no text we could read. This is a three-parameter least-squares fit
# to their five muP losses at the FLOPs of `GPTConfig.training_flops`; residual 0.039 % (they report
# 0.04 %). Five points, so do not carry it far outside the range.
MUP_LAW = ScalingLaw(
    scale_flops=1.03e22,
    exponent=0.0801,
    irreducible=0.648,
    fitted_flops=(2.6e18, 1.1e21),  # 111M to 2.7B
    status=Status.DERIVED,
    source="our fit to the five published muP losses",
)


def law(parametrization: Parametrization) -> ScalingLaw:
    """The scaling law of the standard or the muP models."""
    return MUP_LAW if parametrization is Parametrization.MUP else STANDARD_LAW
