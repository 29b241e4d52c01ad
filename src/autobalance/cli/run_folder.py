"""RUN folders: what a fit leaves on disk. JSON and safetensors, never a pickle.

``result.json`` is the record that the report shows, ``evaluation.json`` what test data said of it
since, ``model.json`` says how to build the network and its inputs, ``model.safetensors`` holds the
weights, ``loss.json`` the loss alone, ``samples.json`` some training images that an augmentation was
learned for. Decisions on scores have an ``adjustment.json`` in place of a loss, and where the scores
are a classifier's, that classifier in a format of its own, see `autobalance.cli.estimators`. Each file
is written whole or not at all, and what belongs together takes its place together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from autobalance._validation import InputError, array_of_numbers, instance, path_of, shown
from autobalance.augment import sample_sheet
from autobalance.bilevel import SearchResult
from autobalance.cli import adjusted_run, estimators, label_estimators
from autobalance.cli.adjusted_run import ADJUSTMENT, AdjustedModel, load_adjusted
from autobalance.data import ArrayData, TableEncoder
from autobalance.losses import NormalizedLinear, last_linear, with_normalized_head
from autobalance.networks import TableNetwork, with_new_head
from autobalance.posthoc import CellDecision
from autobalance.records import (
    RESULT,
    output_folder,
    read_json,
    read_record,
    remove_parts,
    run_status,
    to_json,
    write_together,
)
from autobalance.report import EVALUATION, REPORT, SAMPLES, pack_sheet, read_folder, write_report
from autobalance.sklearn import AutoBalanceClassifier, TableInput, mark

MODEL, WEIGHTS, LOSS = "model.json", "model.safetensors", "loss.json"
_FORMAT = "autobalance-run"
_FORMATS = (_FORMAT, adjusted_run.FORMAT)
_ALL = {
    MODEL, WEIGHTS, LOSS, REPORT, EVALUATION, SAMPLES, ADJUSTMENT, *estimators.FILES, label_estimators.FILE,
}  # fmt: skip
Model = AutoBalanceClassifier | AdjustedModel
"""What a RUN folder may hold."""


def write_run(
    folder: Path, record: dict[str, Any], files: Mapping[str, bytes] | None = None
) -> bool:
    """Write ``result.json``, the files that belong to it, and its report; remove all others of a run.

    A finished run in the folder is replaced by a finished one only: under one that was interrupted,
    diverged or failed it stays as it is, and the answer is False.
    """
    if record["status"] != "finished" and run_status(folder) == "finished":
        return False
    files = {**(files or {}), RESULT: to_json(record, indent=1).encode()}
    write_together(folder, files)
    remove_parts(folder)
    for name in _ALL - files.keys():
        (folder / name).unlink(missing_ok=True)
    write_report(read_folder(folder) if SAMPLES in files else record, folder / REPORT)
    return True


def save_search(
    folder: str | Path,
    result: SearchResult,
    data: ArrayData | None = None,
    *,
    class_names: Sequence[Any] | None = None,
    group_names: Sequence[Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a search of your own as a RUN folder, with its report.

    ``autobalance report`` and ``autobalance explain`` take it as they take a fit; there is no network
    in it to predict with.

    Parameters
    ----------
    folder : path
        Made where it does not exist.
    result : SearchResult
        Of `search` or `search_head`, or `AutoBalanceClassifier.result_`.
    data : ArrayData, optional
        What it searched on. Where the search learned an augmentation of images, the folder then keeps
        a few of them, of at most 12 classes and 48 pixels wide, for the report to show beside their
        augmented versions. Without it no data is kept.
    class_names, group_names : sequence, optional
        In the order of their indices; by default "class 0" and so on.
    overwrite : bool
        Write into a folder that is not empty.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    InputError
        If the folder is not empty, or the data are of other classes than the search's.
    """
    instance("result", result, SearchResult, "Such as search(...) returns.")
    out = output_folder(folder, overwrite=overwrite)
    files = {LOSS: result.loss.to_json().encode()}
    if data is not None:
        sheet = sample_sheet(result.augment, data)
        if sheet is not None:
            files[SAMPLES] = pack_sheet(sheet)
    write_run(out, {**result.record(class_names, group_names), "status": result.status}, files)
    return out / REPORT


def _check_description(description: dict[str, Any]) -> None:
    """Refuse a ``model.json`` whose values are of other kinds than were written."""
    classes, groups = description["classes"], description["groups"]
    if not isinstance(classes, list) or len(classes) < 2 or len({type(c) for c in classes}) > 1:
        raise TypeError("classes are no list of labels")
    if not isinstance(classes[0], (str, int, float)):
        raise TypeError("classes are no list of labels")
    if not isinstance(groups, (list, type(None))) or not isinstance(
        description["target"], (str, list)
    ):
        raise TypeError("groups are no list, or target is no name")
    columns = description["encoder"]["columns"]
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise TypeError("columns are no list of names")


