"""Checkpoints: a run's whole state in one file, without pickle.

A state is a tree of dicts, lists, tensors and plain values. Its tensors go into a safetensors file,
whose header carries the rest as JSON, together with what the run is (its `identity`) and a digest
of everything. Loading runs no code from the file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from autobalance._validation import InputError, path_of
from autobalance.data import ArrayData
from autobalance.functional import ALONE, Processes
from autobalance.records import write_atomically

CHECKPOINT_SECONDS = 30.0
_FORMAT, _VERSION = "autobalance-checkpoint", 2
_OPAQUE = {
    **{name: f"its {name} is another" for name in ("objective", "solver", "loss")},
    "network": "its network has other weights",
    "data": "its training data are others",
    "held": "its validation data are others",
    "test": "its test data are others",
    "space": "its design space is another",
    "augment": "its augmentation is another",
}
# What follows from the settings and data, and is told only where nothing else differs.
_DERIVED = ("steps", "examples", "class_counts", "validation_counts", "space", "network")
_LONGEST = 40  # characters of a value that a message shows


class OtherRun(InputError):
    """A checkpoint was written by a run with other settings or data.

    Attributes
    ----------
    differences : dict
        The values that differ, of the checkpoint and of this run, by their names: "seed",
        "recipe.epochs", "data" and so on.
    """

    def __init__(self, message: str, differences: dict[str, tuple[Any, Any]]) -> None:
        super().__init__(message)
        self.differences = differences

    def __reduce__(self) -> tuple[Any, ...]:  # processes tell each other
        return type(self), (str(self), self.differences)


def save_checkpoint(path: str | Path, state: dict[Any, Any], identity: dict[str, Any]) -> None:
    """Write a run's state, whole or not at all; the previous checkpoint stays until then.

    A state is of nested dicts (keys str or int), lists, tensors, numbers, strings, booleans and None.
    `identity` says what makes it this run and no other, in JSON's types; see `load_checkpoint`.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "identity": identity,
        "tree": _pack(state, tensors),
    }
    header["digest"] = _digest(header, tensors)
    content = safetensors.torch.save(tensors, metadata={"autobalance": json.dumps(header)})
    write_atomically(path, content)
    for stale in path.parent.glob(f".{path.name}.*.part"):
        stale.unlink(missing_ok=True)  # of a run that was killed while writing


def load_checkpoint(path: str | Path, identity: dict[str, Any]) -> dict[Any, Any]:
    """The state saved in a checkpoint of this same run.

    Raises
    ------
    InputError
        If the file is no checkpoint, is truncated or altered, or was written in another version of
        the format. Nothing is written.
    OtherRun
        If it was written by a run of another identity; the message says what differs.
    """
    path = Path(path)
    remedy = "Give another checkpoint file, or remove this one to start anew."
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["autobalance"])
            for name in file.keys():  # noqa: SIM118, a safetensors file is no dict
                tensors[name] = file.get_tensor(name)
        digest = header.pop("digest")
        if header["format"] != _FORMAT:
            raise KeyError("format")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not a checkpoint of autobalance, or is truncated ({error}). {remedy}"
        ) from None
    if header.get("version") != _VERSION:
        raise InputError(
            f"The checkpoint {path} was written in version {header.get('version')!r} of the format; "
            f"this release reads version {_VERSION}. {remedy}"
        )
    if digest != _digest(header, tensors):
        raise InputError(f"The checkpoint {path} was altered: its digest differs. {remedy}")
    differences = _differences(header["identity"], json.loads(json.dumps(identity)))
    if differences:
        places = "; ".join(_describe(key, *values) for key, values in differences.items())
        remedy = "Go on with the settings and data it was written with, or remove it to start anew."
        raise OtherRun(f"The checkpoint {path} is of another run: {places}. {remedy}", differences)
    return _unpack(header["tree"], tensors)


class Digested(Protocol):
    """What is no tensor but can tell itself from others, such as inputs in files."""

    def digest(self) -> str:
        """A text that others of another content do not have."""
        ...


def fingerprint(*tensors: Tensor | Digested | None) -> str:
    """Digest of the tensors' values, shapes and types."""
    digest = hashlib.sha256()
    for tensor in tensors:
        for part in _bytes(tensor):
            digest.update(part)
    return digest.hexdigest()


