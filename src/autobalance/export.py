"""A trained network as a file that runs without this library."""

from __future__ import annotations

import copy
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import InputError, instance, path_of
from autobalance.data import as_tensor
from autobalance.records import write_atomically

_TOLERANCE = 1e-4
SUFFIXES = (".pt2", ".onnx")


def export_model(model: nn.Module, example: Any, path: str | Path) -> Path:
    """Write a network as a program of its own, for any batch size, and check that it is the same.

    A ``.pt2`` file, by `torch.export`, is read by ``torch.export.load(path).module()``; an
    ``.onnx`` file by ONNX Runtime and others, its input is named "inputs", its output "logits".
    What is exported are the raw logits of the network in evaluation mode. The loss is no part of
    it: predictions are their argmax; for probabilities see `autobalance.calibration.temperature`.

    Parameters
    ----------
    model : nn.Module
        From inputs to logits ``(n, k)``, for example of `retrain`, or `AutoBalanceClassifier.module_`.
        It is left as it is.
    example : Tensor or array-like
        Inputs ``(n, ...)``, at least two, of the shape and dtype that the network takes.
    path : path
        File to write, ``.pt2`` or ``.onnx``. An existing one is replaced as a whole, or not at all.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        If the ending is another, a package for ONNX is missing, the network cannot be exported, or
        what was written gives other logits than the network (by more than 1e-4, relative to the
        largest where that is above 1).
    """
    path = path_of("path", path)
    instance("model", model, nn.Module)
    if path.suffix not in SUFFIXES:
        raise InputError(f"The file must end in {' or '.join(SUFFIXES)}; got {path.name!r}.")
    if path.suffix == ".onnx":
        missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]
        if missing:
            raise InputError(
                f"Export to ONNX needs {', '.join(missing)}. Install the extra: "
                "pip install 'autobalance[export]', or export to a .pt2 file."
            )
    inputs = as_tensor("example", example).detach().cpu()
    if inputs.ndim < 2 or len(inputs) < 2:
        raise InputError(
            f"example must hold at least two inputs, (n, ...); got shape {tuple(inputs.shape)}."
        )
    twin = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        expected = twin(inputs)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        write = _write_program if path.suffix == ".pt2" else _write_onnx
        again = write(twin, inputs, part)
        # Of one example too: the program must hold for batches that it was not traced with.
        with torch.no_grad():
            for some in (inputs, inputs[:1]):
                _check_same(again(some), expected[: len(some)])
        write_atomically(path, part.read_bytes())
    finally:
        part.unlink(missing_ok=True)
    return path


def _write_program(model: nn.Module, inputs: Tensor, path: Path) -> Any:
    """Write by `torch.export`; what was written, as a function."""
    batch = torch.export.Dim("batch", min=1)
    program = _attempted(
        lambda: torch.export.export(model, (inputs,), dynamic_shapes=({0: batch},))
    )
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _write_onnx(model: nn.Module, inputs: Tensor, path: Path) -> Any:
    """Write by `torch.onnx`; what was written, as a function that ONNX Runtime runs."""
    onnxruntime: Any = import_module("onnxruntime")
    batch = torch.export.Dim("batch", min=1)
    program: Any = _attempted(
        lambda: torch.onnx.export(
            model,
            (inputs,),
            dynamo=True,
            input_names=["inputs"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    )
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {"inputs": x.numpy()})[0]))


def _attempted(export: Any) -> Any:
    """What it returns; torch's exporters raise errors of many kinds where a network is beyond them."""
    try:
        with warnings.catch_warnings():  # about torch's own insides
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return export()
    except ImportError as error:
        raise InputError(
            f"torch's exporter needs a package that is missing or too old here: {error}. Update: "
            "pip install --upgrade 'autobalance[export]'."
        ) from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"This network cannot be exported: {reason} Its forward must not choose its way by the "
            "values of tensors, nor depend on the batch size."
        ) from error


def _check_same(found: Tensor, expected: Tensor) -> None:
    largest = max(1.0, float(expected.abs().max()))
    if found.shape != expected.shape or not bool(
        ((found - expected).abs() <= _TOLERANCE * largest).all()
    ):
        raise InputError(
            "The exported network gives other logits than the network itself. Does its forward draw "
            "at random, or depend on the batch size?"
        )
