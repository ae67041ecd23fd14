"""Every hardware number of the wafers: its unit, its source, and whether it is published, derived or assumed.

Keys of the sources: WLLM = WaferLLM (arXiv 2502.04563); HPEC = arXiv 2409.00287; LUCZ = arXiv 2404.15888;
MIC23 = IEEE Micro 43(3) and Hot Chips 34; SDK = Cerebras SDK documentation and csl-examples; MJ21 = Cerebras
blog of 2021-09-14; AT21 = AnandTech 2021; HC24 = Hot Chips 2024; MIMD = github lingzhi227/MIMD_dataflow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from wafergpt.config import require
from wafergpt.errors import ConfigError


class Evidence(StrEnum):
    """How a number is known. FITTED: an effective parameter adjusted to the published calibration rows."""

    PUBLISHED = "published"
    DERIVED = "derived"
    ASSUMED = "assumed"
    FITTED = "fitted"


@dataclass(frozen=True)
class Quantity:
    """One number: `value` in `unit`, how it is known, and where from."""

    value: float
    unit: str
    evidence: Evidence
    source: str


def _published(value: float, unit: str, source: str) -> Quantity:
    return Quantity(value, unit, Evidence.PUBLISHED, source)


def _derived(value: float, unit: str, source: str) -> Quantity:
    return Quantity(value, unit, Evidence.DERIVED, source)


def _assumed(value: float, unit: str, source: str) -> Quantity:
    return Quantity(value, unit, Evidence.ASSUMED, source)


@dataclass(frozen=True, kw_only=True)
class Arch:
    """A wafer or a part of one: `width` x `height` PEs that a program may use, and its figures by name."""

    name: str
    width: int
    height: int
    figures: Mapping[str, Quantity] = field(hash=False, repr=False)

    def __post_init__(self) -> None:
        require(self.width > 0 and self.height > 0, f"a mesh of {self.width} x {self.height} PEs is empty")

    def quantities(self) -> dict[str, Quantity]:
        """Every number of this wafer by name, the rectangle's edges included."""
        if "program_width" in self.figures:
            edges = {"width": self.figures["program_width"], "height": self.figures["program_height"]}
        else:
            edges = {
                "width": _assumed(self.width, "PE", "the mesh that was asked for"),
                "height": _assumed(self.height, "PE", "the mesh that was asked for"),
            }
        rest = {name: q for name, q in self.figures.items() if not name.startswith("program_")}
        return edges | rest

    def _whole(self, name: str) -> int:
        return int(self.figures[name].value)

    def _real(self, name: str) -> float:
        return self.figures[name].value

    @property
    def n_pes(self) -> int:
        """PEs of the program rectangle."""
        return self.width * self.height

    @property
    def n_pes_advertised(self) -> int:
        """Cores by the vendor's count, to which the peak belongs."""
        return self._whole("n_pes_advertised")

    @property
    def sram_bytes(self) -> int:
        """SRAM of one PE, in bytes: program, data and stack share it."""
        return self._whole("sram_bytes")

    @property
    def sram_banks(self) -> int:
        """Single-ported banks of one PE's SRAM."""
        return self._whole("sram_banks")

    @property
    def bank_width_bytes(self) -> int:
        """Bytes that a bank reads or writes in a cycle."""
        return self._whole("bank_width_bytes")

    @property
    def read_bytes_per_cycle(self) -> int:
        """Bytes a PE reads from its SRAM per cycle, over both operands."""
        return self._whole("read_bytes_per_cycle")

    @property
    def write_bytes_per_cycle(self) -> int:
        """Bytes a PE writes to its SRAM per cycle."""
        return self._whole("write_bytes_per_cycle")

    @property
    def simd(self) -> dict[str, int]:
        """Multiply-accumulates per PE and cycle, by format (fp16, cb16, bf16, fp32)."""
        return {
            n.removeprefix("simd_"): int(q.value) for n, q in self.figures.items() if n.startswith("simd_")
        }

    @property
    def clock_hz(self) -> float:
        """Clock that WaferLLM, HPEC and the vendor's papers use."""
        return self._real("clock_hz")

    @property
    def clock_sdk_hz(self) -> float:
        """Clock that the SDK's timing formulas and compile reports use."""
        return self._real("clock_sdk_hz")

    @property
    def link_bits(self) -> int:
        """Payload of a wavelet: bits per link, direction and cycle."""
        return self._whole("link_bits")

    @property
    def hop_cycles(self) -> int:
        """Cycles from router to neighbouring router."""
        return self._whole("hop_cycles")

    @property
    def ramp_cycles(self) -> int:
        """Cycles from core to router, and from router to core (T_R)."""
        return self._whole("ramp_cycles")

    @property
    def n_colors(self) -> int:
        """Virtual channels of a router that programs may use."""
        return self._whole("n_colors")

    @property
    def n_switch_positions(self) -> int:
        """Switch positions of a color in one router."""
        return self._whole("n_switch_positions")

    @property
    def io_bytes_per_s(self) -> float:
        """Off-wafer bandwidth per direction, bytes/s."""
        return self._real("io_bytes_per_s")

    @property
    def power_w(self) -> float:
        """Electric power of one system under load, watts."""
        return self._real("power_w")

    @property
    def peak_flops_per_s(self) -> float:
        """Dense fp16 peak of a whole system, FLOP/s (a multiply-accumulate is two)."""
        return self._real("peak_flops_per_s")

    @property
    def max_systems(self) -> int:
        """Systems that the weight broadcast and gradient reduction network joins."""
        return self._whole("max_systems")

    def at_sdk_clock(self) -> Arch:
        """The same wafer at the SDK's clock: equal cycles on the chip, rates lower by the clocks' ratio."""
        ratio = self.clock_sdk_hz / self.clock_hz
        figures = {**self.figures, "clock_hz": self.figures["clock_sdk_hz"]}
        for name in ("peak_flops_per_s", "memory_bandwidth_bytes_per_s", "fabric_bandwidth_bytes_per_s"):
            known = figures[name]
            figures[name] = _derived(known.value * ratio, known.unit, f"at the SDK's clock; {known.source}")
        return replace(self, name=f"{self.name} at {self.clock_sdk_hz / 1e9:g} GHz", figures=figures)

    def flops_per_s(self, dtype: str = "fp16") -> float:
        """Peak of the program rectangle in `dtype`, FLOP/s."""
        require(dtype in self.simd, f"{self.name} has no rate for {dtype}; known: {', '.join(self.simd)}")
        return 2.0 * self.n_pes * self.simd[dtype] * self.clock_hz


