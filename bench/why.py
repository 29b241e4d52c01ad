"""Why a search on held-out data works: errors along it, the share held out, what is learned.

    .venv/bin/python bench/why.py [--data DIR/fashion_mnist] [--quick] [--json FILE]
        [--figures FOLDER]

The demo's long-tailed Fashion-MNIST images, network and recipe. Test images: the package's 1,000, or
with --data all 10,000. Balanced errors are those of the raw logits' argmax, in percent.

search: training, validation and test error during the search, as in the paper's figures 1 and 2,
from the default start (called logit adjustment, tau = 1) and from cross-entropy (tau = 0). "Search phase"
is after the warm-up, with the loss moving; "change" is from its first look to its last.
fractions: the test error after search and retraining, and tau, by the share held out for validation.
learned: l minus its start, and delta where it is searched too, by class; over seeds.

Figures go into FOLDER as SVG. See docs/explanation/why.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import nn

from autobalance.bilevel.execution import make_fabric, seed_random_state
from autobalance.bilevel.loss_tuner import LossTuner
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.bilevel.network_search import search
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.cli.demo import RECIPE, network
from autobalance.data.array_data import ArrayData
from autobalance.data.fashion import CLASSES, ImageSet, long_tailed_sample
from autobalance.data.index_streams import BalancedBatches
from autobalance.data.splits import stratified_folds
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.records.metrics import class_errors
from autobalance.records.settings import Recipe, SearchSettings
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from autobalance_bench.datasets.fashion import load_fashion_mnist
from measuring import options_of, prepare, write_json

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)
SETS = ("training", "validation", "test")
STARTS = {"logit adjustment": 1.0, "cross-entropy": 0.0}  # tau
# Okabe and Ito's colours, told apart by the colour-blind; dashes tell them apart without colour.
INK = {"training": "#0072B2", "validation": "#D55E00", "test": "#000000"}
DASHES = {"training": (0, (1, 1)), "validation": (0, (5, 2)), "test": "-"}
MUTED = "#666666"
STYLE: Any = {
    "svg.hashsalt": "autobalance",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


@dataclass
class Tracked:
    """A search with the errors along it.

    Attributes
    ----------
    loss : ParametricCrossEntropy
        The loss found, that of `autobalance.search`.
    values : dict
        The free parameters of the space there.
    steps : list of int
        Lower steps at which the errors were taken.
    errors : dict
        Balanced error in [0, 1] at these steps, for each of `SETS`.
    begin, total : int
        Lower steps of the warm-up, and in all.
    """

    loss: ParametricCrossEntropy
    values: dict[str, Any]
    steps: list[int]
    errors: dict[str, list[float]]
    begin: int
    total: int


def balanced_error(model: nn.Module, data: ArrayData) -> float:
    """Mean over classes of the share of wrong decisions, in [0, 1], of the raw logits."""
    predicted = predict_logits(model, data.inputs).argmax(dim=1).numpy()
    return float(np.nanmean(class_errors(data.target.numpy(), predicted, data.num_classes)))


def tracked_search(
    factory: Callable[[], nn.Module],
    data: ArrayData,
    test: ArrayData,
    *,
    recipe: Recipe,
    settings: SearchSettings,
    seed: int,
    learn: Sequence[str] = ("additive",),
    tau: float = 1.0,
    look_every: int = 20,
) -> Tracked:
    """`autobalance.search` for the balanced error, one split, looking at errors every few steps."""
    with seed_random_state(seed):
        loss = TunableCrossEntropy(HierarchicalSpace(data.counts(), learn=learn, tau=tau))
        split = torch.Generator().manual_seed(seed)
        [(rows, kept)] = stratified_folds(data.cells(), settings.validation_fraction, 1, split)
        sets = dict(zip(SETS, (data.subset(rows), data.subset(kept), test), strict=True))
        held = sets["validation"]
        start = loss.frozen().additive
        lower = LowerLevel(
            factory,
            sets["training"],
            TrainingOptions(recipe, seed),
            make_fabric("cpu"),
            additive=start,
        )
        order = torch.Generator().manual_seed(seed)
        draws = BalancedBatches(held.cells(), settings.validation_batch_size, order)
        tuner = LossTuner(
            loss, optimizer=lower.optimizer, lr=settings.lr, validation_counts=held.counts()
        )
        begin = max(1, round(settings.warmup * lower.total))
        places = [copy.deepcopy(loss.space.state_dict())]
        steps: list[int] = []
        errors: dict[str, list[float]] = {name: [] for name in SETS}
        while lower.done < lower.total:
            lower.step(loss)
            if lower.done > begin and (lower.done - begin) % settings.every == 0:
                for group in tuner.upper_optimizer.param_groups:
                    group["lr"] = settings.lr * lower.recipe.lr_factor(
                        max(0, lower.done - 1), lower.total
                    )
                tuner.step(lower.module, lower.recent[-1], held.batch(next(draws)))
                places.append(copy.deepcopy(loss.space.state_dict()))
            if lower.done % look_every == 0 or lower.done == lower.total:
                steps.append(lower.done)
                for name in SETS:
                    errors[name].append(balanced_error(lower.module, sets[name]))
    late = places[-max(1, round(settings.average * len(places))) :]
    with torch.no_grad():
        for name, p in loss.space.named_parameters():
            p.copy_(torch.stack([place[name] for place in late]).mean(dim=0))
    return Tracked(loss.frozen(), loss.space.values(), steps, errors, begin, lower.total)


# The three studies ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What all studies share."""

    data: ArrayData
    test: ArrayData
    recipe: Recipe
    fractions: tuple[float, ...]


