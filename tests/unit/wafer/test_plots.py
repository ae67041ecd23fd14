"""The wafer's figures draw the numbers that they are given: read back from the axes; PNG bytes are PNGs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib import image as pictures
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from wafergpt.errors import DataError
from wafergpt.wafer.analytic import layout
from wafergpt.wafer.analytic.price import price
from wafergpt.wafer.analytic.rows import GPT3_SHAPES, shape_of
from wafergpt.wafer.arch import WSE2, mesh
from wafergpt.wafer.plots import mesh as mesh_plots
from wafergpt.wafer.plots import models
from wafergpt.wafer.plots.canvas import COLOURS, WIDTH_PX, png
from wafergpt.wafer.programs.placement import GPTShape, placements
from wafergpt.wafer.report import Report
from wafergpt.wafer.workload import TransformerShape, describe_transformer

SHAPE = shape_of(GPT3_SHAPES["125M"])
SMALL = TransformerShape(
    name="small",
    n_layers=2,
    d_model=256,
    n_heads=4,
    n_kv_heads=4,
    d_ffn=1024,
    vocab_size=512,
    max_seq_len=128,
)


def report(execution: str = "streaming", systems: int = 1, mode: str = "train") -> Report:
    workload = describe_transformer(SMALL, batch=8, seq_len=128, mode=mode)
    return price(workload, execution=execution, systems=systems)


def scattered(figure: Figure) -> dict[str, np.ndarray]:
    """Label -> points (x, y)."""
    found = [one for one in figure.axes[0].collections if isinstance(one, PathCollection)]
    return {str(one.get_label()): np.asarray(one.get_offsets()) for one in found}


def test_regions_cover_the_wafer_once_and_have_their_share() -> None:
    regions = layout.lay_out(SHAPE, context=2048)
    covered = np.zeros((WSE2.height, WSE2.width), int)
    for region in regions:
        covered[region.y : region.y + region.height, region.x : region.x + region.width] += 1
    assert (covered == 1).all()
    total = sum(region.n_flops for region in regions)
    for region in regions:
        # two cuts at most of the five levels inside a block and the six above it round half a PE each way
        assert region.n_pes / WSE2.n_pes == pytest.approx(region.n_flops / total, rel=0.05)
    matrices = 12 * SHAPE.n_layers * SHAPE.d_model**2 + SHAPE.vocab * SHAPE.d_model
    assert sum(region.weight_bytes for region in regions) == 2 * matrices
    assert sum(region.cache_bytes for region in regions) == 2 * 2 * 2048 * SHAPE.d_model * SHAPE.n_layers
    parts = layout.memory_parts(regions)
    assert parts["weights"].sum() == pytest.approx(2 * matrices)
    assert layout.fits(regions) and not layout.fits(
        layout.lay_out(shape_of(GPT3_SHAPES["175B"]), context=2048)
    )


def test_a_mesh_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="more operators"):
        layout.lay_out(SHAPE, context=2048, arch=mesh(4, 4))


def test_the_placement_map_has_every_region_in_its_colour() -> None:
    regions = layout.lay_out(SHAPE, context=512)
    axes = models.placement_map(regions, "125M").axes[0]
    drawn = [one for one in axes.patches if isinstance(one, Rectangle) and one.get_fill()]
    found = {
        (one.get_x(), one.get_y(), one.get_width(), one.get_height()): one.get_facecolor() for one in drawn
    }
    assert len(drawn) == len(regions)
    for region in regions:
        colour = found[region.x - 0.5, region.y - 0.5, region.width, region.height]
        assert colour[:3] == to_rgb(COLOURS[layout.OPERATORS.index(region.operator)])
    assert {text.get_text() for text in axes.texts} == {str(block) for block in range(12)}


@pytest.mark.parametrize(("execution", "mode"), [("streaming", "train"), ("resident", "prefill")])
def test_the_roofline_has_every_operator_under_its_roof(execution: str, mode: str) -> None:
    priced = report(execution, mode=mode)
    figure = models.roofline(priced)
    points = scattered(figure)
    rows = [op for op in priced.per_op if op.kind == "matmul" and op.cycles]
    wanted = [(op.n_flops / op.n_bytes, op.n_flops / (op.cycles / priced.clock_hz)) for op in rows]
    np.testing.assert_allclose(points["matmul"], wanted)
    hollow = points.get("matmul, per byte streamed")
    assert (hollow is not None) == (execution == "streaming")
    memory, way_in = (WSE2.figures[n].value for n in ("memory_bandwidth_bytes_per_s", "io_bytes_per_s"))
    for label, at in points.items():
        roof = way_in if "streamed" in label else memory
        assert (at[:, 1] <= np.minimum(WSE2.peak_flops_per_s, roof * at[:, 0])).all(), label
    lines = {str(line.get_label()): np.asarray(line.get_data()) for line in figure.axes[0].lines}
    sram = next(data for label, data in lines.items() if label.startswith("SRAM"))
    np.testing.assert_allclose(sram[1] / sram[0], memory)


def test_a_system_has_its_share_of_the_work_and_all_weights() -> None:
    one, four = (scattered(models.roofline(report(systems=n)))["matmul, per byte streamed"] for n in (1, 4))
    np.testing.assert_allclose(four[:, 0], one[:, 0] / 4)


def test_there_is_no_roofline_without_bytes() -> None:
    with pytest.raises(DataError, match="no roofline"):
        models.roofline(Report.from_json(report().to_json().replace('"n_bytes"', '"weight_bytes"')))


def test_the_scaling_curve_is_the_plans() -> None:
    points = ((1, 10.0), (2, 19.8), (8, 72.0))
    rate, share = models.scaling_curve(points, "x").axes
    lines = {str(line.get_label()): line for line in rate.lines}
    np.testing.assert_allclose(np.transpose(lines["modelled"].get_data()), points)
    np.testing.assert_allclose(lines["linear"].get_data()[1], [10, 20, 80])
    np.testing.assert_allclose(share.lines[0].get_data()[1], [100, 99, 90])


def links(width: int, height: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(0).integers(0, 100, (height, width, 5))


def test_every_link_is_a_line_of_its_wavelets() -> None:
    """Read back by the line's middle: between which PEs, on which side of the way."""
    wavelets = links(3, 2)
    figure = mesh_plots.link_heat_map(wavelets, 1000, "x")
    drawn = next(one for one in figure.axes[0].collections if isinstance(one, LineCollection))
    values = dict(
        zip(map(tuple, np.mean(drawn.get_segments(), axis=1).round(2)), drawn.get_array(), strict=True)
    )
    assert len(values) == 2 * (2 * 2 + 3), "two directions of seven pairs of neighbours"
    assert values[0.5, 0.13] == wavelets[0, 0, 1], "east of (0, 0), south of its way"
    assert values[1.5, 0.87] == wavelets[1, 2, 3], "west of (2, 1), north of its way"
    assert values[2.13, 0.5] == wavelets[1, 2, 0] and values[0.87, 0.5] == wavelets[0, 1, 2]
    assert (
        "9.7%" not in figure.get_suptitle()
        and f"{wavelets[..., :4].max() / 1000:.1%}" in figure.get_suptitle()
    )


