"""Text files of every kind become documents; what is wrong with one is said with file and place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from wafergpt.data import corpus
from wafergpt.data.corpus import read_documents
from wafergpt.errors import DataError

TEXTS = ["One two.\nThree.", "Grüße, 世界", "x" * 50]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"text{kind}"
    lines = "".join(json.dumps({"text": t, "id": i}, ensure_ascii=False) + "\n" for i, t in enumerate(TEXTS))
    if kind == ".jsonl":
        path.write_text(lines, encoding="utf-8")
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == ".jsonl.zst":
        path.write_bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(lines.encode()))
    elif kind == ".csv":
        quoted = "".join(f'{i},"{t}"\n' for i, t in enumerate(TEXTS))
        path.write_text("id,text\n" + quoted, encoding="utf-8")
    else:
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"text": TEXTS}), path)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".parquet"])
def test_every_kind_gives_the_same_documents(tmp_path: Path, kind: str) -> None:
    assert [d.text for d in read_documents([write(tmp_path, kind)])] == TEXTS


def test_a_text_file_is_one_document_however_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Grüße an die Welt, 世界! " * 40
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(corpus, "READ_BYTES", 7)  # cuts characters in the middle
    assert [d.text for d in read_documents([path])] == [text]


def test_folders_and_globs_name_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.bin"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert [d.text for d in read_documents([tmp_path])] == ["a.txt", "b.txt"]
    assert [d.text for d in read_documents([str(tmp_path / "*.txt")])] == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine \xff here", r"a\.txt' is not UTF-8: byte 5 is 0xff"),
        ("a.txt", b"cut off \xc3", r"a\.txt' is not UTF-8: byte 8 is 0xc3"),
        ("a.txt", b"", r"a\.txt' is empty"),
        ("a.bin", b"x", r"a\.bin' is of no kind"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"body": "b"}\n',
            r"a\.jsonl' line 2 has no text under 'text'; it has body",
        ),
        ("a.jsonl", b'{"text": "a"}\n{nope\n', r"a\.jsonl' line 2 is not JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl' line 1 is not UTF-8"),
        ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl' line 1 has no text"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9)[:-9], r"a\.jsonl\.gz' is damaged"),
        ("a.csv", b"id,body\n1,x\n", r"a\.csv' has no column 'text'; it has id, body"),
        ("a.parquet", b"not parquet at all", r"a\.parquet' cannot be read as parquet"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents([tmp_path / name]))


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt' does not exist"):
        list(read_documents([tmp_path / "nowhere.txt"]))