def mean_and_errors(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and standard error of the mean, over seeds."""
    array = np.asarray(values, dtype=float)
    spread = float(array.std(ddof=1))
    return {"mean": float(array.mean()), "sd": spread, "se": spread / len(array) ** 0.5}


def late_errors(found: Tracked, name: str) -> np.ndarray:
    """Errors of one of `SETS` in the search phase."""
    return np.array(found.errors[name])[np.array(found.steps) > found.begin]


def correlation(validation: Sequence[float], test: Sequence[float]) -> float:
    return float(np.corrcoef(validation, test)[0, 1])


def summary_of(runs: Sequence[Tracked]) -> dict[str, Any]:
    """How validation and training error go with test error, over seeds."""

    def over(value: Callable[[Tracked], float]) -> dict[str, float]:
        return mean_and_errors([value(run) for run in runs])

    def each(value: Callable[[Tracked, str], float]) -> dict[str, dict[str, float]]:
        return {name: over(lambda run, n=name: value(run, n)) for name in SETS}

    def phase(run: Tracked) -> list[list[float]]:
        return [late_errors(run, name).tolist() for name in ("validation", "test")]

    def change(run: Tracked, name: str) -> float:
        late = late_errors(run, name)
        return float(late[-1] - late[0])

    return {
        "correlation": over(lambda run: correlation(run.errors["validation"], run.errors["test"])),
        "correlation_in_search_phase": over(lambda run: correlation(*phase(run))),
        "change_in_search_phase": each(change),
        "sd_in_search_phase": each(lambda run, name: float(late_errors(run, name).std(ddof=1))),
        "final_error": each(lambda run, name: run.errors[name][-1]),
        "final_gap_to_test": each(lambda run, name: run.errors[name][-1] - run.errors["test"][-1]),
        "tau": over(lambda run: run.values["tau"]),
    }


def record(runs: Sequence[Tracked]) -> dict[str, Any]:
    kept = [{key: value for key, value in vars(run).items() if key != "loss"} for run in runs]
    return {"summary": summary_of(runs), "runs": kept}


def by_fraction(at: Setting, tracked: Sequence[Tracked], seeds: range) -> dict[str, Any]:
    """Test errors after retraining, and tau, by validation fraction; and logit adjustment's."""
    default = SearchSettings().validation_fraction

    def error(loss: ParametricCrossEntropy, seed: int) -> float:
        model = retrain(network, at.data, loss, recipe=at.recipe, seed=seed, device="cpu")
        return balanced_error(model, at.test)

    rows: dict[str, Any] = {}
    for fraction in at.fractions:
        settings = SearchSettings(validation_fraction=fraction)
        row: dict[str, Any] = {"tau": [], "error": []}
        for i, seed in enumerate(seeds):
            if fraction == default:  # the tracked search is this one
                loss, tau = tracked[i].loss, tracked[i].values["tau"]
            else:
                found = search(
                    network, at.data, recipe=at.recipe, settings=settings, seed=seed, device="cpu"
                )
                loss, tau = found.loss, found.design["tau"]
            row["tau"].append(tau)
            row["error"].append(error(loss, seed))
        rows[f"{fraction:g}"] = row
    start = ParametricCrossEntropy.logit_adjusted(at.data.counts())
    return {"start_error": [error(start, seed) for seed in seeds], "rows": rows}


def learned(at: Setting, tracked: Sequence[Tracked], seeds: range) -> dict[str, Any]:
    """What moved from the start, l and log delta, each centred; one row per seed."""
    start = ParametricCrossEntropy.logit_adjusted(at.data.counts()).additive
    assert start is not None
    moved = [cast(torch.Tensor, run.loss.additive) - start for run in tracked]
    deltas, gammas = [], []
    for seed in seeds:
        found = search(
            network, at.data, recipe=at.recipe, seed=seed, device="cpu",
            space=lambda counts: HierarchicalSpace(counts, learn=("additive", "multiplicative")),
        )  # fmt: skip
        deltas.append(cast(torch.Tensor, found.loss.multiplicative).log())
        gammas.append(found.design["gamma"])
    return {
        "class_counts": at.data.counts().tolist(),
        "additive_minus_start": [(row - row.mean()).tolist() for row in moved],
        "tau": [run.values["tau"] for run in tracked],
        "log_delta": [(row - row.mean()).tolist() for row in deltas],
        "gamma": gammas,
    }


# Figures --------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    """Inches; with room between panels side by side."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.06))


def draw_search(starts: dict[str, dict[str, Any]]) -> Figure:
    figure = _figure(9.6, 4.0)
    pair = figure.subplots(1, len(starts), sharey=True)
    for axes, (title, found) in zip(pair, starts.items(), strict=True):
        runs = found["runs"]
        begin, total, steps = (runs[0][key] for key in ("begin", "total", "steps"))
        axes.axvspan(0, begin, color="#eeeeee", lw=0)
        for name in SETS:
            rows = 100 * np.array([run["errors"][name] for run in runs])
            axes.plot(steps, rows.T, color=INK[name], alpha=0.25, lw=0.8)
            axes.plot(steps, rows.mean(axis=0), color=INK[name], ls=DASHES[name], lw=2, label=name)
        axes.set(xlim=(0, total), xlabel="training step", title=f"From {title}, {len(runs)} seeds")
        for x, text in ((begin / 2, "warm-up"), ((begin + total) / 2, "loss searched")):
            axes.text(
                x, 0.98, text, transform=axes.get_xaxis_transform(), color=MUTED, ha="center",
                va="top",
            )  # fmt: skip
    pair[0].set(ylabel="balanced error (%)", ylim=(-1.5, None))
    pair[0].legend(loc="center right", bbox_to_anchor=(1.0, 0.68))
    return figure


def _by_seed(axes: Axes, rows: Sequence[Sequence[float]], spread: str, label: str) -> None:
    """One dot per seed, and the mean with "se" or "sd", for each position 0, 1, ..."""
    for i, row in enumerate(rows):
        found = mean_and_errors(row)
        axes.plot(
            [i - 0.16] * len(row), row, "o", ms=4, mfc="none", mec=MUTED,
            label="each seed" if i == 0 else None,
        )  # fmt: skip
        axes.errorbar(
            i, found["mean"], found[spread], fmt="s", ms=6, color=INK["training"], capsize=4,
            label=label if i == 0 else None,
        )  # fmt: skip


def draw_fractions(numbers: dict[str, Any]) -> Figure:
    figure = _figure(8.8, 3.9)
    left, right = figure.subplots(1, 2)
    rows = numbers["rows"]
    gains = [100 * np.subtract(row["error"], numbers["start_error"]) for row in rows.values()]
    _by_seed(left, [gain.tolist() for gain in gains], "se", "mean and standard error")
    _by_seed(right, [row["tau"] for row in rows.values()], "sd", "mean and SD")
    left.axhline(0, color=INK["validation"], ls=DASHES["validation"], lw=1.5)
    right.axhline(1, color=INK["validation"], ls=DASHES["validation"], lw=1.5, label="start")
    left.set(
        ylabel="difference in balanced test error (points)",
        title="After retraining, to logit adjustment (dashed)",
    )
    right.set(ylabel="tau (no unit)", title="Strength found")
    for axes in (left, right):
        axes.set(xlabel="share held out for validation (%)", xlim=(-0.5, len(rows) - 0.5))
        axes.set_xticks(range(len(rows)), [f"{100 * float(f):g}" for f in rows])
        axes.margins(y=0.2)
        axes.legend(loc="best")
    return figure


def draw_learned(numbers: dict[str, Any]) -> Figure:
    figure = _figure(8.8, 4.4)
    counts = np.array(numbers["class_counts"])
    panels = (
        ("additive_minus_start", "l minus its start, centred (nats)", "l, searched alone"),
        ("log_delta", "log delta, centred (no unit)", "delta, searched with l"),
    )
    for axes, (key, label, title) in zip(figure.subplots(1, 2), panels, strict=True):
        rows, place = np.array(numbers[key]), np.arange(len(counts))
        axes.axhline(0, color=MUTED, lw=1)
        axes.plot(place, rows.T, color=MUTED, alpha=0.35, lw=0.8)
        axes.errorbar(
            place, rows.mean(axis=0), rows.std(axis=0, ddof=1), fmt="s", ms=5,
            color=INK["training"], capsize=3, label=f"mean and SD of {len(rows)} seeds",
        )  # fmt: skip
        names = [f"{name} ({n:.0f})" for name, n in zip(CLASSES, counts, strict=True)]
        axes.set_xticks(place, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set(xlabel="class (training examples)", ylabel=label, title=title)
        axes.legend(loc="best")
    return figure


def write_figures(folder: Path, numbers: dict[str, Any]) -> None:
    """The same bytes for the same numbers; on white, to be read in dark pages too."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        drawn = {
            "search.svg": draw_search(numbers["search"]),
            "fractions.svg": draw_fractions(numbers["fractions"]),
            "learned.svg": draw_learned(numbers["learned"]),
        }
        for name, figure in drawn.items():
            figure.savefig(
                folder / name, facecolor="white", bbox_inches="tight", pad_inches=0.15,
                metadata={"Date": None},
            )  # fmt: skip


# ----------------------------------------------------------------------------------------------


def shown(found: dict[str, float], scale: float = 1.0, digits: int = 2) -> str:
    return f"{scale * found['mean']:.{digits}f} +- {scale * found['se']:.{digits}f}"


def show(numbers: dict[str, Any]) -> None:
    print("means +- standard errors over seeds; errors in percent, changes in points")
    for start, found in numbers["search"].items():
        summary = found["summary"]
        columns = (
            "final_error",
            "final_gap_to_test",
            "change_in_search_phase",
            "sd_in_search_phase",
        )
        print(f"\nsearch from {start}, {len(found['runs'])} seeds; tau {shown(summary['tau'])}")
        print(f"{'':12} {'at its end':>16} {'minus test':>16} {'change':>16} {'SD':>16}")
        for name in SETS:
            cells = [f"{shown(summary[column][name], 100):>16}" for column in columns]
            print(f"{name:12} {' '.join(cells)}")
        print(f"correlation of validation and test: {shown(summary['correlation'])}")
        print(f"in the search phase alone: {shown(summary['correlation_in_search_phase'])}")

    start = numbers["fractions"]["start_error"]
    print(f"\nlogit adjustment, tau = 1: {shown(mean_and_errors(start), 100)}")
    print(f"{'held out':>8} {'test error':>16} {'to tau = 1':>16} {'tau, mean':>10} {'SD':>6}")
    for fraction, row in numbers["fractions"]["rows"].items():
        paired = mean_and_errors(np.subtract(row["error"], start).tolist())
        tau = mean_and_errors(row["tau"])
        print(
            f"{fraction:>8} {shown(mean_and_errors(row['error']), 100):>16} "
            f"{shown(paired, 100):>16} {tau['mean']:10.2f} {tau['sd']:6.2f}"
        )

    found = numbers["learned"]
    columns = np.array(found["additive_minus_start"]), np.array(found["log_delta"])
    print(f"\n{'class':12} {'n':>4} {'l - start':>9} {'SD':>6} {'log delta':>10} {'SD':>6}")
    for k, (name, count) in enumerate(zip(CLASSES, found["class_counts"], strict=True)):
        l_k, d_k = (mean_and_errors(rows[:, k].tolist()) for rows in columns)
        print(
            f"{name:12} {count:4.0f} {l_k['mean']:9.2f} {l_k['sd']:6.2f} {d_k['mean']:10.2f} "
            f"{d_k['sd']:6.2f}"
        )
    print(f"gamma: {', '.join(f'{g:.3f}' for g in found['gamma'])}")


def images(found: ImageSet) -> ArrayData:
    return ArrayData.of(found.images, found.target, num_classes=len(CLASSES))


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--data", help="folder with Fashion-MNIST's four .gz files")
    parser.add_argument("--figures", type=Path, help="folder for the figures")
    parser.add_argument(
        "--seeds", type=int, default=5, help="of the search from the default start, and of l"
    )
    parser.add_argument("--fraction-seeds", type=int, default=3, help="of the rest")
    parser.add_argument("--first-seed", type=int, default=50)
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.fraction_seeds = 2
    if not 2 <= options.fraction_seeds <= options.seeds:
        parser.error("give at least 2 --fraction-seeds, and no more of them than --seeds")
    prepare(options.threads)

    train, test = long_tailed_sample()
    if options.data:
        test = load_fashion_mnist(options.data)[1]
    first = options.first_seed
    seeds = range(first, first + options.seeds)
    few = seeds[: options.fraction_seeds]
    at = Setting(
        images(train),
        images(test),
        Recipe(epochs=1, min_steps=25) if options.quick else RECIPE,
        (0.1, 0.2) if options.quick else FRACTIONS,
    )
    look = 5 if options.quick else 20
    tracked = {
        title: [
            tracked_search(
                network, at.data, at.test, recipe=at.recipe, settings=SearchSettings(), seed=seed,
                tau=tau, look_every=look,
            )
            for seed in chosen
        ]
        for (title, tau), chosen in zip(STARTS.items(), (seeds, few), strict=True)
    }  # fmt: skip
    default = tracked["logit adjustment"]
    numbers = {
        "seeds": list(seeds),
        "test_images": len(test.target),
        "search": {title: record(runs) for title, runs in tracked.items()},
        "fractions": by_fraction(at, default, few),
        "learned": learned(at, default, few),
    }
    show(numbers)
    write_json(options.json, numbers)
    if options.figures:
        write_figures(options.figures, numbers)


if __name__ == "__main__":
    main()
