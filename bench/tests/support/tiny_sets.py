"""Tiny copies of published image sets, in their layouts, and torchvision to read them."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from torchvision_operators import define_missing_operators


def import_torchvision() -> Any:
    """Import `torchvision.datasets`, also where torchvision was built for another torch."""
    define_missing_operators()
    import torchvision.datasets

    return torchvision.datasets


datasets = import_torchvision()


def picture(path: Path, red: int = 0, size: tuple[int, int] = (12, 10)) -> str:
    """Write an image of one colour, whose red tells which image it is; its file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 100, 50)).save(path)
    return path.name


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Write a .tar.gz archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def cifar_arrays(classes: int, each: int, test: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels ``(n, 3072)`` and labels of each batch file.

    A class's images have one colour of its own beside noise.
    """
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 215, (classes, 3))
    sizes = {f"data_batch_{i}": each // 5 for i in range(1, 6)} | {"test_batch": test}
    if classes == 100:
        sizes = {"train": each, "test": test}
    arrays = {}
    for name, size in sizes.items():
        target = np.repeat(np.arange(classes), size)
        noise = generator.integers(-40, 40, (len(target), 3, 1024))
        pixels = (colours[target][:, :, None] + noise).reshape(-1, 3072)
        arrays[name] = pixels.astype(np.uint8), target
    return arrays


def tiny_cifar(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    classes: int = 10,
    each: int = 20,
    test: int = 4,
    packed: bool = False,
) -> Path:
    """CIFAR's Python version, `each` training images of each class and `test` test images.

    torchvision's checksums are made those of these files, or of the archive of them.
    """
    key = "labels" if classes == 10 else "fine_labels"
    files = {
        name: pickle.dumps({"data": pixels, key: target.tolist()})
        for name, (pixels, target) in cifar_arrays(classes, each, test).items()
    }
    names = [f"class_{i:02d}" for i in range(classes)]
    meta = "batches.meta" if classes == 10 else "meta"
    files[meta] = pickle.dumps({"label_names" if classes == 10 else "fine_label_names": names})
    kind = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    for part in ("train_list", "test_list"):
        listed = [[name, md5(files[name])] for name, _ in getattr(kind, part)]
        monkeypatch.setattr(kind, part, listed)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(files[meta])})
    if packed:
        inside = {f"{kind.base_folder}/{name}": content for name, content in files.items()}
        archive = pack(folder / kind.filename, inside)
        monkeypatch.setattr(kind, "tgz_md5", md5(archive.read_bytes()))
        return folder
    (folder / kind.base_folder).mkdir(parents=True)
    for name, content in files.items():
        (folder / kind.base_folder / name).write_bytes(content)
    return folder


def tiny_celeba(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    blond: list[int],
    male: list[int],
    part: list[int],
) -> Path:
    """CelebA as torchvision lays it out, 178 x 218, white but for the central square.

    Attributes are 1 and -1, parts 0 to 2. The square is as red as 20 times the row; torchvision's
    checksums are made those of these lists.
    """
    place = folder / "celeba"
    (place / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(len(blond))]
    for row, name in enumerate(names):
        canvas = np.full((218, 178, 3), 255, np.uint8)
        canvas[20:198] = (20 * row, 0, 0)
        Image.fromarray(canvas).save(place / "img_align_celeba" / name, quality=95)
    rows = [f"{n} -1 {b:2d} {m:2d}" for n, b, m in zip(names, blond, male, strict=True)]
    plain = [f"{name} 1 2" for name in names]
    lists = {
        "list_attr_celeba.txt": [str(len(names)), "Bald Blond_Hair Male ", *rows],
        "list_eval_partition.txt": [f"{n} {p}" for n, p in zip(names, part, strict=True)],
        "identity_CelebA.txt": [f"{name} 1" for name in names],
        "list_bbox_celeba.txt": [str(len(names)), "image_id x y", *plain],
        "list_landmarks_align_celeba.txt": [str(len(names)), "x y", *plain],
    }
    for name, lines in lists.items():
        (place / name).write_text("\n".join(lines) + "\n")
    listed = [
        (number, md5((place / name).read_bytes()) if name in lists else checksum, name)
        for number, checksum, name in datasets.CelebA.file_list
    ]
    monkeypatch.setattr(datasets.CelebA, "file_list", listed)
    return place
