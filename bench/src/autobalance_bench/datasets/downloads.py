"""Published files, fetched on request and checked against their published checksums."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from filelock import FileLock

from autobalance._validation import InputError
from autobalance.records import format_bytes, free_bytes

BLOCK = 1 << 20
"""Bytes read at a time."""

TOLD_EVERY = 1.0
"""Seconds between two calls of `progress`."""

Told = Callable[[int, int | None], None]
"""Takes the bytes received, those of earlier calls too, and all there are; None where not told."""

BROKEN_ARCHIVE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
"""What reading a compressed tar archive raises where it is cut or altered."""


class Published(NamedTuple):
    """A file at its public address, with its published MD5 or SHA-256 in hexadecimal digits."""

    url: str
    checksum: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def algorithm(self) -> str:
        return "MD5" if len(self.checksum) == 32 else "SHA-256"

    def is_at(self, path: Path) -> bool:
        """Whether the file there has this checksum."""
        new = hashlib.md5 if self.algorithm == "MD5" else hashlib.sha256
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: new(usedforsecurity=False))
        return digest.hexdigest() == self.checksum


def fetch(
    file: Published,
    folder: str | Path,
    *,
    timeout: float = 30.0,
    progress: Told | None = None,
) -> Path:
    """Download a file into a folder, or find it there, and check it.

    The download grows under the name ``NAME.part``; one that broke off is continued by the next
    call where the server can. It takes its name only when its checksum is right.

    Parameters
    ----------
    file : Published
        What to get.
    folder : path
        Where to; made if need be.
    timeout : float
        Seconds without an answer after which the server counts as gone.
    progress : callable, optional
        ``progress(received, total)`` in bytes, about once per second and at the end; `total` is
        None where the server does not tell it. By default a line on standard error, where that is
        a terminal.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    InputError
        If there is no network, the server refuses or breaks off, the disk has no room for the file
        or does not take it, or the checksum is wrong. A file that was there before is not replaced.
    """
    path = Path(folder).expanduser() / file.name
    if path.exists():
        if not file.is_at(path):
            raise InputError(
                f"{path} is there, but is not the published file (its {file.algorithm} is not "
                f"{file.checksum}). Remove it to have it downloaded again."
            )
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab"):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}. Give another folder.") from None
    with FileLock(path.with_name(f"{path.name}.lock")):
        # Another process, such as torchrun's next one, may have finished it meanwhile.
        if not path.exists():
            with _line(file.name) if progress is None else nullcontext(progress) as told:
                _receive(file, part, timeout, told)
            _checked(file, part, path)
    return path


@contextmanager
def _line(name: str) -> Iterator[Told]:
    """Shows progress in a line of standard error that is written again; quiet without a terminal."""
    shown = False

    def show(received: int, total: int | None) -> None:
        nonlocal shown
        if sys.stderr is not None and sys.stderr.isatty():
            of = "" if total is None else f" of {format_bytes(total)}"
            print(
                f"\r\033[K{name}: {format_bytes(received)}{of}", end="", file=sys.stderr, flush=True
            )
            shown = True

    try:
        yield show
    finally:
        if shown:
            print(file=sys.stderr)


def _checked(file: Published, part: Path, path: Path) -> None:
    """Give the part its name if it is the published file, or remove it."""
    if not file.is_at(part):
        part.unlink()
        raise InputError(
            f"What came from {file.url} is not the published file (its {file.algorithm} is not "
            f"{file.checksum}) and was removed. Try again, or get the file elsewhere and put it at "
            f"{path}."
        )
    part.replace(path)


def fetch_folder(archive: Published, folder: Path, name: str) -> None:
    """Download a .tar.gz archive into a folder and unpack the folder `name` that is in it.

    It is unpacked under another name first, so that one half-unpacked is not taken for all of it.

    Raises
    ------
    InputError
        As for `fetch` and `unpack`, or if there is no such folder in the archive.
    """
    path = fetch(archive, folder)
    with FileLock(folder / f"{name}.lock"):
        if (folder / name).is_dir():  # by another process meanwhile
            return
        unpacked = folder / f"{name}.part"
        unpack(path, unpacked)
        if not (unpacked / name).is_dir():
            raise InputError(f"{path} does not hold the folder {name}. Get it from {archive.url}.")
        (unpacked / name).replace(folder / name)
        shutil.rmtree(unpacked)


def packed_files(archive: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The files of a .tar.gz archive in their order; each is read before the next is asked for.

    Raises
    ------
    OSError or one of `BROKEN_ARCHIVE`
        If it cannot be read, is none, or does not keep its own checksum.
    """
    with tarfile.open(archive, "r:gz") as stream:
        for member in stream:
            content = stream.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member, content
        # tarfile takes a broken header for the end; what follows tells, and so does gzip's sum.
        while stream.fileobj is not None and stream.fileobj.read(BLOCK):
            pass


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the files of a .tar.gz archive and their folders; nothing else in it.

    Files that are there in full already are kept, so that unpacking can be continued.

    Raises
    ------
    InputError
        If it is no such archive or is cut, a name in it leads out of the folder, or the disk has no
        room for as much as the archive or does not take a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        size = archive.stat().st_size
        if size > free_bytes(folder):  # before files that an earlier call unpacked are counted
            there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            _need(folder, size - there, f"To unpack {archive}")
        for member, content in packed_files(archive):
            inside = PurePosixPath(member.name)
            if inside.is_absolute() or ".." in inside.parts:
                raise InputError(f"{archive} has the unsafe name {member.name!r}. Remove it.")
            path = folder / inside
            if path.is_file() and path.stat().st_size == member.size:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            with part.open("wb") as out:
                shutil.copyfileobj(content, out, BLOCK)
            part.replace(path)
    except BROKEN_ARCHIVE as error:
        raise InputError(
            f"{archive} cannot be unpacked: {error}. Remove it and get it again."
        ) from None
    except OSError as error:
        raise InputError(
            f"{archive} cannot be unpacked into {folder}: {error}. Call again to continue."
        ) from None


