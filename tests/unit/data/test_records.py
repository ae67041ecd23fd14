"""Labelled data from every format, split by name, with errors that name the place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from wafergpt.assets import labelled
from wafergpt.data.records import read_records, splits_of
from wafergpt.errors import DataError

ROWS = [{"text": 'a, "b"\nc', "label": "x"}, {"text": "ü", "label": "y"}]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """`rows` in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        comma = "," if path.suffix == ".csv" else "\t"
        quoted = [[value.replace('"', '""') for value in row.values()] for row in rows]
        text = [comma.join(rows[0]), *(comma.join(f'"{value}"' for value in row) for row in quoted)]
        path.write_text("\n".join(text), encoding="utf-8")
    else:
        pa = pytest.importorskip("pyarrow")
        table = pa.Table.from_pylist(rows)
        if path.suffix == ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.jsonl.gz"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert read_records(write(tmp_path / name)) == ROWS


def test_an_arrow_file_is_told_from_a_stream(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert read_records(tmp_path / "a.arrow") == ROWS


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    """`save_to_disk` of a DatasetDict: class labels are numbers whose names stand in the schema."""
    pa = pytest.importorskip("pyarrow")
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    schema = pa.schema(
        [("text", pa.string()), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    for split in ("train", "test"):
        folder = tmp_path / split
        folder.mkdir()
        table = pa.Table.from_pylist([{"text": split, "label": 1}], schema=schema)
        path = str(folder / "data-00000-of-00001.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table)
        (folder / "state.json").write_text("{}")
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert read_records(tmp_path, "test") == [{"text": "test", "label": "pos"}]
    assert list(splits_of(tmp_path)) == ["train", "test"]


def test_splits_by_file_name(tmp_path: Path) -> None:
    names = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "dev.csv", "my_test.json"]
    for name in names:
        write(tmp_path / name)
    found = {split: [file.name for file in files] for split, files in splits_of(tmp_path).items()}
    assert found == {
        "train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
        "validation": ["dev.csv"],
        "test": ["my_test.json"],
    }
    assert len(read_records(tmp_path)) == 4


def test_squad(tmp_path: Path) -> None:
    asked = {"id": "1", "question": "Who?", "answers": [{"text": "Bob", "answer_start": 4}]}
    article = {"title": "T", "paragraphs": [{"context": "Met Bob.", "qas": [asked, {"question": "?"}]}]}
    (tmp_path / "a.json").write_text(json.dumps({"version": "1.1", "data": [article]}))
    first, second = read_records(tmp_path / "a.json")
    assert first["answers"] == {"text": ["Bob"], "answer_start": [4]} and first["context"] == "Met Bob."
    assert second["answers"]["text"] == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"a": 1}\n{"a"', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not an object with columns"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON: nested too deeply"),
        ("a.json", '{"rows": []}', "no list of examples"),
        ("a.csv", "a,b\n1\n", "line 2: the row has not as many fields"),
        ("a.csv", 'a,b\n1,"2', "is not CSV"),
        ("a.parquet", "nothing", "cannot be read"),
        ("a.arrow", "nothing", "cannot be read"),
        ("a.txt", "x", "of no kind that can be read as examples: .jsonl"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        read_records(tmp_path / name)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_records(tmp_path / "no.jsonl")
    with pytest.raises(DataError, match="holds no data"):
        read_records(tmp_path)
    write(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="no split 'tset'; it has train; did you mean 'test'"):
        read_records(tmp_path, "tset")


def test_an_asset_has_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "load", lambda name, split: [{"name": name, "split": split}])
    assert read_records("asset:kjv-bbe", "test") == [{"name": "kjv-bbe", "split": "test"}]
    assert list(splits_of("asset:kjv-bbe")) == ["train", "validation", "test"]
