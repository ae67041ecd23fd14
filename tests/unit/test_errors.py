"""Errors: one family, one exit code each, and suggestions."""

from __future__ import annotations

import pytest

from wafergpt import errors


@pytest.mark.parametrize(
    ("error", "builtin", "exit_code"),
    [
        (errors.WaferGPTError, Exception, 1),
        (errors.ConfigError, ValueError, 2),
        (errors.DataError, ValueError, 3),
        (errors.AssetError, Exception, 4),
        (errors.CheckpointError, Exception, 5),
        (errors.StorageError, OSError, 6),
        (errors.RunLockedError, Exception, 7),
        (errors.NonFiniteError, ArithmeticError, 8),
        (errors.MissingDependencyError, ImportError, 9),
    ],
)
def test_an_error_is_also_what_python_calls_it(
    error: type[errors.WaferGPTError], builtin: type[Exception], exit_code: int
) -> None:
    raised = error("the message")
    assert isinstance(raised, errors.WaferGPTError) and isinstance(raised, builtin)
    assert str(raised) == "the message" and raised.exit_code == exit_code


def test_a_suggestion_is_made_only_for_something_close() -> None:
    known = ["train", "generate", "recipe"]
    assert errors.did_you_mean("trian", known) == "; did you mean 'train'?"
    assert errors.did_you_mean("zzz", known) == ""
    assert errors.did_you_mean("train", ()) == ""