def _need(folder: Path, size: int, what: str) -> None:
    free = free_bytes(folder)
    if size > free:
        raise InputError(
            f"{what}, {format_bytes(size)} are needed in {folder}, but {format_bytes(int(free))} are free. Make "
            "room, or give another folder."
        )


def _receive(file: Published, part: Path, timeout: float, told: Told) -> None:
    """Append to the part what is not in it yet."""
    have = part.stat().st_size
    request = urllib.request.Request(file.url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            continued = getattr(answer, "status", None) == http.client.PARTIAL_CONTENT
            start = have if continued else 0
            length = answer.headers.get("Content-Length")
            total = None if length is None else start + int(length)
            if total is not None:
                _check_room(file, part, total)
            with part.open("ab" if continued else "wb") as out:
                received = _copy(answer, out, part, start, total, told)
        if total is not None and received < total:
            raise http.client.IncompleteRead(b"", total - received)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # all of it is there; the checksum tells
        _unreachable(file, part, f"the server answered {error.code} {error.reason}")
    except http.client.IncompleteRead as error:
        raise InputError(
            f"{file.url} broke off with {error.expected} bytes to come. Call again to continue; "
            f"what came is kept in {part}."
        ) from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        _unreachable(file, part, str(getattr(error, "reason", None) or error))


def _check_room(file: Published, part: Path, total: int) -> None:
    have = part.stat().st_size
    try:
        _need(part.parent, total - have, f"To download {file.url}")
    except InputError:
        if have == 0:
            part.unlink()
        raise


def _copy(
    answer: http.client.HTTPResponse,
    out: object,
    part: Path,
    start: int,
    total: int | None,
    told: Told,
) -> int:
    """Write what is to come behind the `start` bytes that are there; how many there are then."""
    received, last = start, time.monotonic()
    while block := answer.read(BLOCK):
        try:
            out.write(block)  # type: ignore[attr-defined]
        except OSError as error:
            raise InputError(
                f"{part} cannot be written: {error}. Make room, and call again to continue."
            ) from None
        received += len(block)
        if time.monotonic() - last >= TOLD_EVERY:
            told(received, total)
            last = time.monotonic()
    told(received, total)
    return received


def _unreachable(file: Published, part: Path, reason: str) -> None:
    if part.stat().st_size == 0:
        part.unlink()
    raise InputError(
        f"{file.url} cannot be downloaded: {reason}. Where there is no network, download it "
        f"elsewhere and put it at {part.with_suffix('')}."
    ) from None