def random_state() -> dict[str, Any]:
    """State of torch's global random generators; of GPUs' only where one is in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.random.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`."""
    torch.random.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(item, tensors) for item in value]}
    return {"value": value}


def _unpack(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    if kind == "list":
        return [_unpack(item, tensors) for item in content]
    return content


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        for part in _bytes(tensors[name]):
            digest.update(part)
    return digest.hexdigest()


def _bytes(tensor: Tensor | Digested | None) -> Iterator[bytes | memoryview]:
    if not isinstance(tensor, Tensor):
        yield b"none" if tensor is None else tensor.digest().encode()
        return
    yield f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _differences(saved: Any, expected: Any) -> dict[str, tuple[Any, Any]]:
    """Values that differ, by their place; without what follows from others that differ."""
    every = _leaves(saved, expected, "")
    causes = {key: values for key, values in every.items() if key not in _DERIVED}
    return causes or every


def _leaves(saved: Any, expected: Any, at: str) -> dict[str, tuple[Any, Any]]:
    if saved == expected:
        return {}
    if at in _OPAQUE or not (isinstance(saved, dict) and isinstance(expected, dict)):
        return {at: (saved, expected)}
    differing = {}
    for key in dict.fromkeys([*expected, *saved]):
        # The settings are a search's own; users know them without that word.
        place = key if at in ("", "settings") else f"{at}.{key}"
        differing |= _leaves(saved.get(key), expected.get(key), place)
    return differing


def _describe(key: str, saved: Any, expected: Any) -> str:
    if key in _OPAQUE:
        return _OPAQUE[key]
    was, now = json.dumps(saved), json.dumps(expected)
    if max(len(was), len(now)) > _LONGEST:
        return f"its {key} is another"
    return f"its {key} is {was}, this run's is {now}"


def describe(module: nn.Module, data: ArrayData) -> dict[str, Any]:
    """The parts of a run's identity that come from the network and the data."""
    shapes = {name: list(value.shape) for name, value in module.state_dict().items()}
    return {
        "network": shapes,
        "data": fingerprint(data.inputs, data.target, data.groups, data.sample_weight),
        "torch": torch.__version__,
    }


class Checkpoint:
    """Where a run keeps its state, and when.

    Without a path nothing is kept. `identity` returns what makes it this run and no other, and `state`
    the run's state, beside the global random state, which is kept with it. Of processes that train
    together the first one writes and reads, for all of them; the others need no file.
    """

    def __init__(
        self,
        path: str | Path | None,
        identity: Callable[[], dict[str, Any]],
        state: Callable[[], dict[str, Any]],
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.path = processes.run_on_rank_zero(lambda: None if path is None else _writable(path))
        self.identity = identity() if self.path else {}
        self.state = state
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state of an earlier run, its random state restored; None where there is none.

        Raises
        ------
        InputError
            If the file is no checkpoint, or not of this run in each of the processes.
        """
        if self.path is None:
            return None
        identities = self.processes.all_gather_objects(self.identity)
        saved = self.processes.run_on_rank_zero(lambda: self._read(identities))
        if saved is None:
            return None
        set_random_state(saved["random"])
        rank = self.processes.rank
        if rank > 0:  # the state is the first process's, whose draws are not for all
            torch.manual_seed(int(torch.randint(2**62, ())) + rank)
        return saved["state"]

    def _read(self, identities: list[dict[str, Any]]) -> dict[str, Any] | None:
        """What the file holds, which must be of each of these runs; None where there is no file."""
        if self.path is None or not self.path.exists():
            return None
        distinct = [run for i, run in enumerate(identities) if run not in identities[:i]]
        saved, *_ = [load_checkpoint(self.path, run) for run in distinct]  # each is checked
        return saved

    def save_if_due(self) -> None:
        """Save where the last time is `CHECKPOINT_SECONDS` ago."""
        if time.monotonic() - self._last >= CHECKPOINT_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the present state; the first process does, for all."""
        if self.path is not None and self.processes.rank == 0:
            tree = {"state": self.state(), "random": random_state()}
            save_checkpoint(self.path, tree, self.identity)
            self._last = time.monotonic()


def _writable(path: str | Path) -> Path:
    """A checkpoint's path. What cannot be written is said now, and not when there is work to lose."""
    path = path_of("checkpoint", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The checkpoint {path} cannot be written: {error}.") from None
    if path.is_dir():
        raise InputError(f"The checkpoint {path} is a folder; give the name of a file.")
    return path
