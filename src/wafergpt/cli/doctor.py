"""`wafergpt doctor`: what this machine and installation have, and what is missing with its fix."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

# What each CPU feature is for; the names are Linux's, from /proc/cpuinfo.
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
COMPILER_FIX = "apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora)"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report; `fix` is empty when nothing is missing."""

    topic: str
    name: str
    present: bool
    detail: str
    fix: str = ""


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    startup: Annotated[
        bool, typer.Option("--startup", help="Time what a process must import first, too.")
    ] = False,
) -> int:
    """Say which Python, torch, CPU features, kernels and optional parts are there, and what is missing.

    Exits with 9 when a package that wafergpt cannot run without is missing, else with 0.
    """
    from wafergpt.errors import MissingDependencyError

    findings = [*examine(), *(_startup() if startup else [])]
    if json:
        from json import dumps

        print(dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(render(findings), end="")
    broken = any(not finding.present for finding in findings if finding.topic == "core")
    return MissingDependencyError.exit_code if broken else 0


def examine() -> list[Finding]:
    """Every finding, in the order of the report."""
    return [
        *_python(),
        *_core_packages(),
        *_machine(),
        *_compiler_and_kernels(),
        *_optional_parts(),
        *_storage(),
    ]


def render(findings: list[Finding]) -> str:
    """The findings as text, grouped by topic; a line with `--` names what is missing and its fix."""
    width = max(len(finding.name) for finding in findings)
    lines, topic = [], ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            lines.append(topic)
        mark = "ok" if finding.present else "--"
        fix = f"; fix: {finding.fix}" if finding.fix else ""
        lines.append(f"  {mark}  {finding.name:<{width}}  {finding.detail}{fix}")
    return "\n".join(lines) + "\n"


def _installed_version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python() -> list[Finding]:
    return [
        Finding(
            topic="python",
            name="wafergpt",
            present=True,
            detail=_installed_version("wafergpt") or "from source",
        ),
        Finding(
            topic="python",
            name="python",
            present=True,
            detail=f"{platform.python_version()} at {sys.executable}",
        ),
    ]


def _requirements() -> list[tuple[str, str]]:
    """(package, extra or "") of the installed metadata, so that pyproject.toml stays the one list."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        texts = requires("wafergpt") or []
    except PackageNotFoundError:
        return []
    pattern = re.compile(r"([\w.-]+)[^;]*(?:;.*extra == ['\"]([\w-]+)['\"])?")
    return [(match[1], match[2] or "") for text in texts if (match := pattern.match(text))]


def _core_packages() -> list[Finding]:
    findings = []
    for package in (package for package, extra in _requirements() if not extra):
        found = _installed_version(package)
        present, detail, fix = found is not None, found or "not installed", "pip install wafergpt"
        if package == "torch" and found is not None:
            present, detail = _torch_detail(found)
            fix = f"pip install --force-reinstall torch=={found.partition('+')[0]}"
        findings.append(
            Finding(topic="core", name=package, present=present, detail=detail, fix="" if present else fix)
        )
    return findings


def _torch_detail(found: str) -> tuple[bool, str]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return False, f"{found} is installed but does not load: {str(error).splitlines()[0]}"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    where = ", ".join(devices) if devices else "no GPU"
    return True, f"{torch.__version__}, {torch.get_num_threads()} threads, {where}"


def _machine() -> list[Finding]:
    from wafergpt.kernels.build import cpu_flags
    from wafergpt.units import format_bytes

    flags = cpu_flags()
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total_bytes, available_bytes = _memory_bytes()
    memory = (
        f"{format_bytes(available_bytes)} available of {format_bytes(total_bytes)}"
        if total_bytes
        else "unknown"
    )
    findings = [
        Finding(topic="machine", name="cpu", present=True, detail=f"{_cpu_name()}, {n_cores} cores usable"),
        Finding(topic="machine", name="memory", present=True, detail=memory),
    ]
    for feature in CPU_FEATURES:
        present = feature in flags
        detail = "yes" if present else "not on this CPU"
        findings.append(Finding(topic="machine", name=feature, present=present, detail=detail))
    return findings


def _proc(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:  # not Linux
        return ""


def _cpu_name() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _proc("/proc/cpuinfo"), re.MULTILINE)
    return match.group(1) if match else platform.processor() or platform.machine()


def _memory_bytes() -> tuple[int, int]:
    """(total, available), the container's limit respected; zeros where the system does not say."""
    kib = {
        name: int(value)
        for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", _proc("/proc/meminfo"), re.MULTILINE)
    }
    total_bytes, available_bytes = kib.get("MemTotal", 0) * 1024, kib.get("MemAvailable", 0) * 1024
    limit = _proc("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < total_bytes:
        used = int(_proc("/sys/fs/cgroup/memory.current").strip() or 0)
        total_bytes, available_bytes = int(limit), min(available_bytes, int(limit) - used)
    return total_bytes, available_bytes


def _compiler_and_kernels() -> list[Finding]:
    from wafergpt.kernels.build import find_compiler, status

    compiler, kernels = find_compiler(), status()
    return [
        Finding(
            topic="kernels",
            name="compiler",
            present=compiler is not None,
            detail=compiler or "none found",
            fix="" if compiler else COMPILER_FIX,
        ),
        Finding(
            topic="kernels",
            name="kernels",
            present=kernels.available,
            detail=str(kernels.path)
            if kernels.available
            else f"not in use, torch does the work: {kernels.reason}",
        ),
        _native_backend(),
    ]


def _native_backend() -> Finding:
    from wafergpt.errors import WaferGPTError
    from wafergpt.kernels import native, native_build

    try:
        with warnings.catch_warnings():  # said below
            warnings.simplefilter("ignore")
            detail, present = f"uses {native.choose_isa()}, {native_build.status().path}", True
        detail += "".join(f"; {name} not used: {why}" for name, why in native.broken_isas().items())
    except WaferGPTError as error:
        detail, present = f"not in use, torch generates: {error}", False
    return Finding(topic="kernels", name="native backend", present=present, detail=detail)


# What a process pays before it can do anything; each is timed on its own.
STARTUP = {
    "python": "pass",
    "numpy": "import numpy",
    "wafergpt --help": "import wafergpt.cli.main",
    "native backend": "import wafergpt.backends.native_cpu",
    "torch backend": "import wafergpt.backends.torch_eager",
}


def _startup(n_rounds: int = 3) -> list[Finding]:
    import subprocess
    import time

    findings = []
    for name, code in STARTUP.items():
        times_s = []
        for _ in range(n_rounds):
            start_s = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
            times_s.append(time.perf_counter() - start_s)
        detail = f"{min(times_s):.2f} s for a process that does: {code}"
        findings.append(Finding(topic="startup", name=name, present=done.returncode == 0, detail=detail))
    return findings


def _optional_parts() -> list[Finding]:
    findings = []
    for package, extra in _requirements():
        if not extra:
            continue
        found = _installed_version(package)
        fix = "" if found else f"pip install 'wafergpt[{extra}]'"
        name = f"{extra}: {package}"
        findings.append(
            Finding(
                topic="optional", name=name, present=bool(found), detail=found or "not installed", fix=fix
            )
        )
    return findings


def _storage() -> list[Finding]:
    from wafergpt.kernels.build import cache_dir
    from wafergpt.units import format_bytes

    findings = []
    remedies = {
        "cache": "set WAFERGPT_CACHE to a folder you can write",
        "here": "work in a folder you can write",
    }
    for name, folder in (("cache", cache_dir().parent), ("here", Path.cwd())):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        writable = os.access(existing, os.W_OK)
        free = format_bytes(shutil.disk_usage(existing).free)
        detail = f"{folder}, {free} free" + ("" if writable else ", not writable")
        fix = "" if writable else remedies[name]
        findings.append(Finding(topic="storage", name=name, present=writable, detail=detail, fix=fix))
    return findings
