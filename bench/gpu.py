"""What a search costs on one GPU: images per second, upper steps, memory, and the share of its peak.

    python bench/gpu.py [--quick] [--json FILE] [--data DIR] [--compile] [--channels-last] [--augment]
    python bench/gpu.py --whole --epochs 100 --batch 128 --precision bf16-mixed
    python bench/gpu.py --table --data DIR --out FOLDER [--subset short] [--jobs 8]

ResNet-32 on 32 x 32 images, made up or with --data Fashion-MNIST at imbalance 100. "plain" is training
with cross-entropy, "search" what `search` does by default: a warm-up of 30 %, an upper step every
fifth training step, 128 validation images. Both are whole runs of --steps steps of networks that
stand ready, timed by the clock around work that is waited for; they take turns, and a ratio is taken
within a turn before the median over turns. An upper step is timed between training steps, less
training alone beside it. Memory is the most that torch's allocator held above what it held before,
data and optimiser included. With --augment both train on random crops and flips. The share of the peak
counts the network's own multiplications and
additions of one step (torch.utils.flop_counter), against the card's dense tensor-core peak: of bfloat16,
and of TF32, which torch lets convolutions take by default, for 32-true.

"kernels" are the operations of a step that start one (in float32, not compiled): a small network on a
large card takes as long as it takes to start them.

--whole times `search` and `retrain` from start to end. --table runs bench/fashion_resnet32.yaml.
Without a GPU everything runs on the CPU at toy sizes, by processor time: only to test the script.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autobalance.bilevel.execution import make_fabric, seed_random_state
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER, LossTuner
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.bilevel.network_search import build_network_search, search
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.cli import main as autobalance
from autobalance.data.array_data import ArrayData
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.networks import ResNet32
from autobalance.objectives.aggregates import BalancedError
from autobalance.records.settings import Precision, Recipe, SearchSettings
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from autobalance_bench.augmentations import StandardAugmentation
from autobalance_bench.comparison.configuration import read_configuration, resolved
from autobalance_bench.comparison.datasets import load_problem
from autobalance_bench.comparison.methods import ExecutionOptions
from measuring import (
    cpu_seconds,
    length_of,
    long_tailed_noise,
    operations,
    options_of,
    peak_bytes,
    prepare,
    write_json,
)

TABLE = Path(__file__).with_name("fashion_resnet32.yaml")
CLASSES = 10
PEAKS = {  # dense TFLOP/s: bfloat16, TF32; a name stands before those that it contains
    "B200": (2250.0, 1125.0),
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100 NVL": (835.0, 417.0),
    "H100": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "A40": (150.0, 75.0),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 62.5),
    "L40S": (362.0, 183.0),
    "L4": (121.0, 60.0),
    "RTX 4090": (165.0, 82.6),
    "RTX 3090": (71.0, 35.6),
}
"""By a part of the card's name, from NVIDIA's data sheets."""
PRECISIONS: tuple[Precision, ...] = ("bf16-mixed", "32-true")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes
    ----------
    side, images : int
        Of made-up images: height and width, and their number.
    batches : tuple of int
        Batch sizes.
    steps, turns, warm_up : int
        Training steps of a run, runs of each kind, and steps before the first.
    """

    side: int
    images: int
    batches: tuple[int, ...]
    steps: int
    turns: int
    warm_up: int


FULL = Sizes(side=32, images=12_400, batches=(128, 1024), steps=200, turns=5, warm_up=30)
QUICK = Sizes(side=32, images=12_400, batches=(128, 1024), steps=100, turns=2, warm_up=20)
TOY = Sizes(side=8, images=60, batches=(8,), steps=10, turns=1, warm_up=1)


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    device: str
    precision: Precision
    batch: int
    compiled: bool
    channels_last: bool
    augmented: bool = False

    def augment(self) -> nn.Module | None:
        return StandardAugmentation() if self.augmented else None

    def factory(self, channels: int) -> Callable[[], nn.Module]:
        how = ExecutionOptions(channels_last=self.channels_last, compiled=self.compiled)
        return how.apply(lambda: ResNet32(CLASSES, channels=channels))

    def recipe(self, steps: int) -> Recipe:
        return Recipe(epochs=1e-6, min_steps=steps, batch_size=self.batch)

    def seconds(self, action: Callable[[], Any]) -> float:
        """By the clock on a GPU, all work done; on a CPU the processor's time."""
        if self.device != "cuda":
            return cpu_seconds(action)
        torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def peak(self, action: Callable[[], Any]) -> int:
        """Bytes held at most above those held before."""
        if self.device != "cuda":
            return peak_bytes(action)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before


