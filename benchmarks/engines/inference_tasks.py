"""What the inference benchmark times, in tokens/s."""

from __future__ import annotations

from dataclasses import dataclass

from engines.workers import Worker


@dataclass(frozen=True, kw_only=True)
class Task:
    """`n_requests` at once, each of `n_prompt` tokens in and `n_new` out; `kind` says what is counted."""

    kind: str  # decode: new tokens after the first; prefill: prompt tokens; batch: all new tokens
    n_prompt: int
    n_new: int
    n_requests: int = 1

    def prompts(self) -> list[list[int]]:
        """The same for every engine: no two begin alike, so that no engine can reuse one's work."""
        return [
            [(7919 * r + 31 * i + r) % 500 + 1 for i in range(self.n_prompt)] for r in range(self.n_requests)
        ]


TASKS = {
    "decode": Task(kind="decode", n_prompt=128, n_new=128),
    "prefill": Task(kind="prefill", n_prompt=512, n_new=1),
    "batch16": Task(kind="batch", n_prompt=128, n_new=64, n_requests=16),
}
QUICK = {
    "decode": Task(kind="decode", n_prompt=8, n_new=8),
    "prefill": Task(kind="prefill", n_prompt=16, n_new=1),
    "batch16": Task(kind="batch", n_prompt=8, n_new=4, n_requests=4),
}


def measure_once(worker: Worker, task: Task) -> float:
    """Tokens/s of one run. A decode's rate leaves out the prompt: a run of one new token is taken off."""
    prompts = task.prompts()
    whole_s: float = worker.ask(prompts=prompts, n_new=task.n_new)["seconds"]
    if task.kind == "prefill":
        return task.n_prompt / whole_s
    if task.kind == "batch":
        return task.n_requests * task.n_new / whole_s
    first_s: float = worker.ask(prompts=prompts, n_new=1)["seconds"]
    return (task.n_new - 1) / max(whole_s - first_s, 1e-9)
