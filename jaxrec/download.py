"""Files from the net: complete and checked, or not there at all.

A file is written beside its place under another name, checked, and renamed: so nobody
ever sees half of it, and two processes that fetch the same file do no harm.
"""

import contextlib
import hashlib
import http.client
import os
import pathlib
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from jaxrec.errors import InputError

_BLOCK_BYTES = 1 << 20


class Remote(NamedTuple):
    """A public file.

    url: where it is; what ends in .zip holds the file wanted, alone.
    checksum: of the file at the url, as `matches` reads it.
    """

    url: str
    checksum: str


def matches(path: str | os.PathLike, checksum: str) -> bool:
    """Whether a file has a checksum.

    Args:
      path: the file.
      checksum: "sha256:" or "git:" and hexadecimal digits; git's id of a file is
        sha1("blob <number of bytes>\\0" + content).
    """
    kind, _, digits = checksum.partition(":")
    digest = {"sha256": hashlib.sha256, "git": hashlib.sha1}[kind]()
    with open(path, "rb") as file:
        if kind == "git":
            digest.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest() == digits


def fetch(
    remotes: tuple[Remote, ...],
    path: pathlib.Path,
    *,
    checksum: str = "",
    timeout_s: float = 30.0,
    max_bytes: int = 1 << 30,
) -> None:
    """Puts the file of the first remote that works at `path`.

    Args:
      remotes: places of the same file, best first.
      path: where it is to be. Its folder is made.
      checksum: of the file at `path`; "" where only that of the download is known.
      timeout_s: seconds without a byte after which a remote is given up.
      max_bytes: of the download, and of what a zip holds.

    Raises:
      InputError: no remote works, with the reason for each; nothing is left behind.
    """
    reasons = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"no folder for downloads can be made: {error}. Set XDG_CACHE_HOME to a "
            "folder that can be written."
        ) from None
    for remote in remotes:
        try:
            with _temporary(path) as file:
                _download(remote.url, file, timeout_s=timeout_s, max_bytes=max_bytes)
                _verify(file.name, remote.checksum)
                if remote.url.endswith(".zip"):
                    with _temporary(path) as member:
                        _unzip(file.name, path.name, member, max_bytes=max_bytes)
                        _publish(member, path, checksum)
                else:
                    _publish(file, path, checksum)
            return
        except (OSError, _Failure, http.client.HTTPException) as error:
            reasons.append(f"{remote.url}: {_reason(error)}")
    raise InputError("; ".join(reasons))


class _Failure(Exception):
    """A remote gave something else than the file."""


@contextlib.contextmanager
def _temporary(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """An open file beside `path`, which is gone afterwards unless renamed."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}-", suffix=".part", delete=False
    ) as file:
        try:
            yield file
        finally:
            file.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)


def _download(url: str, file: IO[bytes], *, timeout_s: float, max_bytes: int) -> None:
    with urllib.request.urlopen(url, timeout=timeout_s) as response:
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isdecimal() else None
        with _progress(url, expected) as advance:
            received = _copy(response, file, max_bytes, advance)
    if expected is not None and received != expected:
        raise _Failure(f"got {received} of {expected} bytes")


def _unzip(archive_path: str, name: str, file: IO[bytes], *, max_bytes: int) -> None:
    """Writes the only member of a zip, which must be called `name`, to an open file."""
    try:
        with zipfile.ZipFile(archive_path) as archive:
            members = [
                member
                for member in archive.infolist()
                # A Mac adds a folder of its own.
                if not member.is_dir() and not member.filename.startswith("__MACOSX/")
            ]
            paths = [pathlib.PurePosixPath(member.filename) for member in members]
            is_inside = all(not p.is_absolute() and ".." not in p.parts for p in paths)
            if not is_inside or [p.name for p in paths] != [name]:
                held = ", ".join(map(str, paths[:3])) or "nothing"
                raise _Failure(f"the zip must hold {name} alone: it holds {held}")
            with archive.open(members[0]) as reader:
                _copy(reader, file, max_bytes)
    except zipfile.BadZipFile as error:
        raise _Failure(f"not a good zip: {error}") from None


def _ignore(num_bytes: int) -> None:
    del num_bytes


def _copy(
    reader: IO[bytes],
    writer: IO[bytes],
    max_bytes: int,
    advance: Callable[[int], object] = _ignore,
) -> int:
    """Copies all bytes and returns their number, which may not pass max_bytes."""
    copied = 0
    while block := reader.read(_BLOCK_BYTES):
        copied += len(block)
        if copied > max_bytes:
            raise _Failure(f"more than {max_bytes} bytes")
        writer.write(block)
        advance(len(block))
    writer.flush()
    return copied


def _verify(path: str, checksum: str) -> None:
    if checksum and not matches(path, checksum):
        raise _Failure(f"not the file expected: its checksum is not {checksum}")


def _publish(file: IO[bytes], path: pathlib.Path, checksum: str) -> None:
    _verify(file.name, checksum)
    os.fsync(file.fileno())
    file.close()
    os.replace(file.name, path)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _progress(url: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """A function that is told how many bytes came; shows them on a terminal."""
    if not sys.stderr.isatty():
        print(f"downloading {url}", file=sys.stderr)
        yield _ignore
        return
    from rich import console, progress

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
    ) as bar:
        task = bar.add_task(url.rpartition("/")[2], total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
