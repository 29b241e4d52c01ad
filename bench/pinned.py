"""Records what a change of autobalance's structure must leave as it is, bit for bit.

Every entry runs a part of the library on a fixed problem with a fixed seed, by one thread on the
CPU, and keeps what came out: the losses found, predictions, logits, errors, histories. It uses the
command line and the public names of `autobalance` only, so it also runs after files have moved.

    python bench/pinned.py --data DIR --json FILE [--only NAME ...]    # write the record
    python bench/pinned.py --data DIR --check FILE [--only NAME ...]   # compute again and compare

DIR is the data folder of `autobalance compare`; without the option AUTOBALANCE_DATA is used, and
only the entries named cell-... need it. Entries that FILE has are not computed again unless --only
names them. A check prints "same" for each entry, or the values that differ, and exits with 1 where
any does. Bits depend on the versions of the libraries and on the kind of processor as well: record
and check on one machine, with one environment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from sklearn.datasets import load_digits
from torch import Tensor, nn

import autobalance
from autobalance import ArrayData, Recipe, retrain, retrain_head, search, search_head

Values = dict[str, Any]
"""What an entry pins: single values as they are, arrays and lists as `digest` describes them."""

CELL_DATASETS = ("yeast", "letter-lt-100")
CELL_METHODS = (
    "autobalance",
    "autobalance_plain",
    "logit_adjustment",
    "ldam_drw",
    "autobalance_folds",
)
CELL_RECIPE = {"epochs": 30, "min_steps": 500}
"""The recipe of the benchmark suite."""
NOT_PINNED = ("seconds", "cpu_seconds", "versions", "command", "per_class")
"""Keys left out at every depth: they differ from run to run, name paths, or only repeat others."""
FIRST = 10
"""So many numbers of an array are written out for a reader."""


def demo(seed: int, data: str | None) -> Values:
    """The demo's ``result.json`` of one seed: five methods on the images in the package, and the search."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        command_line("demo", "--out", str(out), "--seed", str(seed), "--seeds", "1")
        return values_of(read_json(out / "result.json"))


def cell(dataset: str, method: str, data: str | None) -> Values:
    """One cell of a comparison with seed 0, as ``cells.jsonl`` holds it."""
    with tempfile.TemporaryDirectory() as folder:
        config, out = Path(folder) / "compare.yaml", Path(folder) / "comparison"
        chosen = {"datasets": [dataset], "methods": [method], "seeds": 1, "recipe": CELL_RECIPE}
        config.write_text(yaml.safe_dump(chosen), encoding="utf-8")
        where = [] if data is None else ["--data", data]
        options = ["--out", str(out), "--jobs", "1", "--threads", "1", "--device", "cpu"]
        command_line("compare", str(config), *where, *options)
        return values_of(read_json(out / "cells.jsonl"))


def frontier_adult(data: str | None) -> Values:
    """Decisions under bounds on the gap between groups, on the sample of Adult in the package.

    It pins the frontier, and what the decision kept for a gap of 5 points predicts of the sample.
    """
    [table] = Path(autobalance.__file__).parent.rglob("adult_sample.csv.gz")
    with tempfile.TemporaryDirectory() as folder:
        out, predictions = Path(folder) / "run", Path(folder) / "predictions.parquet"
        columns = ["--target", "income", "--groups", "sex", "--by", "decisions"]
        options = ["--max-gap", "0.05", "--device", "cpu", "--out", str(out)]
        command_line("frontier", str(table), *columns, *options)
        command_line("predict", str(out), str(table), "--out", str(predictions))
        predicted = pd.read_parquet(predictions)
        kept = read_json(out / "result.json")["frontier"]["kept"]
        return {
            **values_of(read_json(out / "frontier.json")),
            **values_of(kept, "kept"),
            "predictions": digest(predicted["prediction"].astype(str).tolist()),
            "probabilities": digest(predicted.drop(columns="prediction").to_numpy()),
        }


def head_digits(data: str | None) -> Values:
    """A linear head's exact search with its final choice; a head trained with the loss designed."""
    train, target, test, test_target = digits()
    features = ArrayData.of(train.flatten(1), target)
    result = search_head(features, folds=3, seed=0, device="cpu")
    [designed] = [c.loss for c in result.candidates if c.name == "designed"]
    head = retrain_head(features, designed, device="cpu")
    return searched(result, head(test.flatten(1)), test_target)


def personalised_digits(data: str | None) -> Values:
    """An augmentation for each class learned with the loss, and a network trained with both."""
    train, target, test, test_target = digits()
    images = ArrayData.of(train, target)
    common: Any = {"recipe": Recipe(epochs=20, min_steps=200), "seed": 0, "device": "cpu"}
    result = search(small_network, images, augment="personalised", **common)
    model = retrain(small_network, images, result.loss, augment=result.augment, **common)
    return searched(result, model(test), test_target)


