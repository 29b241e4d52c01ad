"""A trained network, or a classifier with all that it does, as a file that runs without this library."""

from __future__ import annotations

import copy
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import InputError, how_to_install, instance, path_of
from autobalance.data import TableLayer, as_tensor
from autobalance.records import to_json, write_atomically
from autobalance.sklearn import AutoBalanceClassifier, TableInput, fitted_network, table_input_of

_TOLERANCE = 1e-4
_NEEDS_ENCODER = (
    "This network comes from a table, and takes its encoded rows: a file of it alone would decide "
    "otherwise than predict. Export the classifier: export_model(classifier, path). For a module of your "
    "own around the network, put classifier.encoder_.as_module() before it."
)
SUFFIXES = (".pt2", ".onnx")


@overload
def export_model(model: AutoBalanceClassifier, example: str | Path, /) -> Path: ...
@overload
def export_model(
    model: nn.Module | AutoBalanceClassifier, example: Any, path: str | Path
) -> Path: ...
def export_model(
    model: nn.Module | AutoBalanceClassifier, example: Any, path: str | Path | None = None
) -> Path:
    """Write a network as a program of its own, for any batch size, and check that it is the same.

    ``export_model(classifier, path)`` writes all that `predict` does: the encoder of the table, the
    network and the decision. The program takes the table's columns as one tensor ``(n, d)`` in their
    order: numbers as they are, NaN where one is missing, and the position of a category in the
    file's list ``categories``, or -1 for any other. Its largest output is the class that `predict`
    gives; of several labels those with an output above 0 are predicted, and "labels" in place of "classes"
    has their names. ``export_model(network, example, path)`` writes a network alone.

    A ``.pt2`` file, by `torch.export`, is read by ``torch.export.load(path).module()``; columns,
    categories and classes are in its extra file "table.json". An ``.onnx`` file is read by ONNX
    Runtime and others, its input is named "inputs", its output "logits", and the same is in its
    metadata under "table". The network is in evaluation mode. The loss is no part of it;
    for probabilities see `autobalance.calibration.temperature`.

    Parameters
    ----------
    model : AutoBalanceClassifier or nn.Module
        A fitted classifier; or a network from inputs to logits ``(n, k)``, for example of `retrain`.
        It is left as it is.
    example : array-like, Tensor or dataframe
        Inputs ``(n, ...)``, at least two, of the shape and dtype that the network takes, to check the
        file on. For a classifier: rows as `predict` takes them; by default training rows.
    path : path
        File to write, ``.pt2`` or ``.onnx``. An existing one is replaced as a whole, or not at all.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        If the ending is another, a package for ONNX is missing, the network cannot be exported, what
        was written gives other logits than the network (by more than 1e-4, relative to the largest
        where that is above 1) or decides otherwise than `predict`, or a classifier's `module_`, which
        knows of its table also as a copy, is given alone with inputs that are not clearly rows of it.
    """
    if path is None:
        example, path = None, example
    path = path_of("path", path)
    instance("model", model, (nn.Module, AutoBalanceClassifier))
    _check_ending(path)
    twin, inputs, expected, contents = _prepare(model, example)
    of_labels = "labels" in contents
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        write = _write_program if path.suffix == ".pt2" else _write_onnx
        run = write(twin, inputs, part, contents)
        # Of one example too: the program must hold for batches that it was not traced with.
        with torch.no_grad():
            for some in (inputs, inputs[:1]):
                _check_same(run(some), expected[: len(some)], of_labels)
        write_atomically(path, part.read_bytes())
    finally:
        part.unlink(missing_ok=True)
    return path


