"""The tutorial on programs for the mesh shows what happens: its output, its errors, its faster version."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs/tutorial/write_a_wafer_program.md"
BLOCKS = re.findall(r"^```(.*?)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
PROGRAM, BROKEN = (code for info, code in BLOCKS if info == "python run")
SHOWN, SLOW, FAST, ERRORS = (code for info, code in BLOCKS if info == "text")


def _output(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_prints_what_the_page_shows() -> None:
    # The first line names the engine, which differs where there is no compiler.
    assert _output(PROGRAM).splitlines()[-1] == SHOWN.splitlines()[-1]


def test_the_program_is_about_thirty_lines() -> None:
    assert PROGRAM.split("def ")[1].split("return program")[0].count("\n") <= 30


def test_the_broken_programs_say_what_the_page_shows() -> None:
    assert _output(BROKEN).strip() == ERRORS.strip()


def test_the_faster_version_takes_the_cycles_that_the_page_predicts() -> None:
    def indented(text: str) -> str:
        return "".join(f"{16 * ' '}{line}\n" for line in text.splitlines())

    assert PROGRAM.count(indented(SLOW)) == 1
    fast = PROGRAM.replace(indented(SLOW), indented(FAST)).replace("width * (n + 7)", "2 * n + 7 * width")
    assert "numpy: 88 cycles" in _output(fast)
    assert "so 2n + 7P in all, 88 cycles" in " ".join(PAGE.read_text(encoding="utf-8").split())
