"""Find the fenced blocks of a Markdown page and run those marked `run`, as its reader would.

    ```bash run        commands, run by bash with -euo pipefail
    ```python run      a complete program
    ```text            (or yaml, json, ...) shown, not run

The blocks of one page run in order in one folder, which looks like a fresh clone: links to the
repository's top-level entries and to .venv, whose programs come first on PATH. A bash or python block
without `run` is refused: what a page shows as a command is a command that works.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^( *)```(.*)$")
RUNNABLE = ("bash", "python")
BARRED = (
    "",
    "bash",
    "sh",
    "shell",
    "console",
    "python",
    "py",
    "pycon",
)  # these must be `run`, or something else
OUTPUTS = (
    "runs",
    "out",
    "build",
    "dist",
    ".git",
)  # not linked: a page's own outputs must not land in the clone


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: `info` is what follows the fence, `line` where it starts."""

    page: str
    line: int
    info: str
    code: str

    @property
    def runs(self) -> bool:
        """Whether the block is to be executed."""
        words = self.info.split()
        return len(words) == 2 and words[0] in RUNNABLE and words[1] == "run"

    @property
    def language(self) -> str:
        """The first word of the fence."""
        return self.info.split()[0] if self.info.split() else ""


def blocks(page: Path, root: Path) -> list[Block]:
    """Every fenced block of a page. Raises ValueError for a fence that is not closed."""
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None
    code: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        match = FENCE.match(line)
        if opened is None and match:
            opened, code = (number, match.group(1), match.group(2).strip()), []
        elif opened is not None and match and not match.group(2).strip():
            name = page.relative_to(root).as_posix()
            found.append(Block(page=name, line=opened[0], info=opened[2], code="\n".join(code) + "\n"))
            opened = None
        elif opened is not None:
            code.append(line.removeprefix(opened[1]))
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: the fence is not closed")
    return found


def unclear(block: Block) -> str:
    """Why the block's tag is refused, or an empty string."""
    if block.runs or (len(block.info.split()) == 1 and block.language not in BARRED):
        return ""
    where = f"{block.page}:{block.line}"
    return f"{where}: tag '{block.info}' is neither `bash run` nor `python run` nor a language to show"


def lay_clone(root: Path, folder: Path) -> None:
    """Make `folder` look like a fresh clone of `root` whose .venv is set up."""
    tracked = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True)
    names = {name.split("/")[0] for name in tracked.stdout.split("\0") if name}
    names = names or {path.name for path in root.iterdir()}
    for name in sorted((names | {".venv"}) - set(OUTPUTS)):
        if (root / name).exists():
            (folder / name).symlink_to(root / name)


def run_block(block: Block, folder: Path, *, smoke: bool, timeout_s: float) -> str:
    """Execute a block in `folder`; return an empty string, or what went wrong."""
    binaries = Path(sys.executable).parent
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MAKE"))
    }
    environment |= {
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "WAFERGPT_SMOKE": "1" if smoke else "0",
        "MAKEFLAGS": "-- STAMP=",  # the .venv is the caller's: never reinstall it from here
    }
    command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    try:
        done = subprocess.run(
            [*command, block.code],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return f"{block.page}:{block.line} did not end within {timeout_s:g} s"
    if done.returncode == 0:
        return ""
    output = done.stdout[-3000:]
    return f"{block.page}:{block.line} exited with {done.returncode}:\n{block.code}\n--- output\n{output}"
