"""A model's name or path to a folder on this machine, through `huggingface_hub` and its cache.

Its environment variables count: HF_HOME and HF_HUB_CACHE (where), HF_HUB_OFFLINE (no network), HF_TOKEN
(private models), HF_ENDPOINT (a mirror). Only data files are fetched: no program, no pickle unless asked for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from wafergpt.errors import CheckpointError, ConfigError, MissingDependencyError, shown

# owner/name, or a bare name such as `gpt2` (huggingface_hub.utils.validate_repo_id).
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}(/[A-Za-z0-9][\w.\-]{0,95})?")
WANTED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
OLD_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


def resolve(name_or_path: str | Path, *, revision: str | None = None, old_weights: bool = False) -> Path:
    """The folder of a model: an existing path as it is, a hub name (`owner/name`) from the cache or the hub.

    `revision` is a branch, tag or commit of a hub model. With `old_weights` its `pytorch_model*.bin` files
    come too, for `wafergpt convert`. Raises CheckpointError when there is no such model or it cannot be had
    (the message names the cache), ConfigError for a revision of a path, MissingDependencyError without
    huggingface_hub.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        if revision is not None:
            raise ConfigError(f"'{name_or_path}' is a path here; a revision goes with a hub name")
        return path
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or not _REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{shown(name)} is neither an existing path nor a hub name (owner/name)")
    return _snapshot(name, revision, [*WANTED, *(OLD_WEIGHTS if old_weights else ())])


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors  # the package itself has `constants` only once loaded
    except ImportError:
        raise MissingDependencyError(
            f"there is no folder '{name}' here, and fetching it by name needs huggingface_hub: "
            "pip install 'wafergpt[hub]'"
        ) from None
    cache = constants.HF_HUB_CACHE
    try:
        found: Any = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
    except errors.GatedRepoError:
        reason, fix = "its owner must grant you access", "ask on its page, then set HF_TOKEN"
    except errors.RevisionNotFoundError:
        reason, fix = f"the hub has no revision '{revision}' of it", "look at the model's page"
    except errors.RepositoryNotFoundError:
        reason, fix = "the hub knows no such model, or keeps it private", "check the name, or set HF_TOKEN"
    except Exception as error:  # the network's come from whichever client the library uses
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({_first_line(error)})"
        fix = "copy that folder from a machine that has it, set HF_HOME to where it is, or give a path" + (
            "; or unset HF_HUB_OFFLINE" if offline else ""
        )
    else:
        return Path(found)
    raise CheckpointError(f"model '{name}' is not in the cache '{cache}' and {reason}; {fix}")


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    text = str(cause).strip().splitlines()
    return text[0][:120] if text else type(cause).__name__
