"""Builds the cases, has them loaded in a confined process, and judges each report."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hostile_lab.code_cases import code_cases
from hostile_lab.file_cases import file_cases
from hostile_lab.folders import Case, good
from hostile_lab.tensor_cases import tensor_cases
from hostile_lab.text_cases import text_cases
from hostile_lab.watch import MEMORY_BYTES, MEMORY_SHARE

TESTS = Path(__file__).resolve().parent.parent
DOCUMENTED_EXIT_CODES = (2, 3, 5, 6)  # docs/reference/exit_codes.md: configuration, data, checkpoint, storage
MAX_MESSAGE_CHARS = 700  # a line of a terminal or few, the folder's path included


def all_cases() -> list[Case]:
    return [*code_cases(), *tensor_cases(), *text_cases(), *file_cases()]


def run_cases(cases: Sequence[Case], root: Path, loader: str = "ours") -> dict[str, list[str]]:
    """Name -> what was wrong (nothing, if all is well), for every case."""
    problems: dict[str, list[str]] = {}
    warm = good(_made(root / "warm"))
    batch_cases = 24  # what lies on the disk at one time
    for start in range(0, len(cases), batch_cases):
        batch = cases[start : start + batch_cases]
        folders = {case.name: root / f"{start + n:03}" for n, case in enumerate(batch)}
        for case in batch:
            folders[case.name].mkdir()
            case.build(folders[case.name], root / f"marker-{folders[case.name].name}")
        reports = _reports([_line(case, folders[case.name]) for case in batch], warm, loader)
        for case in batch:
            marker = root / f"marker-{folders[case.name].name}"
            size_bytes = _size_bytes(folders[case.name])
            problems[case.name] = _judged(case, reports[case.name], size_bytes, marker.exists())
            shutil.rmtree(folders[case.name])
    return problems


def _line(case: Case, folder: Path) -> str:
    given = folder / case.given if case.given else folder
    line = {"name": case.name, "path": str(given), "folder": str(given)}
    return json.dumps(line | {"folder_bytes": _size_bytes(folder), "tamper": case.tamper})


def _size_bytes(folder: Path) -> int:
    """What the folder really takes; a sparse file has no right to more memory than that."""
    found = 0
    for path in folder.rglob("*"):
        status = path.lstat()
        found += min(status.st_size, status.st_blocks * 512)
    return found


def _reports(
    lines: list[str], warm: Path, loader: str, prefix: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    command = [*(prefix or _no_network()), sys.executable, "-m", "hostile_lab.child", loader]
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HOSTILE_WARM": str(warm),
    }
    done = subprocess.run(
        command, env=environment, input="\n".join(lines), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    return {report["name"]: report | {"stderr": done.stderr} for report in reports}


def _no_network() -> list[str]:
    """A prefix that gives the child an empty network namespace, where the system allows that."""
    tool = shutil.which("unshare")
    for options in (["-n"], ["-r", "-n"]):
        if tool and subprocess.run([tool, *options, "true"], capture_output=True).returncode == 0:
            return [tool, *options]
    return []


def _judged(case: Case, report: dict[str, Any], size_bytes: int, marked: bool) -> list[str]:
    problems = [f"event: {event}" for event in report["violations"]]
    if marked:
        problems.append("code of the folder ran: the marker is there")
    if report["stderr"]:
        problems.append(f"something was printed: {report['stderr'][-300:]!r}")
    allowed_bytes = MEMORY_SHARE * size_bytes + MEMORY_BYTES
    if report["peak_bytes"] > allowed_bytes:
        problems.append(f"peak of {report['peak_bytes'] >> 20} MiB, allowed {int(allowed_bytes) >> 20}")
    error = report["error"]
    if report.get("kind") in ("unexpected", "died"):
        return [*problems, f"it ended with {error}"]
    if error is None:
        return problems if case.rule in (None, "*") else [*problems, "it was loaded"]
    if case.rule is None:
        return [*problems, f"a valid folder was refused: {error}"]
    if "\n" in error or not error.isprintable() or len(error) > MAX_MESSAGE_CHARS:
        problems.append(f"the message is not one short printable line: {error[:200]!r}")
    if case.rule != "*" and (case.rule not in error or case.file not in error):
        problems.append(f"the message lacks {case.rule!r} or {case.file!r}: {error[:300]}")
    if report["exit_code"] not in DOCUMENTED_EXIT_CODES:
        problems.append(f"exit code {report['exit_code']} is not documented")
    return problems


def system_calls_outside(cases: Sequence[Case], root: Path, loader: str = "ours") -> list[str]:
    """Files opened outside the folders, programs started and sockets made while loading, as strace saw it.

    The audit hook sees what Python does; this sees what the libraries below it do.
    """
    warm = good(_made(root / "warm"))
    folders = {case.name: _made(root / f"{n:03}") for n, case in enumerate(cases)}
    for case in cases:
        case.build(folders[case.name], root / "marker")
    log = root / "strace.log"
    prefix = [
        "strace",
        "-f",
        "-qq",
        "-s",
        "300",
        "-o",
        str(log),
        "-e",
        "trace=open,openat,execve,socket,connect",
    ]
    _reports([_line(case, folders[case.name]) for case in cases], warm, loader, prefix)
    calls = [
        line.split(maxsplit=1) for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    parent = calls[0][0]
    # A child measures itself in /proc/self; a bare name is relative to the folder's handle.
    harmless = re.compile(
        rf'(\+\+\+|---|.*"(/proc/self/|{re.escape(str(root))}/[0-9]{{3}}|[^/"]*"|\.\./\.\./blobs))'
    )
    return [call for pid, call in calls if pid != parent and not harmless.match(call)]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
