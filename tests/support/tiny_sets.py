"""Tiny copies of published image sets, in their layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def tiny_cifar(folder: Path, classes: int = 10, each: int = 20, test: int = 4) -> Path:
    """CIFAR's binary version, `each` training images of each class and `test` test images.

    A class's images have one colour of its own beside noise.
    """
    generator = np.random.default_rng(0)
    inside = folder / ("cifar-10-batches-bin" if classes == 10 else "cifar-100-binary")
    inside.mkdir(parents=True)
    colours = generator.integers(40, 215, (classes, 3))
    sizes = {f"data_batch_{i}": each // 5 for i in range(1, 6)} | {"test_batch": test}
    if classes == 100:
        sizes = {"train": each, "test": test}
    for name, size in sizes.items():
        target = np.repeat(np.arange(classes), size)
        noise = generator.integers(-40, 40, (len(target), 3, 1024))
        pixels = (colours[target][:, :, None] + noise).reshape(-1, 3072)
        labels = target[:, None] if classes == 10 else np.stack([target // 5, target], axis=1)
        (inside / f"{name}.bin").write_bytes(np.hstack([labels, pixels]).astype(np.uint8).tobytes())
    names = "\n".join(f"class_{i:02d}" for i in range(classes))
    meta = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
    (inside / meta).write_text(names + "\n")
    return folder


def picture(path: Path, red: int = 0) -> str:
    """An image of one colour, and its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (red, 100, 50)).save(path)
    return path.name
