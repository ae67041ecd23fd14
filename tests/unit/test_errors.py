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


def nested(depth: int) -> object:
    """Dictionaries of four entries, `depth` deep."""
    return {f"key {i}": nested(depth - 1) for i in range(4)} if depth else "a text of some length" * 3


LONG_VALUES = {
    "nested dictionaries": nested(3),
    "list of dictionaries": [nested(2)] * 9,
    "long text": "x" * 1000,
    "many lines": "line\n" * 50,
    "integer": 10**200,
    "integer beyond Python's limit": 10**5000,
    "negative one": -(10**4400),
    "integer inside": {"a": 10**5000},
}


@pytest.mark.parametrize("value", LONG_VALUES.values(), ids=list(LONG_VALUES))
def test_what_a_message_quotes_is_one_short_line(value: object) -> None:
    text = errors.shown(value)
    assert len(text) <= 60 and text.isprintable()


@pytest.mark.parametrize("value", ["gpt3", 12, None, ["a", 1.5], {"a": "b"}])
def test_short_values_are_quoted_as_they_are(value: object) -> None:
    assert errors.shown(value) == repr(value)
