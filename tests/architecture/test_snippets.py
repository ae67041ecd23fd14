"""The README's commands and the docs' snippets run: small in `make test`, in full in `make test-long`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from snippets import Block, blocks, lay_clone, run_block, unclear
from source_tree import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TRANSLATIONS = {"README.zh-CN.md": "README.md"}  # same commands, so they run once
RUN = [p for p in PAGES if p.name not in TRANSLATIONS and any(block.runs for block in blocks(p, ROOT))]
SMOKE_TIMEOUT_S, FULL_TIMEOUT_S = 240.0, 5400.0


def run_page(page: Path, root: Path, folder: Path, *, smoke: bool) -> str:
    """Run a page's blocks in order in one folder; the first failure, or an empty string."""
    lay_clone(ROOT, folder)
    for block in blocks(page, root):
        timeout_s = SMOKE_TIMEOUT_S if smoke else FULL_TIMEOUT_S
        failure = run_block(block, folder, smoke=smoke, timeout_s=timeout_s) if block.runs else ""
        if failure:
            return failure
    return ""


@pytest.mark.parametrize("smoke", [True, pytest.param(False, marks=pytest.mark.long)], ids=["small", "full"])
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_snippets_run(page: Path, smoke: bool, tmp_path: Path) -> None:
    failure = run_page(page, ROOT, tmp_path, smoke=smoke)
    assert not failure, failure


def test_every_block_is_tagged() -> None:
    found = [problem for page in PAGES for block in blocks(page, ROOT) if (problem := unclear(block))]
    assert not found, "\n".join(found)


def test_the_readme_has_commands_to_run() -> None:
    assert any(block.runs and "make demo" in block.code for block in blocks(ROOT / "README.md", ROOT))


def test_translations_show_the_same_commands() -> None:
    for translation, original in TRANSLATIONS.items():
        commands = [
            [_without_comments(block) for block in blocks(ROOT / name, ROOT) if block.runs]
            for name in (translation, original)
        ]
        assert commands[0] == commands[1]


def test_links_between_pages_lead_somewhere() -> None:
    found = [problem for page in PAGES for problem in broken_links(page)]
    assert not found, "\n".join(found)


def broken_links(page: Path) -> list[str]:
    """Relative links of a page whose file does not exist."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)
    return [
        f"{page.name}: {target}"
        for target in targets
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
    ]


def _without_comments(block: Block) -> str:
    return re.sub(r"\s*#.*", "", block.code)


GOOD = (
    "```bash run\necho one > made\n```\n\n  ```python run\n  assert open('made').read() == 'one\\n'\n  ```\n"
)


def test_blocks_share_a_folder_and_an_order(tmp_path: Path) -> None:
    assert _try(GOOD + "```text\nnot a command\n```\n", tmp_path) == ""


@pytest.mark.parametrize(
    "planted",
    [
        "```bash run\nfalse | true\n```\n",
        "```python run\nassert 0\n```\n",
        "```bash run\ntest $WAFERGPT_SMOKE = 0\n```\n",
    ],
    ids=["pipe", "python", "smoke"],
)
def test_a_failing_block_is_found(planted: str, tmp_path: Path) -> None:
    assert "page.md:8 exited with 1" in _try(GOOD + planted, tmp_path)


@pytest.mark.parametrize("tag", ["", "bash", "python", "bash norun", "python run fast", "console"])
def test_a_command_that_is_not_run_is_refused(tag: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```{tag}\nx\n```\n", encoding="utf-8")
    assert unclear(blocks(page, tmp_path)[0])


def test_make_finds_its_environment_ready(tmp_path: Path) -> None:
    assert _try("```bash run\nmake -n demo | grep -vq 'pip install'\n```\n", tmp_path) == ""


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "[a](page.md#here) [b](none.md) ![c](https://x.example/y.png) `[d](e)`\n", encoding="utf-8"
    )
    assert broken_links(page) == ["page.md: none.md"]


def _try(text: str, tmp_path: Path) -> str:
    page, folder = tmp_path / "page.md", tmp_path / "clone"
    page.write_text(text, encoding="utf-8")
    folder.mkdir()
    return run_page(page, tmp_path, folder, smoke=True)
