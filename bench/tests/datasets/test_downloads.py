"""Downloads from a server of the test: whole, cut, refused, altered; and archives unpacked."""

from __future__ import annotations

import hashlib
import io
import socket
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from autobalance import InputError
from autobalance_bench.datasets import fashion
from autobalance_bench.datasets.downloads import Published, fetch, fetch_folder
from tiny_sets import md5, pack

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves `content`; `cut` ends an answer early."""

    content = CONTENT
    cut: int | None = None
    requests: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path == "/absent.bin":
            self.send_error(404, "Not Found")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def at(server: Server, name: str = "data.tar.gz", checksum: str | None = None) -> Published:
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    return Published(url, f"md5:{md5(server.content)}" if checksum is None else checksum)


def names_in(folder: Path) -> list[str]:
    """All files and folders below a folder; locks stay where they were."""
    paths = [p for p in folder.rglob("*") if p.suffix != ".lock"]
    return sorted(p.relative_to(folder).as_posix() for p in paths)


def test_a_file_comes_once(server: Server, tmp_path: Path) -> None:
    path = fetch(at(server), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "data.tar.gz"
    assert path.read_bytes() == CONTENT
    assert names_in(path.parent) == ["data.tar.gz"]
    assert fetch(at(server), path.parent) == path
    assert len(server.requests) == 1
    longer = at(server, checksum=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert fetch(longer, tmp_path).read_bytes() == CONTENT


def test_two_at_once_get_one_file_once(server: Server, tmp_path: Path) -> None:
    paths: list[Path] = []
    both = [
        threading.Thread(target=lambda: paths.append(fetch(at(server), tmp_path))) for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join(30)
    assert [path.read_bytes() == CONTENT for path in paths] == [True, True]
    assert len(server.requests) == 1
    assert names_in(tmp_path) == ["data.tar.gz"]


@pytest.mark.parametrize("checksum", ["md5:" + "0" * 32, "sha256:" + "0" * 64])
def test_an_altered_file_is_removed(server: Server, tmp_path: Path, checksum: str) -> None:
    with pytest.raises(InputError, match=r"cannot be downloaded: .*hash .* does not match"):
        fetch(at(server, checksum=checksum), tmp_path)
    assert names_in(tmp_path) == []


def test_a_download_that_breaks_off_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.cut = 100_000
    with pytest.raises(InputError, match=r"cannot be downloaded: .*Try again"):
        fetch(at(server), tmp_path)
    assert names_in(tmp_path) == []
    server.cut = None
    assert fetch(at(server), tmp_path).read_bytes() == CONTENT


def test_a_file_of_the_users_is_not_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"is there, but is not the published file .* Remove it"):
        fetch(at(server), tmp_path)
    assert (tmp_path / "data.tar.gz").read_bytes() == b"mine"
    assert server.requests == []


def test_what_cannot_be_had_is_told_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        file = Published(
            f"http://127.0.0.1:{closed.getsockname()[1]}/data.tar.gz", f"md5:{md5(CONTENT)}"
        )
        with pytest.raises(InputError, match=r"refused.*put it at .*/data.tar.gz\.$"):
            fetch(file, tmp_path)
    with pytest.raises(InputError, match="cannot be downloaded: 404"):
        fetch(at(server, "absent.bin"), tmp_path)
    assert names_in(tmp_path) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be downloaded: .*File exists"):
        fetch(at(server), tmp_path / "file")


def test_without_pooch_the_message_says_what_to_install(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(InputError, match=r"data.tar.gz needs pooch, .*pip install pooch"):
        fetch(at(server), tmp_path)


def test_a_folder_is_fetched_whole_or_not_at_all(server: Server, tmp_path: Path) -> None:
    files = {"d/x": b"1", "d/e/y": b"22", "readme": b"2"}
    server.content = pack(tmp_path / "a.tar.gz", files).read_bytes()
    out = tmp_path / "out"
    (out / "d.part" / "d").mkdir(parents=True)  # of a run that was killed
    fetch_folder(at(server), out, "d")
    assert names_in(out) == ["d", "d/e", "d/e/y", "d/x", "data.tar.gz"]
    fetch_folder(at(server), out, "d")
    assert len(server.requests) == 1
    with pytest.raises(InputError, match=r"data.tar.gz does not hold the folder e. Get it from"):
        fetch_folder(at(server), out, "e")
    assert not (out / "e").exists()


@pytest.mark.parametrize("kind", ["cut", "no archive", "unsafe", "absolute", "link"])
def test_an_archive_that_cannot_be_unpacked_is_told(
    server: Server, tmp_path: Path, kind: str
) -> None:
    """One that was altered is told by its checksum before."""
    text = b" ".join(b"%d" % (i * i) for i in range(50_000))
    name = {"unsafe": "../../escaped", "absolute": "/../escaped"}.get(kind, "d/x")
    raw = bytearray(pack(tmp_path / "a.tar.gz", {name: text}).read_bytes())
    if kind == "cut":
        del raw[len(raw) // 2 :]
    elif kind == "no archive":
        raw = bytearray(b"no archive")
    elif kind == "link":
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            member = tarfile.TarInfo("d/link")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
        raw = bytearray(out.getvalue())
    server.content = bytes(raw)
    with pytest.raises(InputError, match=r"cannot be unpacked|does not hold the folder d"):
        fetch_folder(at(server), tmp_path / "out" / "in", "d")
    assert not list(tmp_path.rglob("escaped"))
    assert not (tmp_path / "out" / "in" / "d").exists()


def test_fashion_mnist_downloads_what_is_not_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are there are taken as they are; what comes is read as any other."""
    names = [file.name for file in fashion.FILES]
    assert names == [
        f"{a}-{b}-ubyte.gz" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")
    ]
    monkeypatch.setattr(fashion, "FILES", [at(server, name) for name in names])
    (tmp_path / names[0]).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{names[0]} is not a readable gzip file"):
        fashion.load_fashion_mnist(tmp_path, download=True)
    assert len(server.requests) == 3
    assert (tmp_path / names[3]).read_bytes() == CONTENT