_SHARED = {
    "sram_bytes": _published(49152, "B", "48 KB per core: MIC23, WLLM, SDK"),
    "sram_banks": _published(8, "bank", "8 banks of 6 KB: MIC23"),
    "bank_width_bytes": _published(4, "B", "32 bit wide, single ported: MIC23"),
    "read_bytes_per_cycle": _published(
        16, "B/cycle", "2 x 64 bit (MIC23); 128 bit (LUCZ); SDK says 2 x 32 bit"
    ),
    "write_bytes_per_cycle": _published(8, "B/cycle", "64 bit: MIC23, LUCZ; SDK says 32 bit"),
    "n_registers": _published(16, "register", "general purpose: MIC23"),
    "n_dsr": _published(44, "register", "data structure registers: MIC23"),
    "n_microthreads": _published(8, "thread", "switched per cycle: MIC23"),
    "pipeline_stages": _published(6, "stage", "MIC23"),
    "link_bits": _published(32, "bit", "payload per cycle and direction: LUCZ, MJ21"),
    "hop_cycles": _published(1, "cycle", "LUCZ"),
    "ramp_cycles": _published(2, "cycle", "T_R: LUCZ"),
    "n_colors": _published(24, "color", "SDK, LUCZ"),
    "n_switch_positions": _published(4, "position", "per color and router: SDK"),
    "io_bytes_per_s": _published(150e9, "B/s", "12 x 100 GbE: AT21, weight-streaming white paper"),
}

WSE2 = Arch(
    name="WSE-2",
    width=750,
    height=994,
    figures=_SHARED
    | {
        "program_width": _published(750, "PE", "largest program rectangle, fabric 757 minus 7: csl-examples"),
        "program_height": _published(
            994, "PE", "largest program rectangle, fabric 996 minus 2: csl-examples"
        ),
        "n_pes_advertised": _published(
            850_000, "core", "AT21; 753,972 (757 x 996) can be reached with the SDK"
        ),
        "clock_hz": _published(1.1e9, "Hz", "HPEC table I, WLLM, MIC23"),
        "clock_sdk_hz": _published(0.85e9, "Hz", "LUCZ, csl-examples, compile reports"),
        "simd_fp16": _published(4, "MAC/cycle", "MIC23, SDK"),
        "simd_cb16": _assumed(4, "MAC/cycle", "as fp16: the rate is not published"),
        "simd_bf16": _assumed(4, "MAC/cycle", "as fp16: WSE-2 has no native bf16; the framework maps it"),
        "simd_fp32": _derived(1, "MAC/cycle", "measured 1.0 cycle per multiply-accumulate: MIMD"),
        "cache_bytes": _published(256, "B", "software-managed: MIC23"),
        "peak_flops_per_s": _published(7.5e15, "FLOP/s", "HPEC table I; 16 systems 120 PF: Andromeda"),
        "sram_total_bytes": _published(40e9, "B", "AT21"),
        "power_w": _published(22e3, "W", "mean of a 66-day run: arXiv 2509.05668; quoted 15 to 23 kW"),
        "max_systems": _published(192, "system", "SwarmX: vendor, 2021"),
        "memory_bandwidth_bytes_per_s": _published(20e15, "B/s", "AT21; WLLM says 22e15"),
        "fabric_bandwidth_bytes_per_s": _published(27.5e15, "B/s", "220 Pb/s: AT21"),
    },
)

