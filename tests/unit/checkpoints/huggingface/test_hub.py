"""Hub names: paths first, the cache offline, and what is said when neither helps.

`huggingface_hub` reads its environment once, when imported; so each case is a process of its own. No network:
the cache is laid out by hand, the hub is a small server on this machine, or a closed port.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_lab import stored_model
from wafergpt.checkpoints.huggingface.folder import write_folder
from wafergpt.checkpoints.huggingface.hub import resolve
from wafergpt.errors import CheckpointError, ConfigError, MissingDependencyError

pytest.importorskip("huggingface_hub")

LOAD = """
import sys
from wafergpt.errors import WaferGPTError
from wafergpt.checkpoints.huggingface.folder import read_folder
from wafergpt.checkpoints.huggingface.hub import resolve
try:
    print(len(read_folder(resolve(sys.argv[1], revision=sys.argv[2] or None)).arrays))
except WaferGPTError as error:
    print(f"{type(error).__name__}: {error}")
"""


def in_process(name: str, revision: str = "", **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, name, revision], env=clean | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache as the library lays it out: blobs, and a snapshot of links to them."""
    home = tmp_path_factory.mktemp("hub")
    repository = home / "models--someone--small"
    snapshot = repository / "snapshots" / ("a" * 40)
    write_folder(stored_model(), home / "plain")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted((home / "plain").iterdir())):
        blob = repository / "blobs" / f"{number:040x}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    return home


def test_a_cached_model_loads_offline(cache: Path) -> None:
    n_arrays = len(stored_model().arrays)
    assert in_process("someone/small", HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1") == str(n_arrays)
    assert in_process("someone/small", "a" * 40, HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1") == str(n_arrays)


def test_offline_without_it_the_cache_and_the_fix_are_named(cache: Path) -> None:
    said = in_process("someone/else", HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1")
    assert said.startswith("CheckpointError: model 'someone/else' is not in the cache")
    for word in (str(cache), "HF_HUB_OFFLINE is set", "HF_HOME", "give a path"):
        assert word in said


def test_without_a_network_the_cache_is_named(tmp_path: Path) -> None:
    said = in_process("someone/else", HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert (
        said.startswith("CheckpointError: ") and str(tmp_path / "hub") in said and "cannot be reached" in said
    )


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub as a snapshot needs: one repository's files, and a record of what was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.fetched: list[str] = []
        self.tokens: set[str] = set()


class HubRequest(http.server.BaseHTTPRequestHandler):
    """Model info, file tree, files."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path, files = self.path.partition("?")[0], self.server.files
        self.server.tokens.add(self.headers.get("authorization", ""))
        if path == "/api/models/someone/small/revision/main":
            self.send(json.dumps({"id": "someone/small", "sha": "b" * 40, "siblings": []}).encode())
        elif path == f"/api/models/someone/small/tree/{'b' * 40}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            self.send(json.dumps(tree).encode())
        elif path.startswith("/someone/small/resolve/") and path.rpartition("/")[2] in files:
            name = path.rpartition("/")[2]
            self.server.fetched += [name] if body else []
            self.send(files[name], body=body)
        else:
            self.send(b"", status=404)

    def send(self, data: bytes, body: bool = True, status: int = 200) -> None:
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "b" * 40)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    write_folder(stored_model(), tmp_path / "repository", max_shard_bytes=60_000)
    (tmp_path / "repository" / "modeling_small.py").write_text("raise SystemExit('ran')")
    (tmp_path / "repository" / "pytorch_model.bin").write_bytes(b"not to be fetched")
    with Hub(tmp_path / "repository") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_model_is_fetched_once_without_programs_or_pickles(hub: Hub, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}
    n_arrays = str(len(stored_model().arrays))
    assert in_process("someone/small", **settings) == n_arrays
    wanted = {name for name in hub.files if not name.endswith((".py", ".bin", ".md"))}
    assert set(hub.fetched) == wanted and len(hub.fetched) == len(wanted)
    assert "Bearer hf_secret" in hub.tokens
    assert in_process("someone/small", **settings, HF_HUB_OFFLINE="1") == n_arrays
    assert len(hub.fetched) == len(wanted)
    said = in_process("someone/other", **settings)
    assert said.startswith("CheckpointError: model 'someone/other'") and "check the name" in said


def test_a_path_is_used_as_it_is(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    with pytest.raises(ConfigError, match="revision"):
        resolve(tmp_path, revision="main")


@pytest.mark.parametrize("name", ["./missing", "/nowhere/at/all", "a/b/c", "a//b", "-x", "a b"])
def test_what_is_neither_path_nor_name(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither an existing path nor a hub name"):
        resolve(name)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wafergpt\[hub\]'"):
        resolve("gpt2")
