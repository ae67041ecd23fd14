"""The tables of the wafer's pages say what the code says."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest
from snippets import blocks
from source_tree import ROOT
from wafer_pages import DOCS, TABLES, timing_table, with_tables

from wafergpt.wafer.analytic.parameters import value
from wafergpt.wafer.arch import SIMULATED, WSE2, WSE3
from wafergpt.wafer.machine.timing import Timing


@pytest.mark.parametrize("page", TABLES)
def test_the_tables_are_the_codes(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert with_tables(page, text) == text, "run python tests/architecture/wafer_pages.py"


def test_a_changed_figure_is_found() -> None:
    text = (DOCS / "wafer_evidence.md").read_text(encoding="utf-8")
    changed = text.replace("| 49,152 B | published |", "| 49,152 B | derived |")
    assert changed != text and with_tables("wafer_evidence.md", changed) == text


def test_a_page_without_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no table under 'Inference'"):
        with_tables("wafer_modes.md", "## Training\n\n| a |\n|---|\n\n## Inference\n\nNothing.\n")


def test_every_charge_of_the_simulator_says_how_it_is_known() -> None:
    table = timing_table()
    for field in dataclasses.fields(Timing):
        if field.name != "function_cycles":
            assert f"| `{field.name}` |" in table
    assert {row.split(" | ")[2] for row in table.splitlines()[2:]} == {"published", "derived", "assumed"}


def test_every_number_has_a_unit_and_a_source() -> None:
    for figures in (WSE2.quantities(), WSE3.quantities(), SIMULATED):
        assert all(q.unit and q.source and "|" not in q.source for q in figures.values())


def test_the_formula_shows_the_fitted_parameters() -> None:
    formula = next(block.code for block in blocks(DOCS / "wafer_modes.md", ROOT) if block.info == "text")
    shown = ("layer_exposed_s", 1e3), ("layer_delivery_s", 1e3), ("training_share_of_peak", 1)
    for name, scale in (*shown, ("head_cost_factor", 1), ("streamed_bytes_per_parameter", 1)):
        assert f"{value(name) * scale:g}" in re.findall(r"[\d.]+", formula), name


def test_the_sums_take_the_cycles_that_the_page_shows() -> None:
    found = blocks(DOCS / "wafer.md", ROOT)
    program = next(block for block in found if block.runs)
    shown = found[found.index(program) + 1]
    command = [sys.executable, "-c", program.code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == shown.code
