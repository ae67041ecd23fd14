"""Initialisation from the parametrisation table, a function of (config, seed, parameter name) alone.

Every parameter draws from its own generator, so its values do not depend on the order in which
parameters are created, on the number of layers before it, or on the global random state.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from wafergpt.model.config import GPTConfig
from wafergpt.model.mup import TRUNCATION_SIGMAS, ParameterRule, role_of, rules


def initialize(module: nn.Module, config: GPTConfig, seed: int) -> None:
    """Overwrite every parameter of `module` by its rule. Parameters on the meta device are left alone."""
    table = rules(config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.is_meta:
                draw(parameter, table[role_of(name)], name, seed)


def draw(parameter: Tensor, rule: ParameterRule, name: str, seed: int) -> None:
    """Fill `parameter` with N(mean, std^2) cut at mean ± 2 std, or with the mean when std is 0."""
    if rule.init_std == 0:
        parameter.fill_(rule.init_mean)
        return
    generator = torch.Generator().manual_seed(_stream(name, seed))
    reach = TRUNCATION_SIGMAS * rule.init_std
    values = torch.empty(parameter.shape, dtype=torch.float32)  # on the CPU: the same on every device
    nn.init.trunc_normal_(
        values,
        rule.init_mean,
        rule.init_std,
        rule.init_mean - reach,
        rule.init_mean + reach,
        generator=generator,
    )
    parameter.copy_(values)


def _stream(name: str, seed: int) -> int:
    """A generator seed (63 bits) for one parameter of one run."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
