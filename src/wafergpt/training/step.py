"""One training step: batch -> loss -> gradients -> clip -> AdamW, or nothing if a number is not finite."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wafergpt.config import require
from wafergpt.errors import NonFiniteError
from wafergpt.model.gpt import GPT
from wafergpt.training import optim
from wafergpt.training.config import Precision, TrainConfig
from wafergpt.training.distributed import LossModule, World
from wafergpt.training.report import StepReport
from wafergpt.training.schedule import learning_rate
from wafergpt.training.state import TrainState

MAX_SKIPPED_IN_A_ROW = 10  # a run that meets only non-finite numbers will not recover by itself

Ids = npt.NDArray[np.int64]


class BatchSource(Protocol):
    """Where batches come from (`data.loader.Loader`): a pure function of the position."""

    def batch(self, index0: int, batch_size: int) -> tuple[npt.NDArray[Any], ...]:
        """What the objective takes of the samples `index0 ... index0 + batch_size - 1`.

        Of the loader: (inputs [B, T], labels [B, T]).
        """
        ...

    def n_tokens(self, n_samples: int) -> int:
        """Tokens of the first `n_samples` samples."""
        ...


class Trainer:
    """One process's share of a run: the model, its state, and where its batches come from.

    `step()` is all that changes them. In bf16 the model holds bfloat16 copies of the state's masters.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: GPT,
        state: TrainState,
        batches: BatchSource,
        world: World | None = None,
        *,
        objective: nn.Module | None = None,
        rules: Mapping[str, optim.UpdateRule] | None = None,
    ) -> None:
        """`state` must hold the weights of `model` that are trained; the others are frozen.

        `objective` makes the mean loss of what `batches` gives (the model's own by default), `rules` say how
        each weight is updated. Raises ConfigError if the batch does not split evenly.
        """
        self.config = config
        self.world = world or World()
        sequences_per_round = self.world.size * config.micro_batch_size
        require(
            config.batch_size % sequences_per_round == 0,
            f"batch_size = {config.batch_size} is not a multiple of"
            f" micro_batch_size = {config.micro_batch_size} x {self.world.size} processes",
        )
        self.n_micro_batches = config.batch_size // sequences_per_round
        self.model = model.to(self.world.device).use_int8(config.precision is Precision.INT8)
        self.state = state
        self.batches = batches
        self.weights = optim.bind_weights(model, state, config.precision)
        self.rules = rules or optim.update_rules(config.model, config.optim, self.weights)
        self._loss = self.world.replicate(objective or LossModule(model))
        self._sums: dict[str, Tensor] = {}  # float32 gradient sums, kept between steps for their memory
        self._stop_requested = False

    def request_stop(self) -> None:
        """Ask for an end before the next step (or micro-batch); safe to call in a signal handler."""
        self._stop_requested = True

    def stopping(self) -> bool:
        """Whether any process was asked to stop. Every process must ask, between steps only."""
        return self.world.any(self._stop_requested)

    @property
    def total_tokens(self) -> int:
        """Tokens seen since the start of the run, over all processes."""
        return self.batches.n_tokens(self.state.sample_index)

    def step(self) -> StepReport | None:
        """Do the next step. None: a stop was requested half-way, and nothing was changed.

        Raises NonFiniteError at the tenth step in a row whose loss or gradient is not finite.
        """
        started, n_tokens_before = time.perf_counter(), self.total_tokens
        lr = learning_rate(self.config.schedule, self.config.optim.peak_lr, self.state.step)
        try:
            loss = self._backward()
            if loss is None:
                return None
            grads = self._gradients()
            norm = optim.global_norm(grads.values()) / self.n_micro_batches
            # Judged before anything is touched, and never by multiplying with zero: 0 x NaN is NaN.
            # Loss and averaged gradients are the same in every process, so all decide alike.
            skipped = not (math.isfinite(loss) and math.isfinite(norm))
            if not skipped:
                factor = optim.clip_factor(norm, self.config.optim.clip_norm) / self.n_micro_batches
                optim.update(
                    self.state, self.weights, grads, self.rules, self.config.optim, lr=lr, grad_scale=factor
                )
        finally:
            self.model.zero_grad(set_to_none=True)
        self.state.count_step(self.config.batch_size, skipped)
        self._check_progress(loss, norm)
        return StepReport(
            step=self.state.step,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            n_tokens=self.total_tokens - n_tokens_before,
            total_tokens=self.total_tokens,
            skipped=skipped,
            elapsed_s=time.perf_counter() - started,
        )

    def _backward(self) -> float | None:
        """Mean loss of this step's batch, gradients summed over micro-batches; None if stopped half-way."""
        per_process = self.config.batch_size // self.world.size
        first = self.state.sample_index + self.world.rank * per_process
        total = 0.0
        accumulate = self.n_micro_batches > 1
        for i in range(self.n_micro_batches):
            # Several processes stop between steps only: one that left here would leave the others waiting.
            if self._stop_requested and self.world.size == 1:
                return None
            size = self.config.micro_batch_size
            arrays = self.batches.batch(first + i * size, size)
            given = [torch.from_numpy(array).to(self.world.device) for array in arrays]
            with self.world.alone(self._loss) if accumulate else contextlib.nullcontext():
                loss = self._loss(*given)
                loss.backward()
            total += float(loss.detach())
            if accumulate:
                self._add_gradients(is_first=i == 0)
        if accumulate:  # once a step, in float32
            self.world.average(self._sums.values())
        return self.world.mean(total / self.n_micro_batches)

    @torch.no_grad()
    def _add_gradients(self, is_first: bool) -> None:
        """Move this micro-batch's gradients into float32 sums: bfloat16 sums would lose the small ones."""
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            assert parameter.grad is not None
            if name not in self._sums:
                self._sums[name] = torch.empty_like(self.state.master[name])
            if is_first:
                self._sums[name].copy_(parameter.grad)
            else:
                self._sums[name].add_(parameter.grad)
            parameter.grad = None

    def _gradients(self) -> dict[str, Tensor]:
        """Name -> gradient of the summed micro-batch losses."""
        if self.n_micro_batches > 1:
            return self._sums
        grads = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        return {name: grad for name, grad in grads.items() if grad is not None}

    def _check_progress(self, loss: float, norm: float) -> None:
        if self.state.n_skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"step {self.state.step}: loss {loss:g}, gradient norm {norm:g}; {MAX_SKIPPED_IN_A_ROW} steps"
                " in a row were not finite, so training stopped; a lower optim.peak_lr or a longer warm-up"
                " usually helps"
            )