class _TableProgram(nn.Module):
    """The encoder of a table and the network behind it."""

    def __init__(self, encoder: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(n, k)`` of raw rows ``(n, d)``."""
        return self.network(self.encoder(inputs))


def _check_ending(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise InputError(f"The file must end in {' or '.join(SUFFIXES)}; got {path.name!r}.")
    if path.suffix == ".onnx":
        missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]
        if missing:
            raise InputError(
                f"Export to ONNX needs {', '.join(missing)}. {how_to_install(*missing)}, or export to a "
                ".pt2 file."
            )


def _prepare(
    model: nn.Module | AutoBalanceClassifier, example: Any
) -> tuple[nn.Module, Tensor, Tensor, dict[str, Any]]:
    """The module to write, inputs to check it on, what it must return for them, and the table."""
    table = table_input_of(model)
    if table is None and isinstance(model, nn.Module):
        _refuse_inner_network(model)
    network = model if isinstance(model, nn.Module) else fitted_network(model)
    twin = copy.deepcopy(network).cpu().eval()
    if table is None or table.encoder is None:
        if example is None and table is not None:
            example = table.rows
        inputs = _inputs(example)
        with torch.no_grad():
            return twin, inputs, twin(inputs), _contents(model, table)
    encoder = table.encoder
    if isinstance(model, nn.Module):
        rows = _rows_of_table(table, example)
    else:
        rows = table.rows if example is None else table.program_rows(model, example)
    raw = _inputs(rows)
    with torch.no_grad():
        expected = twin(torch.from_numpy(encoder.encode(raw.numpy())))
    if bool((raw.float().double().eq(raw) | raw.isnan()).all()):
        raw = raw.float()  # What ONNX Runtime and others take most readily, where nothing is lost.
    return _TableProgram(encoder.as_module(), twin).eval(), raw, expected, _contents(model, table)


def _rows_of_table(table: TableInput, example: Any) -> Any:
    """Rows for a network that came from a table and is given without its classifier."""
    rows = np.asarray(example.cpu() if isinstance(example, Tensor) else example)
    if rows.ndim == 2 and rows.dtype.kind in "biuf":
        rows = rows.astype(np.float64)
        encoder = table.encoder
        # Where rows could be either, as those of a table that was standardised before, nothing is guessed.
        if encoder is not None and encoder.is_raw(rows) and not encoder.is_encoded(rows):
            return rows
    raise InputError(_NEEDS_ENCODER)


def _refuse_inner_network(model: nn.Module) -> None:
    """Refuse a module around a network that came from a table, unless it holds the encoder too."""
    if any(isinstance(m, TableLayer) for m in model.modules()):
        return
    if any(table_input_of(m) is not None for m in model.modules()):
        raise InputError(_NEEDS_ENCODER)


def _inputs(example: Any) -> Tensor:
    if example is None:
        raise InputError(
            "This classifier was read from a RUN, which holds no rows to check the file on. Pass some: "
            "export_model(classifier, X, path)."
        )
    inputs = as_tensor("example", example).detach().cpu()
    if inputs.ndim < 2 or len(inputs) < 2:
        raise InputError(
            f"example must hold at least two inputs, (n, ...); got shape {tuple(inputs.shape)}."
        )
    return inputs


def _contents(model: Any, table: TableInput | None) -> dict[str, Any]:
    """What a reader of the file needs to know: columns, categories and classes."""
    contents: dict[str, Any] = {}
    if isinstance(model, AutoBalanceClassifier):
        contents["labels" if model.of_labels else "classes"] = model.classes_.tolist()
    if table is not None and table.encoder is not None:
        contents |= {"columns": table.encoder.columns, "categories": table.encoder.categories}
    return contents


def _write_program(model: nn.Module, inputs: Tensor, path: Path, contents: dict[str, Any]) -> Any:
    """Write by `torch.export`; what was written, as a function."""
    batch = torch.export.Dim("batch", min=1)
    program = _try_export(
        lambda: torch.export.export(model, (inputs,), dynamic_shapes=({0: batch},))
    )
    torch.export.save(program, path, extra_files={"table.json": to_json(contents)})
    return torch.export.load(path).module()


def _write_onnx(model: nn.Module, inputs: Tensor, path: Path, contents: dict[str, Any]) -> Any:
    """Write by `torch.onnx`; what was written, as a function that ONNX Runtime runs."""
    onnxruntime: Any = import_module("onnxruntime")
    batch = torch.export.Dim("batch", min=1)
    program: Any = _try_export(
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
    program.model.metadata_props["table"] = to_json(contents)
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {"inputs": x.numpy()})[0]))


def _try_export(export: Any) -> Any:
    """What it returns; torch's exporters raise errors of many kinds where a network is beyond them."""
    try:
        with warnings.catch_warnings():  # about torch's own insides
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return export()
    except ImportError as error:
        raise InputError(
            f"torch's exporter needs a package that is missing or too old here: {error}. "
            f"{how_to_install('onnx', 'onnxscript', 'onnxruntime', upgrade=True)}."
        ) from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"This network cannot be exported: {reason} Its forward must not choose its way by the "
            "values of tensors, nor depend on the batch size."
        ) from error


def _check_same(logits: Tensor, expected: Tensor, of_labels: bool) -> None:
    largest = max(1.0, float(expected.abs().max()))
    close = logits.shape == expected.shape and bool(
        ((logits - expected).abs() <= _TOLERANCE * largest).all()
    )
    if not close:
        raise InputError(
            "The exported network gives other logits than the network itself. Does its forward draw "
            "at random, or depend on the batch size?"
        )
    if of_labels:  # decided by their sign; one that rounding alone decides is as good as 0
        logits, expected = (torch.stack([torch.zeros_like(f), f], 1) for f in (logits, expected))
    decided, wanted = logits.argmax(dim=1), expected.argmax(dim=1)
    # Where two classes are as good as equal, rounding alone may decide.
    lead = expected.gather(1, wanted.unsqueeze(1)) - expected.gather(1, decided.unsqueeze(1))
    if bool((lead > 2 * _TOLERANCE * largest).any()):
        raise InputError("The exported file decides otherwise than predict. Please report this.")
