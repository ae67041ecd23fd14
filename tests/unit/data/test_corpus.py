"""Text of every kind becomes documents; what is wrong is said with file and place, and nothing is dropped."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from wafergpt.data import streams
from wafergpt.data.corpus import read_documents, read_pieces, resolve
from wafergpt.data.formats import Fields
from wafergpt.errors import AssetError, DataError

TEXTS = ['One two.\nThree "four", five.', "Grüße, 世界 🦀\r\n", "x" * 50]
JSONL = "".join(
    json.dumps({"id": n, "text": t}, ensure_ascii=n > 0) + "\n" for n, t in enumerate(TEXTS)
).encode()
CSV = (
    "id,text\n" + "".join(f'{n},"{t.replace(chr(34), chr(34) * 2)}"\n' for n, t in enumerate(TEXTS))
).encode()


def texts_of(*sources: Path | str, text_field: str = "text") -> list[str]:
    return [document.text for document in read_documents(sources, text_field)]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl", b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n\n")),  # byte-order mark, CRLF, blank lines
        ("a.jsonl", JSONL.rstrip(b"\n")),
        ("a.jsonl.gz", gzip.compress(JSONL, mtime=0)),
        (
            "a.jsonl.gz",
            gzip.compress(JSONL[:40], mtime=0) + gzip.compress(JSONL[40:], mtime=0),
        ),  # two members
        ("a.jsonl.zst", zstandard.compress(JSONL)),
        ("a.JSONL.ZST", zstandard.compress(JSONL[:40]) + zstandard.compress(JSONL[40:])),  # two frames
        ("a.csv", CSV),
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
    ],
)
def test_every_kind_gives_the_same_documents(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert texts_of(tmp_path / name) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2, 3], "text": TEXTS}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet") == TEXTS


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_a_text_file_is_one_document_however_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: object, block_bytes: int
) -> None:
    """Blocks of one byte cut every character, and every safe cut between pieces."""
    text = "Grüße, 世界。それ 🦀\r\n it's \n\n" * 5
    suffix = {bytes: "", gzip.compress: ".gz", zstandard.compress: ".zst"}[compress]  # type: ignore[index]
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(text.encode()))  # type: ignore[operator]
    monkeypatch.setattr(streams, "_BLOCK_BYTES", block_bytes if suffix != ".zst" else 4 * block_bytes)
    assert texts_of(path) == [text]


@pytest.mark.parametrize("block_bytes", [1, 5, 1 << 20])
def test_separator_makes_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    (tmp_path / "a.txt").write_text("one two<|end|>three <|en four<|end|><|end|>five <|end|")
    monkeypatch.setattr(streams, "_BLOCK_BYTES", block_bytes)
    pieces = list(read_pieces(resolve([tmp_path / "a.txt"]), Fields(separator="<|end|>"), lambda _: None))
    joined = "".join(piece.text + ("\0" if piece.ends_document else "") for piece in pieces)
    assert joined == "one two\0three <|en four\0\0five <|end|\0"


def test_folders_and_globs_name_files_in_order_and_say_what_they_passed_over(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "c.bin", "sub/d.text", ".hidden.txt"):
        (tmp_path / name).write_text(name)
    assert texts_of(tmp_path) == ["a.md", "b.txt", "sub/d.text"]
    assert resolve([tmp_path]).ignored == (tmp_path / "c.bin",)
    assert texts_of(f"{tmp_path}/**/*.t*xt") == ["b.txt", "sub/d.text"]
    assert texts_of(tmp_path / "b.txt", tmp_path / "a.md") == ["b.txt", "a.md"]


def test_all_bytes_read_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(JSONL))
    (tmp_path / "b.txt").write_text("text")
    read: list[int] = []
    inputs = resolve([tmp_path])
    list(read_pieces(inputs, Fields(), read.append))
    assert sum(read) == inputs.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


BAD = [
    ("a.txt", b"fine \xff here", r"a\.txt' is not UTF-8: byte 5 is 0xff"),
    ("a.txt", b"cut off \xe4\xb8", r"a\.txt' is not UTF-8: byte 8 is 0xe4 \(unexpected end of data\)"),
    ("a.txt", b"overlong \xc0\xaf", "byte 9 is 0xc0"),
    ("a.txt", b"surrogate \xed\xa0\x80", "byte 10 is 0xed"),
    ("a.txt", b"too high \xf4\x90\x80\x80", "byte 9 is 0xf4"),
    ("a.txt", b"ok " * 700_000 + b"\x80", "byte 2100000 is 0x80"),
    ("a.txt", "text".encode("utf-16"), "byte 0 is 0xff .*it looks like UTF-16"),
    ("a.txt", "text".encode("utf-16-le"), r"is not a text file: NUL at byte 1"),
    ("a.txt", b"", r"a\.txt' is empty"),
    ("a.txt", b"\xef\xbb\xbf", r"a\.txt' is empty"),
    ("a.txt.gz", gzip.compress(b"text" * 100, mtime=0)[:-9], r"a\.txt\.gz' is damaged or cut short"),
    ("a.txt.gz", b"not gzip", "damaged or cut short: Not a gzipped file"),
    ("a.txt.gz", gzip.compress(b"bad \xfe", mtime=0), "byte 4 is 0xfe"),
    ("a.txt.zst", zstandard.compress(b"text" * 100)[:-3], "the last frame is not complete"),
    ("a.txt.zst", b"not zstandard", "damaged or cut short"),
    ("a.bin", b"x", r"a\.bin' is of no kind that can be read: \.txt"),
    ("a.parquet.gz", b"x", "of no kind"),
    (
        "a.jsonl",
        b'{"text": "a"}\n{"txet": "b"}\n',
        "line 2 has no text under 'text'; it has txet; did you mean 'txet'",
    ),
    ("a.jsonl", b'{"text": "a"}\n{nope\n', "line 2 is not JSON"),
    ("a.jsonl", b'{"text": "a"}\n\n["text"]\n', "line 3 holds list, not an object"),
    ("a.jsonl", b'{"text": "\xff"}\n', "is not UTF-8: byte 10 is 0xff"),
    ("a.jsonl", b'{"text": 5}\n', "line 1 has no text under 'text'; it holds int"),
    ("a.jsonl", b'{"text": null}\n', "it holds NoneType"),
    ("a.jsonl", b'{"text": "\\ud83d"}\n', "line 1 holds half a character"),
    ("a.jsonl", b"[" * 200_000, "line 1 is not JSON"),
    ("a.csv", b"id,body\n1,x\n", "has no column 'text'; it has id, body"),
    ("a.csv", b"id,text\n1\n", "line 2: the row has not as many fields"),
    ("a.csv", b"id,text\n1,a,b\n", "line 2: the row has not as many fields"),
    ("a.csv", b'id,text\n1,"a"b\n', "line 2 is not CSV"),
    ("a.csv", b'id,text\n1,"never closed\n', "is not CSV"),
    ("a.parquet", b"not parquet at all", "cannot be read as parquet"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named_with_its_place(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        texts_of(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_bad_parquet_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), path)
    with pytest.raises(DataError, match="has no column 'text'; it has body"):
        texts_of(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(DataError, match="row 2 has no text under 'text'; it holds NoneType"):
        texts_of(path)


def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("word " * 300_000)
    with pytest.raises(DataError, match="changed while it was read"):
        for _ in read_pieces(resolve([path]), Fields(), lambda _: None):
            with open(path, "a") as file:
                file.write("more")


def test_missing_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "nowhere.txt", r"nowhere\.txt' does not exist"),
        (tmp_path / "empty", "empty' holds no text file"),
        (tmp_path / "*.txt", "no readable text file matches"),
    ):
        with pytest.raises(DataError, match=message):
            texts_of(source)
    with pytest.raises(AssetError, match="no asset 'bible-bbq'; did you mean 'bible-bbe'"):
        texts_of("asset:bible-bbq")
    with pytest.raises(AssetError, match="'gpt2-tokenizer' is not a text corpus"):
        texts_of("asset:gpt2-tokenizer")


def test_the_zero_download_corpus_reads() -> None:
    assert sum(map(len, texts_of("asset:pydoc"))) > 400_000
