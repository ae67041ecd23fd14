"""The engine as a scorer: log-probabilities of windows of text, from `Score` requests (no torch)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wafergpt.errors import WaferGPTError
from wafergpt.inference.engine import Engine
from wafergpt.inference.request import Failed, Score, Scored


class EngineScorer:
    """A `perplexity.Scorer` over whatever backend the engine has."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.vocab_size, self.max_seq_len = engine.backend.vocab_size, engine.backend.max_seq_len

    def score(self, windows: Sequence[Sequence[int]], n_context: Sequence[int]) -> list[NDArray[np.float32]]:
        """See `perplexity.Scorer.score`. Raises what made a request fail, e.g. NonFiniteError."""
        requests = [
            Score(token_ids=tuple(window), n_context=n) for window, n in zip(windows, n_context, strict=True)
        ]
        rows = []
        for result in self._engine.run(requests):
            if isinstance(result, Failed):
                if isinstance(result.error, WaferGPTError):
                    raise result.error
                raise WaferGPTError(result.message) from result.error
            assert isinstance(result, Scored)
            rows.append(np.array([score.log_probability for score in result.scores], np.float32))
        return rows
