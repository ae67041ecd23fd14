"""The HTML report: nothing outside the file, everything escaped, all numbers there; hostile saved reports."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from wafergpt.errors import DataError
from wafergpt.units import format_figure
from wafergpt.wafer.analytic.price import price
from wafergpt.wafer.html import Picture, report_page
from wafergpt.wafer.report import PARTS, Assumption, OpCost, Report, Unmapped
from wafergpt.wafer.workload import TransformerShape, describe_transformer

HOSTILE = "<script>alert('x')</script>\"&<img src=http://evil>"
SHAPE = TransformerShape(
    name=HOSTILE,
    n_layers=1,
    d_model=64,
    n_heads=2,
    n_kv_heads=2,
    d_ffn=256,
    vocab_size=128,
    max_seq_len=32,
)


class Reader(HTMLParser):
    """Tags, attributes and the text of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def report() -> Report:
    found = price(describe_transformer(SHAPE, batch=2, seq_len=32), systems=2, host_s=1.5)
    spoiled = Report.from_json(found.to_json())
    return Report(
        **{
            **vars(spoiled),
            "reason": HOSTILE,
            "unmapped": (Unmapped(name=HOSTILE, shapes=HOSTILE, count=3, host_s=0.5),),
            "assumptions": (
                *spoiled.assumptions,
                Assumption(name=HOSTILE, value=1.0, unit=HOSTILE, evidence=HOSTILE, source=HOSTILE),
            ),
            "per_op": (
                *spoiled.per_op,
                OpCost(
                    name=HOSTILE,
                    kind=HOSTILE,
                    phase=HOSTILE,
                    shapes=HOSTILE,
                    count=7,
                    n_flops=1.0,
                    cycles=5.0,
                ),
            ),
        }
    )


def test_the_page_needs_nothing_else_and_escapes_everything() -> None:
    picture = Picture(name="a", title=HOSTILE, note=HOSTILE, png=b"\x89PNG picture")
    reader = read(report_page(report(), [picture], [HOSTILE]))
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "link", "iframe", "object", "base", "form", "a"}
    images = [given for tag, given in reader.tags if tag == "img"]
    assert len(images) == 1 and images[0]["alt"] == HOSTILE
    head, _, data = str(images[0]["src"]).partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == picture.png
    for _, given in reader.tags:
        assert set(given) <= {"lang", "charset", "http-equiv", "content", "class", "style", "alt", "src"}
    assert reader.text.count(HOSTILE) >= 14, "shown as text"
    policy = next(given["content"] for tag, given in reader.tags if "http-equiv" in given)
    assert str(policy).startswith("default-src 'none'")


def test_the_page_has_the_reports_numbers() -> None:
    found = report()
    text = read(report_page(found)).text
    for part in PARTS:
        assert f"{found.breakdown_cycles[part]:,.0f}" in text
    for op in found.per_op:
        assert op.name in text and f"{op.cycles:,.0f}" in text
    for one in found.assumptions:
        assert one.name in text and one.source in text and one.evidence in text
    assert found.modelled_speedup is not None
    assert f"{format_figure(found.tokens_per_s)} tokens/s" in text
    assert f"{format_figure(found.modelled_speedup)} x" in text
    assert str(found) == "\n".join(found.lines())
    assert "measured" in text and text.count("modelled") > 8


def test_shares_of_the_bar_are_those_of_the_cycles() -> None:
    found = report()
    widths = [float(width) for width in re.findall(r"<div style=\"width:([\d.]+)%", report_page(found))]
    wanted = [100 * found.breakdown_cycles[part] / found.cycles for part in PARTS]
    assert widths == pytest.approx(wanted, abs=6e-4)  # printed with three decimals


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cycles", "many"),
        ("cycles", True),
        ("cycles", 1e999),
        ("systems", 0),
        ("systems", 1.5),
        ("clock_hz", 0.0),
        ("fits", 1),
        ("arch", 5),
        ("breakdown_cycles", [1]),
        ("breakdown_cycles", {"compute": None}),
        ("per_op", [{"name": 1}]),
        ("assumptions", [5]),
        ("unmapped", 7),
        ("extra", 1),
    ],
)
def test_a_saved_report_that_is_none_is_refused(key: str, value: object) -> None:
    tree = json.loads(report().to_json()) | {key: value}
    with pytest.raises(DataError, match="not a wafer report"):
        Report.from_json(json.dumps(tree))


def test_a_saved_report_comes_back() -> None:
    assert Report.from_json(report().to_json()) == report()
    tree = json.loads(report().to_json())
    for op in tree["per_op"]:
        del op["n_bytes"], op["weight_bytes"]
    assert Report.from_json(json.dumps(tree)).per_op[0].n_bytes == 0, "one saved before bytes were kept"