ENTRIES: dict[str, Callable[[str | None], Values]] = {
    "head-digits": head_digits,
    "personalised-digits": personalised_digits,
    **{f"demo-{seed}": partial(demo, seed) for seed in range(3)},
    "frontier-adult": frontier_adult,
    **{f"cell-{d}-{m}": partial(cell, d, m) for d in CELL_DATASETS for m in CELL_METHODS},
}
"""From an entry's name to what computes it from the data folder."""


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels of digits: long-tailed to train, 100 to 10 a class; 60 of each to test."""
    bunch: Any = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16.0
    target = torch.from_numpy(bunch.target).long()
    members = [torch.nonzero(target == k).squeeze(1) for k in range(10)]
    test = torch.cat([rows[:60] for rows in members])
    kept = [round(100 * 0.1 ** (k / 9)) for k in range(10)]
    train = torch.cat([rows[60 : 60 + n] for rows, n in zip(members, kept, strict=True)])
    return images[train], target[train], images[test], target[test]


def small_network() -> nn.Module:
    """A network for the images of `digits`, with one convolution and BatchNorm."""
    convolution = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(convolution, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def searched(result: autobalance.SearchResult, logits: Tensor, target: Tensor) -> Values:
    """The record of a search, and the logits and errors of what was trained with its loss."""
    wrong = (logits.argmax(dim=1) != target).double()
    by_class = [float(wrong[target == k].mean()) for k in range(10)]
    return {
        **values_of(json.loads(result.to_json())),
        "test.logits": digest(logits.detach().double().numpy()),
        "test.balanced_error": float(np.mean(by_class)),
        "test.class_errors": digest(by_class),
    }


def values_of(record: Any, name: str = "") -> Values:
    """A JSON record as flat values, each under the keys that lead to it with dots between.

    A list of records counts as a record of lists, so that a key more changes no other value.
    """
    if isinstance(record, list) and record and all(isinstance(entry, dict) for entry in record):
        keys = dict.fromkeys(key for entry in record for key in entry)
        record = {key: [entry.get(key) for entry in record] for key in keys}
    if not isinstance(record, dict):
        return {name: digest(record) if isinstance(record, list) else record}
    found: Values = {}
    for key, value in record.items():
        if key not in NOT_PINNED:
            found |= values_of(value, f"{name}.{key}" if name else key)
    return found


def digest(value: np.ndarray | list[Any]) -> Values:
    """SHA-256 of a list or array, with its shape, first numbers and mean for a reader.

    Of numbers the digest is of their bytes in float64, row by row, which holds float32 exactly;
    of other lists of their JSON text, which has every digit of a number.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        array = np.empty(0)
    if array.dtype.kind not in "biuf" or not array.size:
        text = json.dumps(value, sort_keys=True)
        return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "begins": text[:80]}
    numbers = np.ascontiguousarray(array, dtype=np.float64)
    return {
        "sha256": hashlib.sha256(numbers.tobytes()).hexdigest(),
        "shape": list(numbers.shape),
        "first": [float(f"{number:.6g}") for number in numbers.ravel()[:FIRST]],
        "mean": float(f"{numbers.mean():.6g}"),
    }


def command_line(*arguments: str) -> None:
    """Run ``autobalance`` with these arguments; end with what it said where it fails."""
    command = [sys.executable, "-m", "autobalance", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"autobalance {' '.join(arguments)}\n{done.stderr}")


def read_json(path: Path) -> Any:
    """The record in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def cpu_seconds() -> float:
    """Processor time of this process so far, and of those it started that have ended."""
    spent = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def environment() -> str:
    """What besides autobalance decides the bits: versions, and the processor's instructions."""
    instructions = torch.backends.cpu.get_cpu_capability()
    versions = f"torch {torch.__version__}, numpy {np.__version__}, pandas {pd.__version__}"
    return f"Python {platform.python_version()}, {versions}, {instructions}"


def write(path: Path, names: list[str] | None, data: str | None) -> None:
    """Compute the entries that the record lacks, or those named, and keep each as it ends."""
    record: dict[str, Any] = read_json(path) if path.exists() else {}
    for name in names or [n for n in ENTRIES if n not in record]:
        begun = cpu_seconds()
        values = ENTRIES[name](data)
        spent = round(cpu_seconds() - begun, 1)
        record[name] = {"made_with": environment(), "cpu_seconds": spent, "values": values}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {spent} CPU seconds", flush=True)


def check(path: Path, names: list[str] | None, data: str | None) -> int:
    """Compute the record's entries again, or those named; 1 where a value differs, else 0."""
    record: dict[str, Any] = read_json(path)
    code = 0
    for name in names or record:
        then = record.get(name, {"made_with": "nothing", "values": {}})
        now = json.loads(json.dumps(ENTRIES[name](data)))
        keys = {**then["values"], **now}
        lines = [(key, then["values"].get(key, "absent"), now.get(key, "absent")) for key in keys]
        changed = [line for line in lines if line[1] != line[2]]
        print(f"{name}: {f'{len(changed)} of {len(keys)} values differ' if changed else 'same'}")
        if changed and then["made_with"] != environment():
            print(f"  recorded with {then['made_with']}; this is {environment()}")
        for key, before, after in changed:
            print(f"  {key}\n    then {before}\n    now  {after}")
        sys.stdout.flush()
        code = code or int(bool(changed))
    return code


def main() -> int:
    """Read the options, and write the record or check it."""
    if os.environ.get("OMP_NUM_THREADS") != "1":  # read when torch is imported: so begin anew
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], one_thread)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="data folder of `autobalance compare`")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--json", type=Path, help="file to write the record to")
    what.add_argument("--check", type=Path, help="record to compare with")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*ENTRIES], help="entries")
    options = parser.parse_args()
    if options.check is not None:
        return check(options.check, options.only, options.data)
    write(options.json, options.only, options.data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