class Plain:
    """Training with cross-entropy, and upper steps beside it."""

    def __init__(self, setting: Setting, data: ArrayData, steps: int) -> None:
        self.fabric = make_fabric(setting.device, setting.precision)
        self.steps = steps
        on_device = data.to(self.fabric.device)
        with seed_random_state(0):
            self.lower = LowerLevel(
                setting.factory(data.inputs.shape[1]),
                on_device,
                TrainingOptions(setting.recipe(steps)),
                self.fabric,
                augment=setting.augment(),
            )
        self.loss = ParametricCrossEntropy.cross_entropy().to(self.fabric.device)
        counts = data.counts().clip(min=1)
        tuned = TunableCrossEntropy(HierarchicalSpace(counts)).to(self.fabric.device)
        self.tuner = LossTuner(tuned, optimizer=self.lower.optimizer, validation_counts=counts)
        size = min(SearchSettings().validation_batch_size, len(data))
        self.held = on_device.batch(torch.arange(size, device=self.fabric.device))

    def train(self, steps: int | None = None) -> None:
        steps = steps or self.steps
        self.lower.restart(steps)
        for _ in range(steps):
            self.lower.step(self.loss)

    def upper(self) -> None:
        with self.fabric.autocast():
            done = self.tuner.step(self.lower.network, self.lower.recent[-1], self.held)
        assert not done.skipped, "a hypergradient was not finite"

    def train_and_upper(self, times: int) -> None:
        self.lower.restart(times)
        for _ in range(times):
            self.lower.step(self.loss)
            self.upper()


class Searching:
    """A search with default settings, which can be run again and again from where it is."""

    def __init__(self, setting: Setting, data: ArrayData, steps: int) -> None:
        self.settings = SearchSettings()
        with seed_random_state(0):
            self.run = build_network_search(
                SearchSpec(
                    model_factory=setting.factory(data.inputs.shape[1]),
                    data=data,
                    recipe=setting.recipe(steps),
                    settings=self.settings,
                    device=setting.device,
                    augment=setting.augment(),
                    precision=setting.precision,
                )
            )

    def whole(self) -> None:
        self.run.switch_objective(BalancedError(), 1.0)
        self.run.warmup = max(1, round(self.settings.warmup * self.run.total))
        self.run.run()


def flops(setting: Setting, data: ArrayData) -> tuple[int, int]:
    """Of one training step and of one upper step; in any precision and layout they are as many."""
    # The counter sees into no compiled network, and not through autocast in forward mode.
    simple = replace(setting, precision="32-true", compiled=False, channels_last=False)
    plain = Plain(simple, data, 4)
    plain.train_and_upper(2)  # these search along a line, later ones mostly do not
    found = []
    for action in (lambda: plain.train(1), plain.upper):
        with FlopCounterMode(display=False) as counter:
            action()
        found.append(counter.get_total_flops())
    return found[0], found[1]


def kernels(setting: Setting, data: ArrayData) -> dict[str, int]:
    """How many one training step starts, and one upper step without and with a line search."""
    plain = Plain(replace(setting, precision="32-true", compiled=False), data, 4)
    for group in plain.lower.optimizer.param_groups:
        group["foreach"] = True  # the default on a GPU
    plain.train_and_upper(2 * length_of(DEFAULT_SOLVER))  # lines are searched more often at first
    plain.lower.restart(1)
    plain.lower.step(plain.loss)
    found = [operations(plain.upper) for _ in range(length_of(DEFAULT_SOLVER))]
    # The second step's, because the first of a run also checks what the network returns.
    one, two = (operations(partial(plain.train, steps)) for steps in (1, 2))
    return {
        "training_step_kernels": two - one,
        "upper_step_kernels": min(found),
        "line_search_kernels": max(found),
    }


