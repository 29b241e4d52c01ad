"""CIFAR by torchvision, from a folder or its archive, and long-tailed draws of it."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from autobalance import InputError
from autobalance.data.splits import stratified_folds
from autobalance_bench.datasets.cifar import CIFAR, load_cifar, load_cifar_lt
from autobalance_bench.datasets.longtail import exponential_counts
from tiny_sets import cifar_arrays, datasets, tiny_cifar

SIZES = pytest.mark.parametrize(("k", "each", "test"), [(10, 10, 2), (100, 4, 1)])


def check(cifar: CIFAR, k: int, each: int, test: int) -> None:
    """All pixels and labels are those that were written."""
    *train, last = cifar_arrays(k, each, test).values()
    pixels = np.concatenate([pixels for pixels, _ in train]).reshape(-1, 3, 32, 32)
    inputs = cifar.train.in_memory()
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous()
    np.testing.assert_array_equal(inputs.numpy(), pixels / np.float32(255.0))
    assert cifar.train.target.tolist() == np.concatenate([y for _, y in train]).tolist()
    np.testing.assert_array_equal(
        cifar.test.in_memory().numpy(), last[0].reshape(-1, 3, 32, 32) / np.float32(255.0)
    )
    assert cifar.test.target.tolist() == last[1].tolist()
    assert cifar.class_names == tuple(f"class_{i:02d}" for i in range(k))
    assert cifar.train.num_classes == cifar.test.num_classes == k


@SIZES
def test_a_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, each: int, test: int
) -> None:
    tiny_cifar(tmp_path, monkeypatch, k, each, test)
    check(load_cifar(tmp_path, k), k, each, test)
    (inside,) = tmp_path.iterdir()
    check(load_cifar(str(inside), k), k, each, test)


def test_the_archive_is_unpacked_where_a_download_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_cifar(tmp_path, monkeypatch, packed=True, each=10, test=2)
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/none")  # is not asked
    check(load_cifar(tmp_path, download=True), 10, 10, 2)
    check(load_cifar(tmp_path), 10, 10, 2)


def test_a_download_is_kept_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_cifar(tmp_path / "server", monkeypatch, packed=True, each=10, test=2)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "server"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{datasets.CIFAR10.filename}"
        monkeypatch.setattr(datasets.CIFAR10, "url", url)
        check(load_cifar(tmp_path / "mine", download=True), 10, 10, 2)
        server.shutdown()
        thread.join()
    check(load_cifar(tmp_path / "mine"), 10, 10, 2)
    with pytest.raises(InputError, match=r"other must hold cifar-10-batches-py .*refused"):
        load_cifar(tmp_path / "other", download=True)


def test_what_is_not_there_or_not_published_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"nowhere must hold cifar-10-batches-py .*is not there"):
        load_cifar(tmp_path / "nowhere")
    tiny_cifar(tmp_path, monkeypatch, 100, each=2, test=1)
    with pytest.raises(InputError, match=r"it has: cifar-100-python.*download=True"):
        load_cifar(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"altered")
    with pytest.raises(InputError, match="corrupted"):
        load_cifar(tmp_path, 100)
    with pytest.raises(InputError, match="10 or 100 classes; got 20"):
        load_cifar(tmp_path, 20)


def test_the_published_counts() -> None:
    """As in the AutoBalance paper, and 80 % of them are for training."""
    ten, hundred = exponential_counts(10, 5000, 100), exponential_counts(100, 500, 100)
    assert (ten[0], ten[-1], ten.sum()) == (5000, 50, 12_406)
    assert (hundred[0], hundred[-1], hundred.sum()) == (500, 5, 10_847)
    cells = torch.repeat_interleave(torch.arange(10), torch.from_numpy(ten))
    ((train, held),) = stratified_folds(cells, 0.2, 1, torch.Generator().manual_seed(0))
    assert torch.bincount(cells[train]).tolist()[::9] == [4000, 40]
    assert torch.bincount(cells[held]).tolist()[::9] == [1000, 10]


@SIZES
def test_long_tails_keep_the_largest_class_and_the_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, each: int, test: int
) -> None:
    tiny_cifar(tmp_path, monkeypatch, k, each, test)
    tail = load_cifar_lt(tmp_path, k, imbalance=each)
    assert tail.train.counts().tolist() == exponential_counts(k, each, each).tolist()
    assert tail.test.counts().tolist() == [test] * k
    everything = load_cifar(tmp_path, k).train.in_memory()
    rows = {image.numpy().tobytes() for image in everything}
    assert all(image.numpy().tobytes() in rows for image in tail.train.in_memory())
    again = load_cifar_lt(tmp_path, k, imbalance=each)
    other = load_cifar_lt(tmp_path, k, imbalance=each, seed=1)
    assert torch.equal(tail.train.in_memory(), again.train.in_memory())
    assert not torch.equal(tail.train.in_memory(), other.train.in_memory())
    step = load_cifar_lt(tmp_path, k, imbalance=each, profile="step").train.counts()
    assert step.tolist() == [each] * (k // 2) + [1] * (k - k // 2)
