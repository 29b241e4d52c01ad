"""CIFAR's two published forms, unpacked and packed; broken and hostile files; long tails."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from autobalance._validation import InputError
from autobalance.data.splits import stratified_folds
from autobalance_bench.datasets import cifar
from autobalance_bench.datasets.cifar import CIFAR, cifar10, cifar10_lt, cifar100, cifar100_lt
from autobalance_bench.datasets.downloads import Published
from autobalance_bench.datasets.longtail import exponential_counts

READERS = {10: cifar10, 100: cifar100}
FOLDERS = {
    (10, "binary"): "cifar-10-batches-bin",
    (10, "python"): "cifar-10-batches-py",
    (100, "binary"): "cifar-100-binary",
    (100, "python"): "cifar-100-python",
}
FORMS = pytest.mark.parametrize(("k", "form"), list(FOLDERS))


class _AsPython2(pickle._Pickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Writes bytes as Python 2 wrote its strings, as in the published files."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # pyright: ignore[reportAttributeAccessIssue]

    def save_bytes(self, obj: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    dispatch[bytes] = save_bytes


def old_pickle(record: Any) -> bytes:
    out = io.BytesIO()
    _AsPython2(out, protocol=2).dump(record)
    return out.getvalue().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


def batch(n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 3072), np.uint8), np.arange(n) % k


def names_of(k: int) -> list[str]:
    return [f"class_{i}" for i in range(k)]


def batches_of(k: int, n: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    train = [f"data_batch_{i}" for i in range(1, 6)] if k == 10 else ["train"]
    test = "test_batch" if k == 10 else "test"
    return {name: batch(n, k, seed) for seed, name in enumerate([*train, test])}


def content(k: int, form: str, n: int = 20) -> dict[str, bytes]:
    """The files of one published folder, with n images in each batch."""
    files = {}
    for name, (pixels, target) in batches_of(k, n).items():
        if form == "binary":
            labels = target[:, None] if k == 10 else np.stack([target // 5, target], axis=1)
            files[f"{name}.bin"] = np.hstack([labels.astype(np.uint8), pixels]).tobytes()
        else:
            key = b"labels" if k == 10 else b"fine_labels"
            record = {b"data": pixels, key: target.tolist(), b"filenames": [b"x.png"] * n}
            if k == 100:
                record[b"coarse_labels"] = (target // 5).tolist()
            files[name] = old_pickle(record)
    if form == "binary":
        text = "\n".join(names_of(k)) + "\n\n"
        files["batches.meta.txt" if k == 10 else "fine_label_names.txt"] = text.encode()
    else:
        key = b"label_names" if k == 10 else b"fine_label_names"
        meta = {key: [n.encode() for n in names_of(k)], b"num_vis": 3072}
        files["batches.meta" if k == 10 else "meta"] = old_pickle(meta)
    return files


def write(folder: Path, k: int, form: str, **changes: bytes) -> Path:
    inside = folder / FOLDERS[k, form]
    inside.mkdir(parents=True)
    for name, data in {**content(k, form), **changes}.items():
        (inside / name).write_bytes(data)
    return inside


def write_archive(folder: Path, k: int, form: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"cifar-{k}-{form}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content(k, form).items():
            info = tarfile.TarInfo(f"{FOLDERS[k, form]}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def check(found: CIFAR, k: int) -> None:
    """All pixels and labels are those that were written."""
    expected = list(batches_of(k).values())
    pixels = np.concatenate([p for p, _ in expected[:-1]]).reshape(-1, 3, 32, 32)
    assert found.train.inputs.dtype == torch.float32
    np.testing.assert_allclose(found.train.inputs.numpy(), pixels / 255.0, rtol=1e-6)
    assert found.train.target.tolist() == np.concatenate([y for _, y in expected[:-1]]).tolist()
    np.testing.assert_allclose(
        found.test.inputs.numpy(), expected[-1][0].reshape(-1, 3, 32, 32) / 255.0, rtol=1e-6
    )
    assert found.test.target.tolist() == expected[-1][1].tolist()
    assert found.class_names == tuple(names_of(k))
    assert found.train.num_classes == found.test.num_classes == k


@FORMS
def test_a_folder_is_read(tmp_path: Path, k: int, form: str) -> None:
    inside = write(tmp_path, k, form)
    check(READERS[k](tmp_path), k)
    check(READERS[k](str(inside)), k)


@FORMS
def test_the_archive_is_read_as_it_is(tmp_path: Path, k: int, form: str) -> None:
    write_archive(tmp_path, k, form)
    check(READERS[k](tmp_path), k)
    assert len(list(tmp_path.iterdir())) == 1


def test_pickles_of_python_3_are_read_too(tmp_path: Path) -> None:
    pixels, target = batch(20, 10, 0)
    for protocol in (2, 3, 4):
        record = {b"data": pixels, b"labels": target.tolist()}
        inside = write(
            tmp_path / str(protocol), 10, "python", data_batch_1=pickle.dumps(record, protocol)
        )
        check(cifar10(inside), 10)


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("it-ran"),)


@pytest.mark.parametrize(
    "hostile",
    [
        pickle.dumps(_Runs()),
        b"cos\nsystem\n(S'touch it-ran'\ntR.",
        b'cbuiltins\neval\n(S\'open("it-ran", "w")\'\ntR.',
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
    ],
)
def test_a_pickle_that_names_anything_else_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = write(tmp_path, 10, "python", data_batch_3=hostile)
    with pytest.raises(InputError, match=r"file data_batch_3 is broken: it (names|encodes)"):
        cifar10(inside)
    assert not (tmp_path / "it-ran").exists()


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    pixels, target = batch(4, 10, 0)
    good: dict[bytes, Any] = {b"data": pixels, b"labels": target.tolist()}
    cases: list[tuple[str, str, bytes, str]] = [
        ("binary", "data_batch_2.bin", b"x" * 3072, "3072 bytes are not records of 3073"),
        ("binary", "test_batch.bin", b"", "0 bytes are not records"),
        ("binary", "test_batch.bin", b"\x0b" + bytes(3072), "a label out of 0 to 9"),
        ("binary", "batches.meta.txt", b"cat\ndog\n", "2 names of 10"),
        ("python", "data_batch_1", b"not a pickle", "data_batch_1 is broken"),
        ("python", "data_batch_1", old_pickle(good)[:-9], "data_batch_1 is broken"),
        ("python", "data_batch_1", old_pickle([1]), "no entry 'data'"),
        ("python", "data_batch_1", old_pickle({b"data": pixels}), "no entry 'labels'"),
        ("python", "test_batch", old_pickle({**good, b"data": pixels[:3]}), r"\(3, 3072\) for 4"),
        ("python", "test_batch", old_pickle({**good, b"data": [1]}), "no array of bytes"),
        ("python", "test_batch", old_pickle({**good, b"labels": [0, 1, 2, 10]}), "out of 0 to 9"),
        ("python", "test_batch", old_pickle({**good, b"labels": [b"a"] * 4}), "not whole numbers"),
    ]
    for i, (form, name, data, message) in enumerate(cases):
        inside = write(tmp_path / str(i), 10, form, **{name: data})
        with pytest.raises(InputError, match=message) as raised:
            cifar10(inside)
        assert name in str(raised.value)
        assert "Get it again from https" in str(raised.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The folder .*nowhere of CIFAR is not there"):
        cifar10(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"must hold cifar-10-batches-bin \(or .*it is empty. Get"):
        cifar10(tmp_path)
    write(tmp_path, 100, "python")
    with pytest.raises(InputError, match=r"cifar-10-batches-py .*; it has: cifar-100-python"):
        cifar10(tmp_path)
    inside = write(tmp_path, 10, "binary")
    (inside / "data_batch_4.bin").unlink()
    with pytest.raises(InputError, match=r"lacks the file data_batch_4.bin; it has: .*Unpack"):
        cifar10(tmp_path)


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path, 10, "binary")
    good = path.read_bytes()
    altered = bytearray(good)
    altered[-8] ^= 1  # in gzip's checksum
    for broken in (good[:5000], good[:-20], bytes(altered), b"no archive"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="is no readable archive"):
            cifar10(tmp_path)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-bin/readme.html"))
    with pytest.raises(InputError, match=r"lacks the file data_batch_1.bin. Get it again"):
        cifar10(tmp_path)


def test_a_download_is_kept_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file's address, with its true checksum, then with a wrong one."""
    import hashlib
    from dataclasses import replace

    archive = write_archive(tmp_path / "server", 10, "binary")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    version = replace(cifar._TEN[0], archive=Published(archive.as_uri(), md5))
    monkeypatch.setattr(cifar, "_TEN", (version,))
    with pytest.raises(InputError, match="download=True"):
        cifar10(tmp_path)
    check(cifar10(tmp_path / "mine", download=True), 10)
    archive.unlink()
    check(cifar10(tmp_path / "mine"), 10)
    check(cifar10(tmp_path / "mine", download=True), 10)


