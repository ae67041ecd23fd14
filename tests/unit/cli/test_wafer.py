"""`wafergpt wafer report` and `simulate`: files, messages, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wafergpt.cli import main as front_door
from wafergpt.wafer.machine import native


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `wafergpt wafer *arguments`."""
    with pytest.raises(SystemExit) as caught:
        front_door.main(["wafer", *arguments])
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


def test_a_published_size_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, folder = tmp_path / "r.html", tmp_path / "png"
    code, said, _ = run(
        capsys, "report", "111M", "--out", str(out), "--systems", "2", "--pictures", str(folder)
    )
    assert code == 0
    assert "modelled run on 2 x WSE-2 (streaming" in said and "assumed:" not in said
    page = out.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4 and "111M, train" in page
    names = {path.name for path in folder.iterdir()}
    assert names == {"roofline.png", "placement.png", "memory.png", "scaling.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())


def test_inference_is_resident(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, said, _ = run(capsys, "report", "111M", "--out", str(tmp_path / "r.html"), "--mode", "decode")
    assert code == 0 and "(resident" in said and "batch 1" in said


@pytest.mark.skipif(bool(native.available()), reason=f"no native core: {native.available()}")
def test_a_simulation_leaves_its_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "sim"
    code, said, _ = run(capsys, "simulate", "--out", str(out), "--tokens", "1", "--prompt", "a")
    assert code == 0 and "ui.perfetto.dev" in said and "cycle fidelity" in said
    names = {path.name for path in out.iterdir()}
    assert names == {"report.html", "report.json", "trace.json"} | {
        f"{name}.png" for name in ("links", "memory", "tiles", "cores")
    }
    assert json.loads((out / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    code, said, _ = run(capsys, "report", str(out / "report.json"), "--out", str(tmp_path / "again.html"))
    assert code == 0 and "tiny GPT" in (tmp_path / "again.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("report", "112M"), 2, "unknown model '112M'; did you mean '111M'?\n"),
        (("report", "gpt2-xxl"), 2, "unknown model 'gpt2-xxl'; did you mean 'gpt2-xl'?\n"),
        (("report", "GPT3-176b"), 2, "unknown model 'GPT3-176b'; did you mean 'gpt3-175B'?\n"),
        (("report", "happiness"), 2, "unknown model 'happiness'; known: gpt2, "),
        (
            ("report", "111M", "--mode", "dance"),
            2,
            "mode 'dance' is unknown; allowed: train, prefill, decode",
        ),
        (("report", "111M", "--execution", "x"), 2, "execution 'x' is unknown"),
        (("report", "111M", "--systems", "500"), 2, "allows 1 to 192"),
        (("report", "111M", "--seq-len", "0"), 2, "seq_len = 0 is out of range"),
        (("report", "111M", "--systems", "2", "--batch", "1"), 2, "less than one sequence for each of 2"),
        (("report", "no.json"), 3, "cannot read no.json: No such file"),
        (("report", "/dev/null.json"), 3, "cannot read"),
        (("simulate", "--tokens", "0"), 2, "together"),
        (("simulate", "--prompt", ""), 2, "the prompt is empty"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], code: int, line: str
) -> None:
    found, _, said = run(capsys, *arguments, "--out", str(tmp_path / "out"))
    assert found == code and line in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, said = run(capsys, "report", "111M", "--out", str(tmp_path / "file" / "r.html"))
    assert code == 6 and "cannot write" in said


@pytest.mark.parametrize("verb", [("report", "111M"), ("simulate",)])
def test_without_matplotlib_the_extra_is_named(verb: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from wafergpt.cli.main import main; main(['wafer', *sys.argv[1:]])"
    )
    words = [sys.executable, "-c", code, *verb, "--out", str(tmp_path / "x")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 9
    assert done.stderr == "error: the wafer's figures need matplotlib: pip install 'wafergpt[plots]'\n"


def test_predictions_do_not_overwrite_their_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,metric,model\na,train_throughput,GPT-3 13B\nb,happiness,\n", encoding="utf-8")
    before = rows.read_bytes()
    (tmp_path / "link.csv").symlink_to(rows)
    for out in (rows, tmp_path / "link.csv"):
        code, _, said = run(capsys, "predict", str(rows), "--out", str(out))
        assert code == 2 and "would overwrite the rows" in said and rows.read_bytes() == before
    code, said, _ = run(capsys, "predict", str(rows), "--out", str(tmp_path / "out.csv"))
    lines = said.splitlines()
    assert code == 0 and "samples/s" in lines[0] and "no figure: no model for the metric" in lines[1]


def test_an_empty_file_is_a_data_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    code, _, said = run(capsys, "predict", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "out.csv"))
    assert code == 3 and "is empty" in said and not (tmp_path / "out.csv").exists()


@pytest.mark.skipif(bool(native.available()), reason=f"no native core: {native.available()}")
def test_a_prompt_may_be_any_bytes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    typed = b"a\xff".decode(errors="surrogateescape")  # as Python hands on what a shell was given
    code, said, _ = run(capsys, "simulate", "--out", str(tmp_path), "--tokens", "1", "--prompt", typed)
    assert code == 0 and "2 prompt and 1 new tokens" in said
