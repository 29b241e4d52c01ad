"""Published files, fetched on request and checked against their published checksums by pooch."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from autobalance import InputError
from autobalance_bench.datasets._optional import import_optional

TIMEOUT = 30.0
"""Seconds without an answer after which a server counts as gone."""

BROKEN_ARCHIVE = (tarfile.TarError, EOFError, zlib.error, OSError)
"""What reading a compressed tar archive raises where it is cut, altered or no archive."""


class Published(NamedTuple):
    """A file at its public address, with its published checksum: "md5:" or "sha256:" and digits."""

    url: str
    checksum: str

    @property
    def name(self) -> str:
        """The file's name: the last part of its address."""
        return self.url.rsplit("/", 1)[1]


def fetch(file: Published, folder: str | Path) -> Path:
    """Download a file into a folder, or find it there, and check it.

    Parameters
    ----------
    file : Published
        What to get.
    folder : path
        Where to; made if need be.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    InputError
        If pooch is not installed, there is no network, the server refuses or breaks off, the disk
        does not take the file, or the checksum is wrong. A file that was there before is not
        replaced.
    """
    pooch = import_optional("pooch", f"The download of {file.name}")
    path = Path(folder).expanduser() / file.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # other processes, such as torchrun's, wait and then find it
            if path.exists():
                # pooch would replace a file of another checksum, which may be the user's own.
                algorithm, digits = file.checksum.split(":")
                if pooch.file_hash(str(path), alg=algorithm) != digits:
                    raise InputError(
                        f"{path} is there, but is not the published file (its checksum is not "
                        f"{file.checksum}). Remove it to have it downloaded again."
                    )
                return path
            pooch.retrieve(
                file.url,
                known_hash=file.checksum,
                fname=file.name,
                path=path.parent,
                downloader=pooch.HTTPDownloader(timeout=TIMEOUT, progressbar=sys.stderr.isatty()),
            )
    except InputError:
        raise
    except (OSError, ValueError) as error:  # requests' own are OSErrors, a wrong hash a ValueError
        reason = " ".join(str(error).split()).removesuffix(".")
        raise InputError(
            f"{file.url} cannot be downloaded: {reason}. Try again, or download it elsewhere and "
            f"put it at {path}."
        ) from None
    return path


def fetch_folder(archive: Published, folder: Path, name: str) -> None:
    """Download a .tar.gz archive into a folder and unpack the folder `name` that is in it.

    It is unpacked under another name first, so that one half unpacked is not taken for all of it.

    Raises
    ------
    InputError
        As for `fetch`; if the archive cannot be unpacked, holds a name that leads out of the
        folder, or has no such folder in it.
    """
    path = fetch(archive, folder)
    with FileLock(folder / f"{name}.lock"):
        if (folder / name).is_dir():  # another process has unpacked it meanwhile
            return
        partial = folder / f"{name}.part"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            with tarfile.open(path, "r:gz") as stream:
                stream.extractall(partial, filter="data")
        except BROKEN_ARCHIVE as error:
            raise InputError(
                f"{path} cannot be unpacked: {error}. Make room for it, or remove it and get it "
                f"again from {archive.url}."
            ) from None
        if not (partial / name).is_dir():
            raise InputError(f"{path} does not hold the folder {name}. Get it from {archive.url}.")
        (partial / name).replace(folder / name)
        shutil.rmtree(partial)