def test_the_published_counts() -> None:
    """As in the AutoBalance paper, and 80 % of them are for training."""
    ten, hundred = exponential_counts(10, 5000, 100), exponential_counts(100, 500, 100)
    assert (ten[0], ten[-1], ten.sum()) == (5000, 50, 12_406)
    assert (hundred[0], hundred[-1], hundred.sum()) == (500, 5, 10_847)
    cells = torch.repeat_interleave(torch.arange(10), torch.from_numpy(ten))
    ((train, held),) = stratified_folds(cells, 0.2, 1, torch.Generator().manual_seed(0))
    assert torch.bincount(cells[train]).tolist()[::9] == [4000, 40]
    assert torch.bincount(cells[held]).tolist()[::9] == [1000, 10]


@pytest.mark.parametrize(("read", "k", "n"), [(cifar10_lt, 10, 100), (cifar100_lt, 100, 500)])
def test_long_tails_keep_the_largest_class_and_the_test_images(
    tmp_path: Path, read: Callable[..., CIFAR], k: int, n: int
) -> None:
    inside = tmp_path / FOLDERS[k, "binary"]
    inside.mkdir()
    for name, data in content(k, "binary", n).items():
        (inside / name).write_bytes(data)
    each = n * (5 if k == 10 else 1) // k  # of each class
    found = read(tmp_path, imbalance=each)
    assert found.train.counts().tolist() == exponential_counts(k, each, each).tolist()
    assert found.test.counts().tolist() == [n // k] * k
    everything = READERS[k](tmp_path).train
    rows = {image.numpy().tobytes() for image in everything.inputs}
    assert all(image.numpy().tobytes() in rows for image in found.train.inputs)
    again = read(tmp_path, imbalance=each)
    other = read(tmp_path, imbalance=each, seed=1)
    assert torch.equal(found.train.inputs, again.train.inputs)
    assert not torch.equal(found.train.inputs, other.train.inputs)
    step = read(tmp_path, imbalance=each, profile="step").train.counts()
    assert step.tolist() == [each] * (k // 2) + [1] * (k - k // 2)
