"""Whole reports with their figures: of a modelled run, and of a run of the cycle simulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wafergpt.errors import StorageError
from wafergpt.wafer import html
from wafergpt.wafer.analytic import layout
from wafergpt.wafer.analytic.shape import Shape
from wafergpt.wafer.arch import PRESETS, WSE2, Arch
from wafergpt.wafer.html import Picture
from wafergpt.wafer.machine.spans import END, START
from wafergpt.wafer.plots import mesh, models
from wafergpt.wafer.plots.canvas import Figure, png
from wafergpt.wafer.report import Report
from wafergpt.wafer.simulation import NAME, Simulation
from wafergpt.wafer.timeline import phases, timeline


def report_pictures(report: Report, arch: Arch = WSE2) -> list[Picture]:
    """What a report alone can show: its roofline, if its operators' bytes are known."""
    if not any(op.n_flops and op.cycles and op.n_bytes for op in report.per_op):
        return []
    return [
        Picture(
            name="roofline",
            title="Roofline",
            note="Each mark is a row of the table of operators; filled marks belong under the roof of SRAM, "
            "hollow ones under that of the weights' way in.",
            png=png(models.roofline(report, arch)),
        )
    ]


def model_pictures(
    name: str, shape: Shape, *, context: int, scaling: Sequence[tuple[int, float]], arch: Arch = WSE2
) -> list[Picture]:
    """Where a model would lie on the wafer as a whole, what its PEs would hold, and how training scales."""
    regions = layout.lay_out(shape, context=context, arch=arch)
    return [
        Picture(
            name="placement",
            title="Placement",
            note="The model as a whole on one wafer, as for inference: PEs in proportion to FLOPs at a "
            f"context of {context:,} (assumed). When weights are streamed, one layer at a time has all PEs.",
            png=png(models.placement_map(regions, name, arch)),
        ),
        Picture(
            name="memory",
            title="Memory of the PEs",
            note=f"For that placement: 16-bit weights, and the cache of one sequence of {context:,} tokens.",
            png=png(mesh.memory_map(layout.memory_parts(regions, arch), arch.sram_bytes, name)),
        ),
        Picture(
            name="scaling",
            title="Scaling",
            note="Data parallel: every system receives the same weights and has its own part of the batch.",
            png=png(models.scaling_curve(scaling, name)),
        ),
    ]


def save_html(report: Report, path: str | Path) -> None:
    """Write a report (of `WSE2`, of `price`) as one HTML file with its figures. Raises StorageError."""
    arch = PRESETS.get(report.arch, WSE2)
    write(Path(path), html.report_page(report, report_pictures(report, arch)).encode())


def write(path: Path, data: bytes) -> None:
    """Write a file and the folders above it. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}") from None


def _last_step(run: Simulation) -> Figure:
    """The recorded cores in the run's last step."""
    rows = [
        mesh.CoreRow(
            label=f"({of_pe.x}, {of_pe.y})",
            phases=list(phases(run.image, of_pe)),
            busy=of_pe.rows[:, [START, END]].tolist(),
        )
        for of_pe in run.recorded
    ]
    return mesh.core_timeline(rows, run.marks[-1][1:], f"{NAME}: cores in the last step")


def simulation_files(run: Simulation) -> dict[str, bytes]:
    """File name -> content: the figures, the timeline, the report as JSON and as HTML."""
    height, width = run.links.shape[:2]
    cycles = run.generated.cycles
    figures = [
        Picture(
            name="links",
            title="Wavelets on the links",
            note=f"In {cycles:,} cycles a link could carry as many wavelets in each direction.",
            png=png(mesh.link_heat_map(run.links, cycles, NAME)),
        ),
        Picture(
            name="memory",
            title="Memory of the PEs",
            note="Code counts descriptors; buffers are all arrays that are neither weights nor cache.",
            png=png(mesh.memory_map(run.memory, run.image.timing.sram_bytes, NAME)),
        ),
        Picture(
            name="tiles",
            title="Where the matrices lie",
            note="Every PE holds a tile of every matrix [out, in]; the first layer's are shown.",
            png=png(mesh.tile_map(run.placement, (width, height), NAME)),
        ),
        Picture(
            name="cores",
            title="What the cores do",
            note="Of the recorded PEs; trace.json, opened at ui.perfetto.dev, has every step and operation.",
            png=png(_last_step(run)),
        ),
    ]
    page = html.report_page(
        run.report,
        figures,
        (
            "The weights are random: the cycles are those of any weights, the tokens mean nothing.",
            "compute: cycles in which a core issued or was busy, the mean of all PEs; fabric: all others, in "
            "which it waited for wavelets or had nothing to do.",
        ),
        (_steps(run), _phase_table(run)),
    )
    trace = timeline(
        run.image, run.recorded, name=f"{NAME} on {width} x {height} PEs, modelled", marks=run.marks
    )
    return {f"{one.name}.png": one.png for one in figures} | {
        "trace.json": trace.encode(),
        "report.json": run.report.to_json().encode(),
        "report.html": page.encode(),
    }


def _steps(run: Simulation) -> str:
    rows = [(name, f"{start:,}", f"{end - start:,}") for name, start, end in run.marks]
    return html.table("Steps, modelled", ("step", "from cycle", "cycles"), rows, (1, 2))


def _phase_table(run: Simulation) -> str:
    """Cycles of each phase on the recorded PEs, and how many of them the core was busy."""
    rows = []
    for of_pe in run.recorded:
        busy = int((of_pe.rows[:, END] - of_pe.rows[:, START]).sum())
        spent: dict[str, int] = {}
        for name, start, end in phases(run.image, of_pe):
            spent[name] = spent.get(name, 0) + end - start
        shares = ", ".join(f"{name} {n:,}" for name, n in spent.items())
        lost = f" ({of_pe.n_lost:,} spans lost)" if of_pe.n_lost else ""
        rows.append((f"({of_pe.x}, {of_pe.y})", f"{busy:,}{lost}", shares))
    return html.table("Recorded PEs, modelled", ("PE", "busy cycles", "cycles by phase"), rows, (1,))
