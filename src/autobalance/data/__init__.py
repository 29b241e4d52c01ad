"""Data in memory and in files: examples, batches, splits, tables, and readers of image sets.

Readers, by what there is:

- images in a folder per class: `class_folders`; listed in a table with labels: `image_table`
- CIFAR: `cifar10`, `cifar100`, long-tailed `cifar10_lt`, `cifar100_lt`
- ImageNet-LT: `imagenet_lt`; iNaturalist 2018: `inaturalist_2018`
- Waterbirds and CelebA, with groups: `autobalance.data.waterbirds`, `autobalance.data.celeba`
- Fashion-MNIST: `autobalance.data.fashion`
- a dataset of Hugging Face: `from_hugging_face`, and of many images `hugging_face_images`
- embeddings in Parquet or .npz: `read_embeddings`

`Photographs.stored` decodes images into a file once, whose rows, `StoredRows`, are read as they are needed.
`long_tailed` draws a long-tailed part of any of them; `BalancedSampler` keeps classes and groups even in
loaders of your own.
"""

from __future__ import annotations

import importlib
from typing import Any

from autobalance.data.batches import ArrayData, Batch, as_batch

# Imported on first use: images need Pillow, and tables pandas.
_HOME = {
    "BalancedSampler": "samplers",
    "CIFAR": "cifar",
    "Labelled": "labels",
    "Photographs": "photographs",
    "StoredRows": "stored",
    "cifar10": "cifar",
    "cifar100": "cifar",
    "cifar100_lt": "cifar",
    "cifar10_lt": "cifar",
    "class_folders": "folders",
    "from_hugging_face": "huggingface",
    "hugging_face_images": "huggingface",
    "image_table": "folders",
    "imagenet_lt": "imagenet",
    "inaturalist_2018": "inaturalist",
    "long_tailed": "longtail",
    "read_embeddings": "embeddings",
}

__all__ = ["ArrayData", "Batch", "as_batch", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