def test_a_large_mesh_has_a_panel_for_each_direction() -> None:
    wavelets = links(70, 3)
    panels = mesh_plots.link_heat_map(wavelets, 1000, "x").axes[:4]
    for port, axes in enumerate(panels):
        np.testing.assert_array_equal(axes.images[0].get_array(), wavelets[..., port])


@pytest.mark.parametrize("bad", [(np.zeros((2, 2, 4), np.int64), 5), (np.zeros((2, 2, 5), np.int64), 0)])
def test_wrong_links_are_refused(bad: tuple[np.ndarray, int]) -> None:
    with pytest.raises(DataError, match="links are"):
        mesh_plots.link_heat_map(*bad, "x")


def test_the_memory_map_has_all_bytes() -> None:
    code, data = np.full((2, 3), 2048), np.arange(6).reshape(2, 3) * 1024
    figure = mesh_plots.memory_map({"code": code, "data": data}, 49152, "x")
    first, second, stack = figure.axes
    np.testing.assert_allclose(first.images[0].get_array(), 2)
    np.testing.assert_allclose(second.images[0].get_array(), data / 1024)
    heights = [patch.get_height() for patch in stack.patches if isinstance(patch, Rectangle)]
    assert heights == [2, 2, 2.5, 5], "mean and fullest of code, then of data"
    assert stack.lines[0].get_ydata()[0] == 48
    few = mesh_plots.memory_map({"code": np.array([[5, 7]])}, 48, "x").axes[0]
    np.testing.assert_array_equal(few.images[0].get_array(), [[5, 7]])
    assert few.get_title() == "code: 5 to 7 B"


def test_the_tile_map_shows_who_holds_which_rows() -> None:
    shape = GPTShape(
        n_layers=1,
        d_model=8,
        n_heads=2,
        d_ffn=16,
        vocab_size=32,
        n_positions=8,
        gelu="erf",
        attention_scale=1.0,
    )
    panels = mesh_plots.tile_map(placements(shape, 2, 4), (2, 4), "x").axes
    held = {str(axes.get_title()).split("\n")[0]: axes.images[0].get_array() for axes in panels[:6]}
    np.testing.assert_array_equal(held["wte.weight"], np.repeat([[0], [8], [16], [24]], 2, axis=1))
    np.testing.assert_array_equal(held["h.0.mlp.c_proj.weight"], [[0, 4]] * 4)


def test_the_timeline_of_cores_has_phases_and_busy_spans() -> None:
    row = mesh_plots.CoreRow(label="(1, 2)", phases=[("a", 0, 30), ("b", 30, 99)], busy=[(0, 5), (40, 50)])
    axes = mesh_plots.core_timeline([row], (10, 90), "x").axes[0]
    drawn = {
        str(one.get_label()): [path.get_extents().intervalx.tolist() for path in one.get_paths()]
        for one in axes.collections
    }
    assert drawn == {"a": [[0, 30]], "b": [[30, 99]], "busy": [[40, 50]]}
    assert axes.get_xlim() == (10, 90) and axes.get_yticklabels()[0].get_text() == "(1, 2)"


def figures() -> list[Figure]:
    return [
        models.scaling_curve(((1, 1.0), (2, 2.0)), "x"),
        models.roofline(report()),
        models.placement_map(layout.lay_out(SHAPE, context=64), "x"),
        mesh_plots.link_heat_map(links(4, 4), 100, "x"),
        mesh_plots.memory_map({"code": np.ones((2, 2))}, 48, "x"),
    ]


def test_figures_are_pngs_of_one_width_and_say_that_they_are_modelled() -> None:
    for figure, again in zip(figures(), figures(), strict=True):
        assert "modelled" in figure.get_suptitle()
        data = png(figure)
        assert data.startswith(b"\x89PNG\r\n") and png(again) == data
        assert pictures.imread(io.BytesIO(data)).shape[1] == WIDTH_PX
        assert len(data) < 100_000