WSE3 = Arch(
    name="WSE-3",
    width=755,
    height=1170,
    figures=_SHARED
    | {
        "program_width": _derived(755, "PE", "fabric 762 minus 7, as on WSE-2: WLLM code"),
        "program_height": _derived(1170, "PE", "fabric 1172 minus 2, as on WSE-2: WLLM code"),
        "n_pes_advertised": _published(900_000, "core", "vendor, 2024"),
        "clock_hz": _assumed(1.1e9, "Hz", "as WSE-2: not published"),
        "clock_sdk_hz": _assumed(0.85e9, "Hz", "as WSE-2: not published"),
        "simd_fp16": _published(8, "MAC/cycle", "SDK"),
        "simd_cb16": _assumed(8, "MAC/cycle", "as fp16"),
        "simd_bf16": _published(8, "MAC/cycle", "native bf16: SDK"),
        "simd_fp32": _assumed(1, "MAC/cycle", "as WSE-2"),
        "cache_bytes": _published(512, "B", "MIC23 summaries"),
        "peak_flops_per_s": _derived(15.8e15, "FLOP/s", "900k x 8 x 2 x 1.1 GHz; 125e15 is with sparsity"),
        "sram_total_bytes": _published(44e9, "B", "vendor, 2024"),
        "power_w": _published(23e3, "W", "vendor; 25 kW in other places"),
        "max_systems": _published(2048, "system", "SwarmX: HC24"),
        "memory_bandwidth_bytes_per_s": _published(21e15, "B/s", "vendor, 2024"),
        "fabric_bandwidth_bytes_per_s": _published(26.75e15, "B/s", "214 Pb/s: vendor, 2024"),
    },
)

# What the cycle simulator charges beyond that, for every wafer. A function is computed in software from
# multiplies and adds, one element at a time; a square root or division by Newton steps from a table value.
_NEWTON, _SERIES = "Newton steps, no SIMD", "a series in multiplies and adds, no SIMD"
SIMULATED = {
    **{name: _SHARED[name] for name in ("sram_bytes", "n_colors", "ramp_cycles")},
    "task_launch_cycles": _assumed(0, "cycle", "beyond the cycle in which the task is picked"),
    "div_cycles": _assumed(12, "cycle", "integer division"),
    "link_depth": _assumed(4, "wavelet", "router queue, per color and port"),
    "core_depth": _assumed(8, "wavelet", "between router and core, per color, those on the ramp included"),
    "up_depth": _assumed(8, "wavelet", "between core and router, per color, those on the ramp included"),
    "io_bytes_per_cycle": _derived(176, "B/cycle", "150 GB/s at 0.85 GHz"),
    "io_latency_cycles": _assumed(1000, "cycle", "per host copy"),
    "instruction_bytes": _assumed(8, "B", "SRAM of an instruction; the vendor's set is not public"),
    "descriptor_bytes": _assumed(16, "B", "SRAM of a data-structure descriptor"),
    "function_div_cycles": _assumed(8, "cycle/element", _NEWTON),
    "function_sqrt_cycles": _assumed(10, "cycle/element", _NEWTON),
    "function_rsqrt_cycles": _assumed(8, "cycle/element", _NEWTON),
    "function_exp_cycles": _assumed(12, "cycle/element", _SERIES),
    "function_tanh_cycles": _assumed(24, "cycle/element", _SERIES),
    "function_erf_cycles": _assumed(28, "cycle/element", _SERIES),
    "function_gelu_cycles": _assumed(32, "cycle/element", "tanh and six multiplies and adds"),
}

PRESETS = {WSE2.name: WSE2, WSE3.name: WSE3}
_ALIASES = {"CS-2": WSE2, "CS-3": WSE3, "WSE2": WSE2, "WSE3": WSE3, "CS2": WSE2, "CS3": WSE3}


def mesh(width: int, height: int, base: Arch = WSE2) -> Arch:
    """A rectangle of `width` x `height` PEs of the wafer `base`. Raises ConfigError when it is empty."""
    figures = {name: q for name, q in base.figures.items() if not name.startswith("program_")}
    return replace(base, name=f"{base.name} {width}x{height}", width=width, height=height, figures=figures)


def get_arch(name: str) -> Arch:
    """`"WSE-2"`, `"WSE-3"` (or CS-2, CS-3), or `"16x16"`, a mesh; with `"@sdk"` behind it at the SDK's clock.

    Raises ConfigError for another name.
    """
    wanted, at, clock = name.partition("@")
    if at:
        require(clock == "sdk", f"unknown clock '{clock[:40]}'; known: {wanted[:40]}@sdk, or no clock")
        return get_arch(wanted).at_sdk_clock()
    known = PRESETS | _ALIASES
    if name.upper() in known:
        return known[name.upper()]
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", name)
    if match is None:
        raise ConfigError(
            f"unknown wafer '{name[:40]}'; known: {', '.join(PRESETS)}, or a mesh such as 16x16"
        )
    return mesh(int(match.group(1)), int(match.group(2)))
