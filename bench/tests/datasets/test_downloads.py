"""Downloads from a server of the test: whole, broken off and continued, refused, altered."""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autobalance._validation import InputError
from autobalance_bench.datasets import downloads, fashion
from autobalance_bench.datasets.downloads import Published, fetch, fetch_folder, unpack

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `CONTENT`; `cut` ends an answer early, `ranges` allows to continue.

    Its length is `told` or not.
    """

    cut: int | None = None
    ranges = True
    told = True
    seen: list[str | None]  # the Range of each request


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.seen.append(wanted)
        if self.path == "/absent.bin":
            self.send_error(404, "Not Found")
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted and self.server.ranges and start >= len(CONTENT):
            self.send_error(416, "Range Not Satisfiable")
            return
        start = start if self.server.ranges else 0
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        if self.server.told:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.seen = []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def at(server: Server, name: str = "data.tar.gz", checksum: str = MD5) -> Published:
    return Published(f"http://127.0.0.1:{server.server_port}/{name}", checksum)


def test_a_file_comes_once(server: Server, tmp_path: Path) -> None:
    path = fetch(at(server), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "data.tar.gz"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["data.tar.gz"]
    assert fetch(at(server), path.parent) == path
    assert server.seen == [None]


@pytest.mark.parametrize("ranges", [True, False], ids=["continued", "from the start"])
def test_a_download_that_broke_off_goes_on(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.cut, server.ranges = 100_000, ranges
    with pytest.raises(InputError, match=r"broke off with 200000 bytes to come. Call again to"):
        fetch(at(server), tmp_path)
    assert not (tmp_path / "data.tar.gz").exists()
    assert (tmp_path / "data.tar.gz.part").stat().st_size == 100_000
    server.cut = None
    assert fetch(at(server), tmp_path).read_bytes() == CONTENT
    assert server.seen == [None, "bytes=100000-"]
    assert not (tmp_path / "data.tar.gz.part").exists()


def test_two_at_once_get_one_file_once(server: Server, tmp_path: Path) -> None:
    found: list[Path] = []

    def get() -> None:
        found.append(fetch(at(server), tmp_path))

    both = [threading.Thread(target=get) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(30)
    assert len(found) == 2
    assert found[0].read_bytes() == CONTENT
    assert len(server.seen) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["data.tar.gz"]


def test_a_part_that_is_all_there_only_takes_its_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz.part").write_bytes(CONTENT)
    assert fetch(at(server), tmp_path).read_bytes() == CONTENT


def test_an_altered_file_is_removed(server: Server, tmp_path: Path) -> None:
    for algorithm, digits in (("MD5", 32), ("SHA-256", 64)):
        with pytest.raises(
            InputError, match=rf"is not the published file \(its {algorithm} is not 00.*was removed"
        ):
            fetch(at(server, checksum="0" * digits), tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_longer_checksum_is_sha_256(server: Server, tmp_path: Path) -> None:
    file = at(server, checksum=hashlib.sha256(CONTENT).hexdigest())
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert fetch(file, tmp_path).exists()


def test_a_part_of_another_file_is_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz.part").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match=r"is not the published file"):
        fetch(at(server), tmp_path)
    assert fetch(at(server), tmp_path).read_bytes() == CONTENT


def test_a_file_of_the_users_is_not_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"is there, but is not the published file .* Remove it"):
        fetch(at(server), tmp_path)
    assert (tmp_path / "data.tar.gz").read_bytes() == b"mine"
    assert server.seen == []


def test_no_network_is_told_and_nothing_left(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        file = Published(f"http://127.0.0.1:{closed.getsockname()[1]}/data.tar.gz", MD5)
        with pytest.raises(
            InputError,
            match=r"cannot be downloaded: .*refused.* no network, .*put it at .*/data.tar.gz\.$",
        ):
            fetch(file, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_absent_file_is_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the server answered 404 Not Found"):
        fetch(at(server, "absent.bin"), tmp_path)
    with pytest.raises(InputError, match=r"cannot be downloaded: .*No such file"):
        fetch(Published((tmp_path / "no.bin").as_uri(), MD5), tmp_path / "mine")


def test_a_folder_that_takes_no_file_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be written: .*Give another folder"):
        fetch(at(server), tmp_path / "file")
    assert server.seen == []


def test_a_full_disk_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, block: bytes) -> None:
            raise OSError(28, "No space left on device")

    original = downloads._copy
    monkeypatch.setattr(
        downloads, "_copy", lambda answer, out, *rest: original(answer, Full(), *rest)
    )
    with pytest.raises(InputError, match=r"No space left on device. Make room, and call again"):
        fetch(at(server), tmp_path)


def free(monkeypatch: pytest.MonkeyPatch, size: int, total: int = 10**9) -> None:
    usage = SimpleNamespace(total=total, free=size)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: usage)


def test_a_disk_without_room_is_told_before_anything_comes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 299_999)
    with pytest.raises(
        InputError,
        match=r"To download http.*/data.tar.gz, 300.0 kB are needed in .*, but 300.0 kB are free. "
        r"Make room, or give another folder",
    ):
        fetch(at(server), tmp_path)
    assert list(tmp_path.iterdir()) == []
    free(monkeypatch, 0, total=0)  # a disk that does not tell its size
    assert fetch(at(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False], ids=["continued", "from the start"])
def test_room_is_needed_for_what_is_still_to_come(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    server.ranges = ranges
    part = tmp_path / "data.tar.gz.part"
    part.write_bytes(CONTENT[:299_100])
    free(monkeypatch, 899)
    with pytest.raises(InputError, match=r"900 bytes are needed in .*, but 899 bytes are free"):
        fetch(at(server), tmp_path)
    assert part.stat().st_size == 299_100
    free(monkeypatch, 900)
    assert fetch(at(server), tmp_path).read_bytes() == CONTENT


def test_progress_counts_what_an_earlier_call_got(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int | None]] = []
    fetch(at(server), tmp_path / "at once", progress=lambda *told: calls.append(told))
    assert calls == [(300_000, 300_000)]  # in less than a second
    monkeypatch.setattr(downloads, "TOLD_EVERY", 0.0)
    monkeypatch.setattr(downloads, "BLOCK", 100_000)
    calls.clear()
    (tmp_path / "data.tar.gz.part").write_bytes(CONTENT[:50_000])
    fetch(at(server), tmp_path, progress=lambda *told: calls.append(told))
    assert calls[0][0] > 50_000
    assert [received for received, _ in calls] == sorted(received for received, _ in calls)
    assert calls[-1] == (300_000, 300_000)
    assert len(calls) > 2
    calls.clear()
    fetch(at(server), tmp_path, progress=lambda *told: calls.append(told))
    assert calls == []  # it is there


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_line_and_nothing_else_does(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, stream in enumerate((io.StringIO(), Terminal())):
        monkeypatch.setattr("sys.stderr", stream)
        fetch(at(server), tmp_path / str(number))
        line = "\r\033[Kdata.tar.gz: 300.0 kB of 300.0 kB\n"
        assert stream.getvalue() == (line if number else "")


def test_an_answer_without_a_length_is_shown_by_what_came(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.told = False
    monkeypatch.setattr("sys.stderr", Terminal())
    free(monkeypatch, 0)  # what is needed is not known
    assert fetch(at(server), tmp_path).read_bytes() == CONTENT
    assert downloads.sys.stderr.getvalue() == "\r\033[Kdata.tar.gz: 300.0 kB\n"


def tar(path: Path, files: dict[str, bytes], *, link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return path


def test_unpacking_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", {"d/x": b"1", "d/e/y": b"22"}, link="d/link")
    out = tmp_path / "out"
    (out / "d").mkdir(parents=True)
    (out / "d" / "x").write_bytes(b"?")  # of the right size: kept
    unpack(archive, out)
    assert (out / "d" / "x").read_bytes() == b"?"
    assert (out / "d" / "e" / "y").read_bytes() == b"22"
    assert sorted(p.name for p in out.rglob("*")) == ["d", "e", "x", "y"]


def test_unpacking_needs_room_for_what_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tar(tmp_path / "a.tar.gz", {"x": CONTENT, "y": b"2"})
    size = archive.stat().st_size
    free(monkeypatch, 1000)
    with pytest.raises(
        InputError, match=r"To unpack .*a.tar.gz, 300.. kB are needed in .*out, but 1.0 kB are free"
    ):
        unpack(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / "x").write_bytes(CONTENT)
    assert size - len(CONTENT) < 1000
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "out" / "y").read_bytes() == b"2"


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "d/../../escaped"])
def test_unpacking_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    archive = tar(tmp_path / "a.tar.gz", {name: b"1"})
    with pytest.raises(InputError, match="has the unsafe name"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "escaped").exists()


def test_a_cut_archive_is_told(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", {"x": CONTENT})
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cannot be unpacked: .* Remove it and get it again"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out" / "x").exists()


def test_a_broken_stream_in_an_archive_is_told(tmp_path: Path) -> None:
    text = b" ".join(b"%d" % (i * i) for i in range(50_000))
    archive = tar(tmp_path / "a.tar.gz", {"x": text})
    raw = bytearray(archive.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 100] = b"\xff" * 100
    archive.write_bytes(raw)
    with pytest.raises(InputError, match=r"cannot be unpacked: .* Remove it and get it again"):
        unpack(archive, tmp_path / "out")
    archive.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"cannot be unpacked: .* Remove it and get it again"):
        unpack(archive, tmp_path / "out")


def packed(path: Path) -> Published:
    return Published(path.as_uri(), hashlib.md5(path.read_bytes()).hexdigest())


def test_a_folder_is_fetched_whole_or_not_at_all(tmp_path: Path) -> None:
    archive = packed(tar(tmp_path / "a.tar.gz", {"d/x": b"1", "readme": b"2"}))
    out = tmp_path / "out"
    fetch_folder(archive, out, "d")
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == ["a.tar.gz", "d", "d/x"]
    fetch_folder(archive, out, "d")
    with pytest.raises(InputError, match=r"a.tar.gz does not hold the folder e. Get it from file:"):
        fetch_folder(archive, out, "e")
    assert not (out / "e").exists()


def test_a_place_that_takes_no_file_is_told(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", {"d/x": b"1"})
    (tmp_path / "d").write_bytes(b"a file")
    with pytest.raises(InputError, match=r"cannot be unpacked into .*Call again to continue"):
        unpack(archive, tmp_path)


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
        fashion.original(tmp_path, download=True)
    assert len(server.seen) == 3
    assert (tmp_path / names[3]).read_bytes() == CONTENT
