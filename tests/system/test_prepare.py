"""`wafergpt prepare` and `wafergpt assets` as typed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wafergpt.cli.main import main
from wafergpt.data.shards import ShardSet

TEXT = "".join(
    f"Verse {n}: and the king of the land, the {n}th of his line, said it was good.\n" for n in range(900)
)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


def test_from_a_folder_to_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "verses.txt").write_text(TEXT)
    (tmp_path / "text" / "picture.png").write_bytes(b"png")
    words = ["prepare", str(tmp_path / "text"), "--out", str(tmp_path / "data")]
    words += ["--tokenizer", "train:300", "--held-out", "blocks:10:500", "--licence", "CC0"]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "ignored   1 file(s)" in out
    assert "verses.txt; licence: CC0" in out
    train, held_out = ShardSet.open(tmp_path / "data"), ShardSet.open(tmp_path / "data" / "held_out")
    assert train.n_text_bytes + held_out.n_text_bytes == len(TEXT)
    assert f"{train.n_tokens:,} tokens" in out
    assert f"{held_out.n_tokens:,} tokens" in out
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "exists already" in err
    assert run(capsys, *words, "--overwrite")[0] == 0


def test_bad_text_is_one_line_and_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    code, _, err = run(capsys, "prepare", str(tmp_path / "bad.txt"), "--out", str(tmp_path / "data"))
    assert code in (3, 4), "4: without a network the tokenizer is missed first"
    words = [
        "prepare",
        str(tmp_path / "bad.txt"),
        "--out",
        str(tmp_path / "data"),
        "--tokenizer",
        "train:300",
    ]
    code, _, err = run(capsys, *words)
    assert code == 3
    assert f"error: '{tmp_path / 'bad.txt'}' is not UTF-8: byte 3 is 0xe9 (unexpected end of data)\n" in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.txt"]


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 60)  # 4 MB: long enough to be interrupted
    words = [sys.executable, "-c", "from wafergpt.cli.main import main; main()", "prepare"]
    words += [str(tmp_path / "long.txt"), "--out", str(tmp_path / "data"), "--tokenizer", "train:1000"]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".data.partial-*")) and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 130, err
    assert [path.name for path in tmp_path.iterdir()] == ["long.txt"]


def test_assets_list_and_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WAFERGPT_CACHE", str(tmp_path))
    monkeypatch.setenv("WAFERGPT_OFFLINE", "1")
    code, out, _ = run(capsys, "assets", "list")
    assert code == 0
    assert "bible-bbe" in out
    assert "MIT" in out
    code, _, err = run(capsys, "assets", "fetch", "bible-bbe")
    assert code == 4
    assert "downloads are off" in err
    assert run(capsys, "assets", "clear") == (0, "freed 0 B\n", "")