def save_run(
    folder: str | Path,
    classifier: AutoBalanceClassifier,
    record: dict[str, Any],
    *,
    target: str | list[str],
) -> bool:
    """Write a fit on a table, or what there is of an interrupted one, by the rule of `write_run`.

    After an interrupted search the classifier has no network yet. `target` is the name of the target
    column, or those of several labels. Returns whether it was written: False leaves an earlier, finished run
    in its place.
    """
    module = getattr(classifier, "module_", None)
    decision, network = None, module
    # Decisions are no loss, and a file that says cross-entropy would pass for what was designed.
    decides = isinstance(module, CellDecision)
    files = {} if decides else {LOSS: classifier.loss_.to_json().encode()}
    if decides:
        decision = {"seed": module.seed}
        network = module.network
    if isinstance(network, TableNetwork) and classifier.encoder_ is not None:
        head = last_linear(network)[1]
        scale = head.scale if isinstance(head, NormalizedLinear) else None
        description = {
            "format": _FORMAT,
            "version": 1,
            "target": target,
            "classes": classifier.classes_.tolist(),
            "groups": classifier.groups_,
            "network": network.settings,
            "cosine_scale": scale,
            "decision": decision,
            "encoder": classifier.encoder_.to_dict(),
        }
        assert module is not None
        files[WEIGHTS] = safetensors.torch.save(module.state_dict())
        files[MODEL] = to_json(description).encode()
    return write_run(Path(folder), record, files)


def save_adjusted(
    folder: Path, model: AdjustedModel, record: dict[str, Any], *, target: str | list[str]
) -> None:
    """Write decisions on scores, with the classifier that gives the scores if there is one."""
    files = {
        name: content if isinstance(content, bytes) else to_json(content).encode()
        for name, content in model.files(target).items()
    }
    write_run(folder, {**record, **model.record()}, files)


def _build_network(description: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """The network that ``model.json`` describes, for these weights."""
    network: nn.Module = TableNetwork(**description["network"])
    scale = description.get("cosine_scale")  # earlier releases had none
    if scale is not None:
        network = with_normalized_head(network, scale)
    decision = description.get("decision")  # earlier releases had none
    if decision is None:
        return network
    m, g, k = state["weights"].shape
    if k != len(description["classes"]):
        raise ValueError("decision and classes differ in number")
    cells = with_new_head(network, g * k)
    return CellDecision(cells, np.zeros((m, g, k)), [1.0 / m] * m, decision["seed"])


def load_run(folder: str | Path) -> tuple[Model, dict[str, Any]]:
    """The fitted classifier of a RUN folder, or its decisions on scores, and its record.

    Raises
    ------
    InputError
        If the folder is not a RUN folder, was interrupted before its network was trained, or a
        file of it is altered.
    """
    folder = path_of("The RUN folder", folder)
    record = read_record(folder)
    if record.get("kind") == "demo":
        raise InputError(f"{folder} holds a demo, not a fitted model. `autobalance fit` makes one.")
    if record.get("kind") == "search":
        raise InputError(
            f"{folder} holds a search alone, not a fitted model. Train one with retrain and its loss.json."
        )
    if not (folder / MODEL).is_file():
        raise InputError(
            f"{folder} holds no trained network: its run is {record.get('status', 'unfinished')!r}. "
            "Run `autobalance fit` again, with --resume where it was interrupted, else --overwrite."
        )
    description = read_json(folder / MODEL)
    if description.get("format") not in _FORMATS or description.get("version") != 1:
        raise InputError(f"{folder / MODEL} was not written by this version of autobalance.")
    try:
        if description["format"] == adjusted_run.FORMAT:
            model: Model = load_adjusted(folder, description)
        else:
            model = _load_network(folder, description, record)
    except InputError:
        raise
    except (
        KeyError, IndexError, TypeError, ValueError, AttributeError, OSError, RuntimeError,
        OverflowError, SafetensorError,
    ) as error:  # fmt: skip
        reason = shown((str(error) or type(error).__name__).splitlines()[0])
        raise InputError(f"The run in {folder} is incomplete or altered: {reason}.") from None
    return model, {**record, "target": description["target"]}


def _load_network(
    folder: Path, description: dict[str, Any], record: dict[str, Any]
) -> AutoBalanceClassifier:
    """A fit's classifier; raises errors of many kinds where a file is altered."""
    _check_description(description)
    state = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    network = _build_network(description, state)
    network.load_state_dict(state)
    classifier = AutoBalanceClassifier()
    encoder = TableEncoder.from_dict(description["encoder"])
    classifier.input_ = TableInput(encoder, (len(encoder.columns),))
    classifier.module_ = mark(network.eval(), classifier.input_)
    classifier.classes_ = np.array(description["classes"])
    classifier.groups_ = description["groups"]
    fits = (encoder.num_features, len(description["classes"]))
    if fits != tuple(description["network"][key] for key in ("num_features", "num_classes")):
        raise ValueError("network, encoder and classes differ in number")
    classifier.feature_names_in_ = np.array(encoder.columns, dtype=object)
    classifier.n_features_in_ = len(encoder.columns)
    classifier.adopt(SearchResult.from_dict(record["search"]))
    classifier.class_masses_ = array_of_numbers("class_counts", record["class_counts"])
    if classifier.class_masses_.shape[-1:] != (len(description["classes"]),):
        raise ValueError("class_counts and classes differ in number")
    if classifier.loss_.num_classes not in (None, len(description["classes"])):
        raise ValueError("loss and classes differ in number")
    return classifier
