"""Taking the wanted members, and nothing else, out of a package archive.

Names are looked up from our table; the archive never decides where a file goes. No size is trusted:
reading stops at what the table says, and every file is hashed on its way.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from wafergpt.assets.asset import Asset, Member
from wafergpt.errors import AssetError
from wafergpt.units import MIB

_BLOCK_BYTES = MIB
_BELOW = "/**/"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(asset: Asset, archive: Path, into: Path) -> None:
    """Write the members of `asset`, by their base names, into the folder `into`.

    Raises AssetError if the archive is damaged or a member is missing, too long or not what it must be.
    """
    taken: dict[str, int] = dict.fromkeys((member.path for member in asset.members), 0)
    try:
        for path, stream in _entries(archive):
            member = next((m for m in asset.members if _matches(m, path)), None)
            if member is not None:
                allowed = member.size_bytes - taken[member.path]
                taken[member.path] += _copy(stream, into / _local_name(member, path), allowed, asset, path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the archive
        raise AssetError(f"archive '{archive.name}' of asset '{asset.name}' is damaged: {error}") from None
    for member in asset.members:
        check_member(asset, member, into)


def check_member(asset: Asset, member: Member, folder: Path) -> None:
    """Raise AssetError unless the file or files of `member` in `folder` have the table's hash."""
    files = member_files(member, folder)
    if not files:
        raise AssetError(f"asset '{asset.name}' lacks '{member.path}'")
    if "*" in member.path:
        folder_path, below, _ = member.path.partition(_BELOW)
        parent = folder_path if below else str(PurePosixPath(member.path).parent)
        lines = "".join(f"{sha256_file(file)}  {parent}/{file.name}\n" for file in files)
        found = hashlib.sha256(lines.encode()).hexdigest()
    else:
        found = sha256_file(files[0])
    if found != member.sha256:
        raise AssetError(f"'{member.path}' of asset '{asset.name}' has SHA-256 {found}, not {member.sha256}")


def member_files(member: Member, folder: Path) -> list[Path]:
    """The extracted files of a member, in name order."""
    name = PurePosixPath(member.path).name
    return sorted(folder.glob(name)) if "*" in name else [f for f in [folder / name] if f.exists()]


def _local_name(member: Member, path: str) -> str:
    """The file name for `path`: never with a `/`, so that it stays in its folder."""
    folder, below, _ = member.path.partition(_BELOW)
    return path[len(folder) + 1 :].replace("/", "+") if below else PurePosixPath(path).name


def _matches(member: Member, path: str) -> bool:
    folder, below, name = member.path.partition(_BELOW)
    if below:
        return path.startswith(folder + "/") and fnmatch.fnmatchcase(PurePosixPath(path).name, name)
    same_folder = PurePosixPath(path).parent == PurePosixPath(member.path).parent
    return same_folder and fnmatch.fnmatchcase(PurePosixPath(path).name, PurePosixPath(member.path).name)


def _copy(stream: IO[bytes], target: Path, allowed_bytes: int, asset: Asset, path: str) -> int:
    written = 0
    with open(target, "xb") as out:
        while block := stream.read(_BLOCK_BYTES):
            written += len(block)
            if written > allowed_bytes:
                raise AssetError(f"'{path}' of asset '{asset.name}' is longer than the table says")
            out.write(block)
    return written


def _entries(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(path, stream) of every regular file in a wheel or zip, a tar, or a Debian package."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    with zipped.open(info) as stream:
                        yield info.filename, stream
    elif archive.suffix == ".deb":
        with _debian_tar(archive) as tar:
            yield from _tar_entries(tar)
    else:
        with tarfile.open(archive, "r|*") as tar:
            yield from _tar_entries(tar)


def _tar_entries(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for info in tar:
        stream = tar.extractfile(info) if info.isreg() else None
        if stream is not None:
            yield info.name.removeprefix("./"), stream


@contextlib.contextmanager
def _debian_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    """The file system of a .deb as a tar stream, by dpkg-deb; nothing is installed or unpacked."""
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise AssetError(f"'{archive.name}' is a Debian package, and 'dpkg-deb' is not installed here")
    child = subprocess.Popen(
        [tool, "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    try:
        with tarfile.open(fileobj=child.stdout, mode="r|") as tar:
            yield tar
        while child.stdout.read(_BLOCK_BYTES):  # let it finish, so that its exit code means something
            pass
        if child.wait() != 0:
            raise tarfile.TarError("dpkg-deb cannot read it")
    finally:
        child.stdout.close()
        if child.poll() is None:
            child.kill()
        child.wait()
