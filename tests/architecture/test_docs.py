"""The pages agree with the code, with each other and with the published figures; every anchor exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from reference_pages import (
    CONFIGS,
    FINETUNE_CONFIGS,
    config_rows,
    sections,
    table_rows,
    verb_rows,
    with_verb_tables,
)
from source_tree import ROOT

from wafergpt import errors
from wafergpt.cli.main import VERBS
from wafergpt.model.family import FAMILY
from wafergpt.model.mup import Role, multipliers, rules, width_ratios
from wafergpt.recipes import cerebras_gpt
from wafergpt.recipes.scaling_law import STANDARD_LAW
from wafergpt.runs.quickstart import quickstart
from wafergpt.training.resume import Change, change_class

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
TRANSLATION, ORIGINAL = ROOT / "README.zh-CN.md", ROOT / "README.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its fenced blocks and inline code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What `page.md#...` may name: GitHub's slugs of its headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def dead_anchors(page: Path) -> list[str]:
    """Links of a page to a heading that is not there."""
    found = []
    for target in LINK.findall(prose(page)):
        file, hash_, anchor = target.partition("#")
        if not hash_ or re.match(r"[a-z]+:", target):
            continue
        goal = page.parent / file if file else page
        if not goal.exists() or anchor not in anchors(goal):
            found.append(f"{page.name}: {target}")
    return found


def number(text: str) -> float:
    """`1/64`, `6e-3`, `2.221B`, `111,050,496` as a number."""
    if "/" in text:
        return 1 / float(text.split("/")[1])
    scale = 1e9 if text.endswith("B") else 1.0
    return float(text.removesuffix("B").replace(",", "")) * scale


def rounded_to(shown: str, value: float) -> bool:
    """Whether `shown` is `value` rounded to the digits that are shown."""
    digits = re.sub(r"[eE].*|[.,B]", "", shown).lstrip("0")
    return float(f"{value:.{max(len(digits), 1)}g}") == pytest.approx(number(shown), rel=1e-9)


def test_every_anchor_exists() -> None:
    found = [problem for page in PAGES for problem in dead_anchors(page)]
    assert not found, "\n".join(found)


def test_a_dead_anchor_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What `x` is: a Test\n[a](#what-x-is-a-test) [b](page.md#gone) [c](#no)\n", encoding="utf-8"
    )
    assert dead_anchors(page) == ["page.md: page.md#gone", "page.md: #no"]


def test_the_index_lists_every_page() -> None:
    index = DOCS / "README.md"
    linked = {(index.parent / target).resolve() for target in LINK.findall(prose(index))}
    missing = [page.name for page in DOCS.rglob("*.md") if page != index and page.resolve() not in linked]
    assert not missing


def test_the_translation_keeps_step() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ORIGINAL, TRANSLATION)]
    own = {"README.md", "README.zh-CN.md"}
    assert len({text.count("\n## ") for text in pages}) == 1
    assert len({len(table_rows(text)) for text in pages}) == 1
    links = [[link for link in LINK.findall(text) if link not in own] for text in pages]
    assert sorted(links[0]) == sorted(links[1])
    assert [text.count("<!-- FIGURES -->") for text in pages] in ([1, 1], [0, 0])


def test_the_readme_lists_every_verb() -> None:
    listed = [row[0] for row in table_rows(sections(ORIGINAL)["A short tour"])]
    assert listed == [*VERBS] or sorted(listed) == sorted(VERBS)


@pytest.mark.parametrize("title", [*CONFIGS, *FINETUNE_CONFIGS])
def test_config_reference(title: str) -> None:
    rows = table_rows(sections(DOCS / "reference/config.md")[title])
    assert [row[:3] for row in rows] == config_rows((CONFIGS | FINETUNE_CONFIGS)[title])
    assert all(row[3] for row in rows), "a key without a meaning"


def test_config_reference_says_what_may_change_on_resume() -> None:
    rows = table_rows(sections(DOCS / "reference/config.md")["What may change on resume"])
    documented = {row[0]: row[1].partition(":")[0].partition(";")[0] for row in rows}
    prefixes = {title: title.partition(":")[0] + "." if ":" in title else "" for title in CONFIGS}
    keys = [prefixes[title] + row[0] for title, cls in CONFIGS.items() for row in config_rows(cls)]
    changes = {key: change_class(key) for key in keys}
    assert documented == {
        key: change.value for key, change in changes.items() if change is not Change.REFUSED
    }


def test_cli_reference() -> None:
    found = sections(DOCS / "reference/cli.md")
    expected = dict(verb_rows())
    assert [title for title in found if title != "Environment variables"] == [*expected]
    for verb, rows in expected.items():
        assert table_rows(found[verb]) == rows, f"{verb}: run python tests/architecture/reference_pages.py"


def test_a_changed_option_is_found_and_its_table_written_anew() -> None:
    text = (DOCS / "reference/cli.md").read_text(encoding="utf-8")
    changed = text.replace("| `--data` | required |", "| `--date` | required |")
    assert changed != text and with_verb_tables(changed) == text


def test_cli_reference_lists_the_environment_variables() -> None:
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py"))
    rows = table_rows(sections(DOCS / "reference/cli.md")["Environment variables"])
    assert {row[0] for row in rows} == set(re.findall(r"WAFERGPT_[A-Z]+", sources))


def test_exit_codes_name_their_errors() -> None:
    rows = {
        row[2]: row[0] for row in table_rows((DOCS / "reference/exit_codes.md").read_text(encoding="utf-8"))
    }
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.WaferGPTError):
            assert rows[name] == str(kind.exit_code)


def test_mup_table() -> None:
    page = sections(DOCS / "explanation/mup.md")
    rows = table_rows(page["The published sizes"])
    assert [row[0].removesuffix(" (proxy)") for row in rows] == sorted(
        (name for name, member in FAMILY.items() if member.config.mup),
        key=lambda name: FAMILY[name].config.d_model,
    )
    for row in rows:
        config = FAMILY[row[0].removesuffix(" (proxy)")].config
        hidden, out, forward = (
            rules(config)[Role.HIDDEN_IN],
            rules(config)[Role.ATTENTION_OUT],
            multipliers(config),
        )
        values = (
            width_ratios(config).d_model,
            cerebras_gpt.MUP_BASE_LR * hidden.lr_scale,
            hidden.init_std,
            out.init_std,
            forward.logits,
        )
        for shown, value in zip(row[1:6], values, strict=True):
            assert rounded_to(shown, value), (row[0], shown, value)
        assert row[6] == f"1/{config.d_head}"
    assert [row[0].partition(":")[0] for row in table_rows(page["The rules"])] == [
        role.value for role in Role
    ]


def test_table_of_published_runs() -> None:
    page = sections(DOCS / "explanation/compute_optimal.md")
    rows = table_rows(page["The published runs"])
    assert [row[0] for row in rows] == [name for name in cerebras_gpt.RECIPES if "muP" not in name]
    for row in rows:
        recipe = cerebras_gpt.get(row[0])
        assert number(row[1]) == recipe.config.n_params
        assert rounded_to(row[2], recipe.n_tokens)
        assert number(row[3]) == recipe.phases[-1].batch_tokens
        assert number(row[4]) == recipe.peak_lr and row[5] == recipe.decay.value
        assert number(row[6]) == recipe.headline_flops and number(row[7]) == recipe.test_loss
    law = f"{STANDARD_LAW.scale_flops:g}".replace("e+", "e")
    formula = f"L(f) = (f / {law})^-{STANDARD_LAW.exponent} + {STANDARD_LAW.irreducible}"
    assert formula in page["The scaling law"]


def test_the_tutorial_describes_the_quickstart() -> None:
    config = quickstart()
    text = (DOCS / "tutorial/first_cerebras_gpt.md").read_text(encoding="utf-8")
    assert f"Every {config.held_out_every}th block of {config.held_out_block_chars:,} characters" in text
    assert config.corpus == "bible-bbe" and "The Bible in Basic English" in text
    assert 1.5e6 < config.model.n_params < 1e7  # "a few million"


def test_notation_names_every_parameter() -> None:
    documented = {row[0] for row in table_rows(sections(DOCS / "explanation/notation.md")["Parameters"])}
    shapes = FAMILY["111M"].config.parameter_shapes()
    weights = {re.sub(r"^h\.\d+\.", "h.N.", name) for name in shapes if name.endswith("weight")}
    assert documented == weights


def test_a_wrong_figure_is_found() -> None:
    assert rounded_to("0.046188", 0.04618802) and not rounded_to("0.046189", 0.04618802)
    assert rounded_to("26.31B", 26_313_424_896) and not rounded_to("26.32B", 26_313_424_896)