def measured(
    setting: Setting, data: ArrayData, sizes: Sizes, peak: float | None
) -> dict[str, float | None]:
    """The numbers of one row; `peak` in FLOP/s."""
    short = max(2, sizes.warm_up)

    def trained() -> None:
        Plain(setting, data, short).train()

    def searched() -> None:
        Searching(setting, data, max(short, 10)).whole()

    memory, search_memory = setting.peak(trained), setting.peak(searched)
    train_flops, upper_flops = flops(setting, data)

    plain = Plain(setting, data, sizes.steps)
    plain.train(sizes.warm_up)
    uppers = max(8, sizes.steps // 8)  # whole periods of the line search
    plain.train_and_upper(min(uppers, sizes.warm_up))
    searching = Searching(setting, data, sizes.steps)
    searching.whole()
    turns = []
    for _ in range(sizes.turns):
        step = setting.seconds(plain.train) / sizes.steps
        both = setting.seconds(lambda: plain.train_and_upper(uppers)) / uppers
        found = setting.seconds(searching.whole) / sizes.steps
        turns.append((step, both - step, found, len(searching.run.recorder.history) / sizes.steps))
    plain_step, upper_step, search_step = (median(t[i] for t in turns) for i in range(3))
    share = turns[-1][3]
    return {
        "plain_images_per_second": setting.batch / plain_step,
        "search_images_per_second": setting.batch / search_step,
        "search_ratio": median(t[2] / t[0] for t in turns),
        "upper_step_ratio": median(t[1] / t[0] for t in turns),
        "plain_step_seconds": plain_step,
        "upper_step_seconds": upper_step,
        "plain_memory_bytes": memory,
        "search_memory_bytes": search_memory,
        "memory_ratio": search_memory / memory,
        "data_bytes": data.inputs.nbytes,
        **kernels(setting, data),
        "training_step_flops": train_flops,
        "upper_step_flops": upper_flops,
        "plain_share_of_peak": None if peak is None else train_flops / plain_step / peak,
        "search_share_of_peak": None
        if peak is None
        else (train_flops + share * upper_flops) / search_step / peak,
    }


def whole(setting: Setting, data: ArrayData, epochs: float) -> dict[str, float]:
    """Seconds of a search, and of a training run on all data, from start to end."""
    recipe = Recipe(epochs=epochs, min_steps=1, batch_size=setting.batch)
    factory = setting.factory(data.inputs.shape[1])
    common: dict[str, Any] = {
        "recipe": recipe,
        "device": setting.device,
        "precision": setting.precision,
        "augment": setting.augment(),
    }
    loss = ParametricCrossEntropy.cross_entropy()
    plain = setting.seconds(lambda: retrain(factory, data, loss, **common))
    searching = setting.seconds(lambda: search(factory, data, **common))
    return {"epochs": epochs, "images": len(data), "retrain": plain, "search": searching}


def peak_tflops(name: str, precision: Precision) -> float | None:
    """Of a card, by its name; None where it is not in the table."""
    found = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    return None if found is None else found[precision != "bf16-mixed"]


def environment(device: str) -> dict[str, Any]:
    """Card, versions and the command."""
    driver = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        driver = said[0] if said else None
    on_gpu = device == "cuda"
    return {
        "card": torch.cuda.get_device_name() if on_gpu else platform.processor() or "CPU",
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
    }


def images_of(options: argparse.Namespace, sizes: Sizes) -> ArrayData:
    if options.data is None:
        return long_tailed_noise((3, sizes.side, sizes.side), CLASSES, sizes.images, seed=0)
    definition = read_configuration(TABLE).datasets[0]
    return load_problem(resolved(definition), 0, options.data).train


def run_table(options: argparse.Namespace, parser: argparse.ArgumentParser, device: str) -> int:
    if options.data is None or options.out is None:
        parser.error("--table needs --data, the folder that holds fashion_mnist, and --out")
    command = ["compare", str(TABLE), "--data", str(options.data), "--out", str(options.out)]
    command += ["--device", device, "--jobs", str(options.jobs)]
    if options.subset:
        command += ["--subset", options.subset]
    summary = options.out / "table.json"
    seconds = time.perf_counter()
    failed = autobalance([*command, "--json", str(summary)])
    numbers = {
        "environment": environment(device),
        "seconds": time.perf_counter() - seconds,
        "table": json.loads(summary.read_text()) if summary.exists() else None,
    }
    write_json(options.json, numbers)
    return failed


def show(rows: list[dict[str, Any]]) -> None:
    wide = max(len(row["name"]) for row in rows)
    print(
        f"{'':{wide}} {'images per second':>21} {'search':>7} {'upper':>6} {'memory, MiB':>15} "
        f"{'share of peak':>15} {'kernels':>12}"
    )
    print(
        f"{'':{wide}} {'plain':>10} {'search':>10} {'/plain':>7} {'step':>6} {'plain':>7} {'search':>7} "
        f"{'plain':>7} {'search':>7} {'plain':>5} {'upper':>6}"
    )
    for row in rows:
        shares = (row["plain_share_of_peak"], row["search_share_of_peak"])
        shown = [f"{'unknown' if s is None else f'{100 * s:.1f} %':>7}" for s in shares]
        memory = [row[f"{kind}_memory_bytes"] / 2**20 for kind in ("plain", "search")]
        print(
            f"{row['name']:{wide}} {row['plain_images_per_second']:10,.0f} "
            f"{row['search_images_per_second']:10,.0f} {row['search_ratio']:7.2f} "
            f"{row['upper_step_ratio']:6.2f} {memory[0]:7,.0f} {memory[1]:7,.0f} {' '.join(shown)} "
            f"{row['training_step_kernels']:5} {row['upper_step_kernels']:6}"
        )


def options() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", help="default: 128 1024")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--compile", action="store_true", help="networks by torch.compile")
    parser.add_argument("--channels-last", action="store_true", help="weights in channels_last")
    parser.add_argument("--augment", action="store_true", help="train on crops and flips")
    parser.add_argument("--steps", type=int, help="training steps of a run; default: 200")
    parser.add_argument("--turns", type=int, help="default: 5, with --quick 2")
    parser.add_argument("--data", type=Path, help="the folder that holds fashion_mnist")
    parser.add_argument(
        "--peak-tflops",
        type=float,
        nargs="+",
        metavar="N",
        help="of the card, one for each --precision in their order; default: by its name",
    )
    parser.add_argument("--whole", action="store_true", help="time whole runs instead")
    parser.add_argument("--epochs", type=float, help="of --whole; default: 60")
    parser.add_argument("--table", action="store_true", help=f"run {TABLE.name} instead")
    parser.add_argument("--out", type=Path, help="of --table: where its cells are kept")
    parser.add_argument("--subset", help="of --table")
    parser.add_argument("--jobs", type=int, default=1, help="of --table: cells side by side")
    return parser


