"""The suites can fail: each planted bug is seen by the check that is there for it."""

from __future__ import annotations

import pytest

from checkpoint_lab import checks
from checkpoint_lab.planted import PLANTED
from wafergpt.errors import StorageError


class SeenError(Exception):
    """A check reported a violation: no need to run it to the end."""


@pytest.mark.parametrize("bug", PLANTED)
def test_the_suite_sees(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_first(self: checks.Outcome, holds: bool, message: str) -> None:
        if not holds:
            raise SeenError(message)

    monkeypatch.setattr(checks.Outcome, "require", stop_at_first)
    make_store, check = PLANTED[bug]
    # A writer that fails on a healthy disk raises out of the check instead of being reported by it.
    with pytest.raises((SeenError, StorageError)):
        check(make_store)
