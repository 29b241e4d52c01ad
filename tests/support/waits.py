"""Where code would wait for a GPU, found on a CPU."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import autobalance

LIBRARY = str(Path(autobalance.__file__).parent)
READS = (
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("unique_dim", "unique_consecutive", "_unique", "_unique2", "repeat_interleave"),
)
MASKED = ("index", "index_put", "index_put_", "_index_put_impl_")
METHODS = (Tensor.tolist, Tensor.cpu, Tensor.numpy)
FROM_HOST = (torch.tensor, torch.as_tensor, Tensor.new_tensor)


class Waits(TorchDispatchMode):
    """Counts reads of values, and operations whose result has a shape that depends on values.

    On a CPU `tolist`, `cpu` and `numpy` are no operations and are counted by name. What `torch.optim`
    reads is its count of steps, which it keeps on the CPU.

    Attributes
    ----------
    places : Counter
        By "function: operation", the function being the innermost of this library.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self._methods = _Methods(self)

    def __enter__(self) -> Waits:
        self._methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._methods.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = any(
            isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8)
            for t in tree_leaves(args[1:2])
        )
        found = func(*args, **(kwargs or {}))
        if name in READS or (name in MASKED and masks):
            self.note(name)
        elif name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            if source.device != found.device:
                self.note(name)
        return found

    def note(self, operation: str) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(LIBRARY):
            if "/torch/optim/" in frame.f_code.co_filename:
                return
            frame = frame.f_back
        where = "elsewhere" if frame is None else frame.f_code.co_qualname
        self.places[f"{where}: {operation}"] += 1


class _Methods(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        to_device = func is Tensor.new_tensor or (kwargs or {}).get("device") is not None
        if func in METHODS or (func in FROM_HOST and to_device):
            self.waits.note(func.__name__)
        return func(*args, **(kwargs or {}))