def main() -> int:
    parser = options()
    given = parser.parse_args()
    prepare(given.threads)
    # Fabric tells of each network that it is to be in bfloat16.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if given.table:
        return run_table(given, parser, device)
    if given.peak_tflops and len(given.peak_tflops) != len(given.precision):
        parser.error("--peak-tflops needs one number for each --precision")
    default = TOY if device == "cpu" else QUICK if given.quick else FULL
    sizes = Sizes(
        side=default.side,
        images=default.images,
        batches=tuple(given.batch or default.batches),
        steps=given.steps or default.steps,
        turns=given.turns or default.turns,
        warm_up=default.warm_up,
    )
    data, about = images_of(given, sizes), environment(device)
    print(
        f"{about['card']}, driver {about['driver']}, torch {about['torch']}; {len(data):,} images"
    )
    rows: list[dict[str, Any]] = []
    for i, precision in enumerate(given.precision):
        peak = given.peak_tflops[i] if given.peak_tflops else peak_tflops(about["card"], precision)
        for batch in sizes.batches:
            setting = Setting(
                device, precision, batch, given.compile, given.channels_last, given.augment
            )
            name = f"{precision}, batches of {batch}"
            if given.whole:
                row = {"name": name, **whole(setting, data, given.epochs or 60.0)}
                print(
                    f"{name}: search {row['search']:.1f} s, retrain {row['retrain']:.1f} s, "
                    f"{row['epochs']:g} epochs"
                )
            else:
                found = measured(setting, data, sizes, None if peak is None else 1e12 * peak)
                row = {"name": name, "peak_tflops": peak, **found}
            rows.append({**row, **asdict(setting)})
    if not given.whole:
        show(rows)
    write_json(given.json, {"environment": about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
