"""Any JSON object at all as config.json: a model, or a refusal in one line that names the file."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from wafergpt.checkpoints.huggingface.config import from_hf, to_hf
from wafergpt.checkpoints.huggingface.keys import known_keys
from wafergpt.errors import CheckpointError, ConfigError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = st.sampled_from(sorted(known_keys("btlm") | {"auto_map", "trust_remote_code"})) | st.text(max_size=10)
STARTS: list[dict[str, Any]] = [
    {"model_type": "gpt2"},
    {
        "model_type": "btlm",
        "activation_function": "gelu",
        "mup_scale_qk_dot_by_d": True,
        "mup_width_scale": 0.5,
    },
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(STARTS),
    st.dictionaries(KEYS, VALUES, max_size=4),
    st.sampled_from([None, "config", "recipe"]),
)
def test_a_model_or_one_clear_line(
    start: dict[str, Any], changes: dict[str, Any], choice: str | None
) -> None:
    try:
        config, notes = from_hf(start | changes, mup_logit_scale=choice)
    except (CheckpointError, ConfigError) as error:
        assert str(error).isprintable() and len(str(error)) < 500
        assert "config.json" in str(error) or "mup_logit_scale" in str(error)
        return
    assert all(note.isprintable() for note in notes)
    if config.mup is None:
        assert from_hf(to_hf(config))[0] == config
