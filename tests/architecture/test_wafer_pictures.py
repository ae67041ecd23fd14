"""The pictures in the wafer's pages are those that the tool draws today."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from snippets import blocks, run_block
from source_tree import ROOT

IMAGES = ROOT / "docs/explanation/images"
PINNED = re.search(
    r"^matplotlib==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
)
# Page, the block that draws, and what it draws -> the picture beside the page.
DRAWN = {
    "wafer.md": ("gemv(", {"out/wafer_product.png": "wafer_product.png"}),
    "wafer_modes.md": (
        "wafer report",
        {
            f"out/pictures/{name}.png": f"wafer_{name}.png"
            for name in ("placement", "memory", "roofline", "scaling")
        },
    ),
    "wafer_transformer.md": (
        "wafer simulate",
        {f"out/simulation/{name}.png": f"wafer_{name}.png" for name in ("links", "tiles")},
    ),
}


def differs(one: Path, other: Path) -> bool:
    """Whether two pictures show different things. A changed digit is some 50 pixels; 10 may be a rounding."""
    first, second = matplotlib.image.imread(one), matplotlib.image.imread(other)
    return first.shape != second.shape or int((np.abs(first - second).max(axis=2) > 0.1).sum()) > 10


@pytest.mark.skipif(
    PINNED is None or matplotlib.__version__ != PINNED[1], reason="another matplotlib draws other letters"
)
@pytest.mark.parametrize("page", DRAWN)
def test_the_pictures_are_what_the_page_draws(page: str, tmp_path: Path) -> None:
    words, pictures = DRAWN[page]
    block = next(b for b in blocks(IMAGES.parent / page, ROOT) if b.runs and words in b.code)
    assert run_block(block, tmp_path, smoke=True, timeout_s=200) == ""
    for drawn, shown in pictures.items():
        assert not differs(tmp_path / drawn, IMAGES / shown), f"copy {drawn} to {IMAGES / shown}"


def test_pictures_are_small_and_another_picture_is_found() -> None:
    assert all(picture.stat().st_size <= 80_000 for picture in IMAGES.iterdir())
    assert differs(IMAGES / "wafer_links.png", IMAGES / "wafer_tiles.png")


def test_one_changed_digit_is_found(tmp_path: Path) -> None:
    picture = matplotlib.image.imread(IMAGES / "wafer_links.png").copy()
    picture[8:18, 400:406, :3] = 0.5  # the size of a digit in the title
    matplotlib.image.imsave(tmp_path / "changed.png", picture)
    assert differs(tmp_path / "changed.png", IMAGES / "wafer_links.png")
