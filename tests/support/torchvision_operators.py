"""Lets torchvision import beside a torch that it was not built for, in tests alone."""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # operators live as long as this


def define_missing_operators() -> None:
    """Declare the two operators that the import of torchvision asks for and that no test calls."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
