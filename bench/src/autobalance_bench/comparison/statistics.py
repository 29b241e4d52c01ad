"""From the cells of a comparison to ranks, means, paired differences and tests. No torch.

Errors are rates in [0, 1] throughout. What is unknown (a standard error of one seed) is None.
Conventions follow J. Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets,
JMLR 7, 2006.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from autobalance import InputError
from autobalance_bench._checks import check_fraction

MAIN = "autobalance"
HALVES = ("develop", "confirm")

# Means of the same numbers may differ in the last bits; that is no difference.
_DIGITS = 12

Cell = Mapping[str, Any]
Grid = dict[str, dict[str, dict[int, Cell]]]  # dataset -> method -> seed -> finished cell


def summary(
    cells: Iterable[Cell], metric: str, *, reference: str = "cross_entropy"
) -> dict[str, Any]:
    """What the finished cells show about one objective.

    Compared are the methods that were given this objective and those that take none. A dataset
    is ranked where at least half of them have finished it, and a method where it has finished
    every ranked dataset: all average ranks and means are over the same datasets. On a dataset
    only the seeds count that every ranked method has finished. Datasets of one family count as
    one: ranks, means and costs are averaged within the family first.

    Variants of ours (kind "ours") are no rivals of each other. Each has its rank among all other
    kinds and itself; the other kinds have theirs among themselves and the method `autobalance`.

    Parameters
    ----------
    cells : iterable of mapping
        Records of `Store.cells`.
    metric : str
        The objective, such as "balanced_error".
    reference : str
        Method to which all are compared, and whose CPU time is the unit of `cpu_cost`.

    Returns
    -------
    dict
        Ready for strict JSON; rates in [0, 1]:

        - ``metric``, ``reference``; ``methods``: title and kind of each; ``families``: that of
          each dataset; ``versions``: those of each package in the cells.
        - ``average_rank``: of each ranked method, over families.
        - ``mean``: of each method every metric, over families; None where it is not ranked.
          A metric that some ranked cell of a dataset lacks is not averaged over that dataset.
        - ``cost``: training runs; ``cpu_cost``: CPU time as a multiple of the reference's on the
          same dataset and seed, None where it has none.
        - ``per_dataset``: mean, standard_error over seeds, n and list of seeds, and rank, None
          where the method or the dataset is not ranked.
        - ``seeds``: of each ranked dataset those paired, and those each method lacks.
        - ``failed``: the failed cells and their reasons.
        - ``incomplete``: methods not ranked, how many cells of ranked datasets they lack, and
          which; ``left_out``: datasets not ranked, and the methods that lack them.
        - ``differences``: of each method ``to_reference`` and ``to_best_baseline`` (the method of
          another kind than "ours" that has the lowest mean on that dataset, chosen on the same
          test data, which favours the baseline), by dataset: see `compare_pairs`, with ``against`` and
          ``p_holm``, corrected over the datasets.
        - ``tests``: Friedman's test and Nemenyi's critical difference over families, for the
          methods that are ranked together.
        - ``halves``: all this for the cells of each half alone.

    Raises
    ------
    InputError
        If no finished cell has a value of the metric.
    """
    cells = list(cells)
    compared = _select(cells, metric)
    if not any(_value(c, metric) is not None for c in compared):
        names = sorted({name for c in cells for name in _metrics(c)})
        raise InputError(
            f"No finished cell has a value of {metric!r}; the results have "
            f"{', '.join(names) or 'no finished cell at all'}. Name one of these, or run "
            "`autobalance compare` with this objective."
        )
    halves = {
        half: _part([c for c in compared if c.get("half") == half], metric, reference)
        for half in HALVES
    }
    both = _part(compared, metric, reference)
    return {"metric": metric, "reference": reference, **both, "halves": halves}


def not_worse(
    cells: Iterable[Cell],
    method: str,
    reference: str,
    margin: float = 0.005,
    *,
    metric: str = "balanced_error",
    alpha: float = 0.05,
) -> dict[str, dict[str, Any]]:
    """On which datasets a method is worse than another beyond margin and chance.

    Parameters
    ----------
    cells : iterable of mapping
        Records of `Store.cells`.
    method, reference : str
        Names of methods, compared on the seeds that both have finished.
    margin : float
        Difference of rates that does not matter.
    metric : str
        The objective.
    alpha : float
        Level of the test, in (0, 1).

    Returns
    -------
    dict
        By dataset: mean, standard_error and n of the paired difference; p, one-sided, of a true
        difference above 0; p_holm, corrected over the datasets; and ``worse``: whether the mean
        exceeds the margin and p_holm lies below alpha. With one seed p is None and nothing is
        worse beyond chance.

    Raises
    ------
    InputError
        If the methods share no dataset and seed.
    """
    check_fraction("alpha", alpha)
    grid = _grid(_select(cells, metric), metric)
    comparisons: dict[str, dict[str, Any]] = {}
    for dataset in sorted(grid, key=_natural):
        ours, theirs = (_values(grid[dataset].get(m, {}), metric) for m in (method, reference))
        shared = sorted(ours.keys() & theirs.keys())
        if shared:
            result = compare_pairs([ours[s] - theirs[s] for s in shared])
            p = result["p"]
            if p is not None:
                p = p / 2 if result["mean"] > 0 else 1 - p / 2
            comparisons[dataset] = {k: result[k] for k in ("mean", "standard_error", "n")}
            comparisons[dataset]["p"] = p
    if not comparisons:
        raise InputError(
            f"{method} and {reference} have finished no dataset and seed both, for {metric}; "
            "run `autobalance compare` with both methods."
        )
    corrected = holm([c["p"] for c in comparisons.values()])
    for result, p in zip(comparisons.values(), corrected, strict=True):
        result["p_holm"] = p
        result["worse"] = result["mean"] > margin and p is not None and p < alpha
    return comparisons


def compare_pairs(differences: Sequence[float]) -> dict[str, Any]:
    """Mean of paired differences, Student's 95 % interval and two-sided p-value.

    Differences that are all the same have an interval of no width, and p is 1 if they are 0,
    otherwise 0: the limits of the t-test.

    Parameters
    ----------
    differences : sequence of float
        One per seed, at least one.

    Returns
    -------
    dict
        mean, standard_error, n, low, high, p; with one difference, standard_error, low, high and
        p are None.
    """
    values = np.round(np.asarray(differences, dtype=float), _DIGITS)
    mean, error = float(values.mean()), _standard_error(values)
    result: dict[str, Any] = {"mean": mean, "standard_error": error, "n": len(values)}
    if error is None:
        return result | {"low": None, "high": None, "p": None}
    half = error * float(stats.t.ppf(0.975, len(values) - 1))
    p = 1.0 if mean == 0 else 0.0
    if error > 0:
        p = 2 * float(stats.t.sf(abs(mean) / error, len(values) - 1))
    return result | {"low": mean - half, "high": mean + half, "p": p}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (S. Holm, Scandinavian Journal of Statistics 6, 1979).

    The i-th smallest of m p-values (i from 0) is multiplied by m - i; a corrected value is at least
    the one before and at most 1. None stays None and does not count.
    """
    # `statsmodels.stats.multitest.multipletests` gives the same, but collects garbage in each call,
    # which makes a summary of many methods take minutes; a test compares the two.
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for step, (p, i) in enumerate(known):
        least = max(least, min(1.0, (len(known) - step) * p))
        corrected[i] = least
    return corrected


def friedman(ranks: np.ndarray) -> dict[str, Any]:
    """Friedman's test that all methods do equally well, corrected for ties.

    With the correction of Iman and Davenport (1980), F = (N - 1) chi2 / (N (k - 1) - chi2), which
    Demsar recommends.

    Parameters
    ----------
    ranks : ndarray
        Shape ``(N, k)``: scores of k methods on N families; ranked within each row.

    Returns
    -------
    dict
        chi2, p of chi2; f, p_f of F. None where fewer than two rows or columns, or all ties, leave
        nothing to test; f is None where it is infinite, with p_f 0.
    """
    # `scipy.stats.friedmanchisquare` refuses two methods, gives NaN where all are tied and lacks F,
    # so the statistic is computed here; a test compares it with scipy's where that has one.
    nothing = {"chi2": None, "p": None, "f": None, "p_f": None}
    n, k = ranks.shape
    if n < 2 or k < 2:
        return nothing
    within = stats.rankdata(np.round(ranks, _DIGITS), axis=1)
    centre = n * k * (k + 1) ** 2 / 4
    spread = float((within**2).sum()) - centre
    if spread <= 0:
        return nothing
    chi2 = (k - 1) * (float((within.sum(axis=0) ** 2).sum()) - n * centre) / spread
    room = n * (k - 1) - chi2
    p = float(stats.chi2.sf(chi2, k - 1))
    if room <= 1e-9:
        return {"chi2": chi2, "p": p, "f": None, "p_f": 0.0}
    f = (n - 1) * chi2 / room
    return {"chi2": chi2, "p": p, "f": f, "p_f": float(stats.f.sf(f, k - 1, (k - 1) * (n - 1)))}


@lru_cache(maxsize=64)
def nemenyi_quantile(k: int, alpha: float = 0.05) -> float:
    """The q of Nemenyi's test for k methods: that of the studentized range over sqrt(2)."""
    return float(stats.studentized_range.ppf(1 - alpha, k, math.inf)) / math.sqrt(2)


def critical_difference(k: int, n: int, alpha: float = 0.05) -> float | None:
    """Difference of average ranks beyond chance: q sqrt(k (k + 1) / (6 n)) (Demsar, section 3.2.2).

    The libraries for such tests give Nemenyi's p-values, but not the difference that a diagram shows.
    None for fewer than two methods k or families n.
    """
    if k < 2 or n < 2:
        return None
    return nemenyi_quantile(k, alpha) * math.sqrt(k * (k + 1) / (6 * n))


def _part(cells: list[Cell], metric: str, reference: str) -> dict[str, Any]:
    """All of a summary but its halves, from the cells compared for the metric."""
    grid = _grid(cells, metric)
    methods = _methods(cells)
    families = {d: d for d in grid}
    families |= {
        c["dataset"]: c["family"] for c in cells if c["dataset"] in grid and c.get("family")
    }
    expected: dict[str, set[int]] = {d: set() for d in grid}
    for c in cells:
        if c["dataset"] in grid:
            expected[c["dataset"]].add(c["seed"])
    ranked, complete, pairs = _pairing(grid, methods)
    ours = {m for m in methods if methods[m]["kind"] == "ours"}
    per_dataset = _per_dataset(grid, metric, methods, pairs)
    for d in pairs:
        means = {m: per_dataset[d][m]["mean"] for m in complete}
        for m, rank in _ranks(means, ours).items():
            per_dataset[d][m]["rank"] = rank
    average = {
        m: _over_families({d: per_dataset[d][m]["rank"] for d in pairs}, families)
        for m in complete
        if pairs
    }
    together = [m for m in complete if m not in ours or m == MAIN]
    return {
        "methods": methods,
        "families": families,
        "versions": _versions(cells),
        "average_rank": dict(sorted(average.items(), key=lambda item: item[1])),
        "mean": _means(grid, methods, complete, pairs, families),
        "cost": _costs(grid, methods, families, lambda c, d, s: c.get("training_runs")),
        "cpu_cost": _costs(
            grid, methods, families, lambda c, d, s: _ratio(c, grid[d].get(reference, {}).get(s))
        ),
        "per_dataset": per_dataset,
        "seeds": {
            d: {
                "paired": pairs[d],
                "lacking": {
                    m: lacking
                    for m in complete
                    if (lacking := sorted(expected[d] - set(grid[d][m])))
                },
            }
            for d in pairs
        },
        "failed": [
            {k: c.get(k) for k in ("dataset", "method", "objective", "seed", "reason")}
            for c in sorted(cells, key=lambda c: (_natural(c["dataset"]), c["method"], c["seed"]))
            if c["status"] == "failed"
        ],
        "incomplete": _incomplete(
            grid, [m for m in methods if m not in complete], ranked, expected
        ),
        "left_out": {d: [m for m in methods if not grid[d].get(m)] for d in grid if d not in pairs},
        "differences": _differences(grid, metric, methods, complete, pairs, reference, ours),
        "tests": _tests(per_dataset, together, pairs, families),
    }


def _methods(cells: Iterable[Cell]) -> dict[str, dict[str, Any]]:
    """Title and kind of each method, by name; a method that never ran has its name as its title."""
    methods = {c["method"]: {"title": c["method"], "kind": None} for c in cells}
    for c in cells:
        methods[c["method"]] |= {k: c[k] for k in ("title", "kind") if c.get(k) is not None}
    return {m: methods[m] for m in sorted(methods, key=_natural)}


def _pairing(
    grid: Grid, methods: Sequence[str] | Mapping[str, Any]
) -> tuple[list[str], list[str], dict[str, list[int]]]:
    """The ranked datasets, the methods that finished them all, and the paired seeds by dataset."""
    ranked = [d for d in grid if 2 * sum(bool(grid[d].get(m)) for m in methods) >= len(methods)]
    complete = [m for m in methods if ranked and all(grid[d].get(m) for d in ranked)]
    pairs: dict[str, list[int]] = {}
    for d in ranked:
        # Methods that have no seed in common cannot be paired: the one with the fewest goes.
        while complete and not set.intersection(*(set(grid[d][m]) for m in complete)):
            complete.remove(min(complete, key=lambda m, d=d: len(grid[d][m])))
    for d in ranked if complete else ():
        pairs[d] = sorted(set.intersection(*(set(grid[d][m]) for m in complete)))
    return ranked, complete, pairs


def _select(cells: Iterable[Cell], metric: str) -> list[Cell]:
    """One cell per (dataset, method, seed); one given the objective comes before one given none."""
    candidates = [c for c in cells if c["objective"] in (None, metric)]
    candidates.sort(key=lambda c: c["objective"] is not None)
    return list({(c["dataset"], c["method"], c["seed"]): c for c in candidates}.values())


def _metrics(cell: Cell) -> dict[str, float]:
    """Every rate of a finished cell that has a value."""
    if cell["status"] != "finished":
        return {}
    both = {**cell["report"], **cell["objectives"]}
    return {
        name: float(value)
        for name, value in both.items()
        if name != "n" and isinstance(value, (int, float)) and math.isfinite(value)
    }


def _value(cell: Cell, metric: str) -> float | None:
    return _metrics(cell).get(metric)


def _values(by_seed: Mapping[int, Cell], metric: str) -> dict[int, float]:
    return {seed: _metrics(cell)[metric] for seed, cell in by_seed.items()}


def _grid(cells: list[Cell], metric: str) -> Grid:
    """Finished cells with a value, of every dataset on which the metric has one or all failed."""
    grid: Grid = {c["dataset"]: {} for c in cells}
    without = set()
    for c in cells:
        if _value(c, metric) is not None:
            grid[c["dataset"]].setdefault(c["method"], {})[c["seed"]] = c
        elif c["status"] == "finished":
            without.add(c["dataset"])
    datasets = [d for d in grid if grid[d] or d not in without]
    return {d: grid[d] for d in sorted(datasets, key=_natural)}


def _per_dataset(
    grid: Grid, metric: str, methods: Iterable[str], pairs: Mapping[str, list[int]]
) -> dict[str, dict[str, dict[str, Any]]]:
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for d in grid:
        table[d] = {}
        for m in methods:
            values = _values(grid[d].get(m, {}), metric)
            # What is not ranked shows the paired seeds that it has, else what there is.
            seeds = sorted(set(values) & set(pairs.get(d, ()))) or sorted(values)
            if seeds:
                array = np.array([values[s] for s in seeds])
                table[d][m] = {
                    "mean": float(array.mean()),
                    "standard_error": _standard_error(array),
                    "n": len(seeds),
                    "seeds": seeds,
                    "rank": None,
                }
    return table


def _standard_error(values: np.ndarray) -> float | None:
    if len(values) < 2:
        return None
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return error if error > 10.0**-_DIGITS else 0.0


def _ranks(means: Mapping[str, float], ours: set[str]) -> dict[str, float]:
    """Rank of each method, from 1 for the lowest mean, among those that are its rivals."""
    rivals = [m for m in means if m not in ours]
    main = [MAIN] if MAIN in means and MAIN in ours else []
    ranks = {}
    for m in means:
        field = rivals + ([m] if m in ours else main)
        in_field = stats.rankdata(np.round([means[f] for f in field], _DIGITS))
        ranks[m] = float(in_field[field.index(m)])
    return ranks


def _by_family(values: Mapping[str, float], families: Mapping[str, str]) -> dict[str, float]:
    """Mean over the datasets of each family."""
    groups: dict[str, list[float]] = {}
    for dataset, value in values.items():
        groups.setdefault(families[dataset], []).append(value)
    return {family: float(np.mean(group)) for family, group in groups.items()}


def _over_families(values: Mapping[str, float], families: Mapping[str, str]) -> float:
    return float(np.mean(list(_by_family(values, families).values())))


def _means(
    grid: Grid,
    methods: Iterable[str],
    complete: list[str],
    pairs: Mapping[str, list[int]],
    families: Mapping[str, str],
) -> dict[str, dict[str, float | None]]:
    by_cell = {(d, m): [_metrics(grid[d][m][s]) for s in pairs[d]] for d in pairs for m in complete}
    names = sorted({name for metrics in by_cell.values() for m in metrics for name in m})
    everywhere = {
        name: [d for d in pairs if all(name in f for m in complete for f in by_cell[d, m])]
        for name in names
    }
    result: dict[str, dict[str, float | None]] = {m: dict.fromkeys(names) for m in methods}
    for m in complete:
        for name, datasets in everywhere.items():
            means = {d: float(np.mean([f[name] for f in by_cell[d, m]])) for d in datasets}
            if means:
                result[m][name] = _over_families(means, families)
    return result


def _costs(
    grid: Grid, methods: Iterable[str], families: Mapping[str, str], cost: Any
) -> dict[str, float | None]:
    """Mean over seeds, then datasets, then families of what a finished cell cost."""
    result: dict[str, float | None] = {}
    for m in methods:
        means = {}
        for d in grid:
            costs = [cost(c, d, s) for s, c in grid[d].get(m, {}).items()]
            known = [float(v) for v in costs if v is not None]
            if known:
                means[d] = float(np.mean(known))
        result[m] = _over_families(means, families) if means else None
    return result


def _ratio(cell: Cell, reference: Cell | None) -> float | None:
    """CPU time of a cell as a multiple of the reference's."""
    own, unit = (((c or {}).get("seconds") or {}).get("cpu") for c in (cell, reference))
    return own / unit if own is not None and unit else None


def _incomplete(
    grid: Grid, methods: Iterable[str], ranked: list[str], expected: Mapping[str, set[int]]
) -> dict[str, Any]:
    result = {}
    for m in methods:
        lacking = {d: sorted(expected[d] - set(grid[d].get(m, {}))) for d in ranked}
        lacking = {d: seeds for d, seeds in lacking.items() if seeds}
        result[m] = {"missing": sum(map(len, lacking.values())), "datasets": lacking}
    return result


def _differences(
    grid: Grid,
    metric: str,
    methods: Iterable[str],
    complete: list[str],
    pairs: Mapping[str, list[int]],
    reference: str,
    ours: set[str],
) -> dict[str, dict[str, dict[str, Any]]]:
    values = {
        (d, m): {s: v for s, v in _values(by_seed, metric).items() if s in pairs[d]}
        for d in pairs
        for m, by_seed in grid[d].items()
    }
    baselines = [m for m in complete if m not in ours]
    best = {
        d: min(baselines, key=lambda m, d=d: (_rounded_mean(values[d, m]), _natural(m)))
        for d in pairs
        if baselines
    }
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name, against in (
        ("to_reference", dict.fromkeys(pairs, reference)),
        ("to_best_baseline", best),
    ):
        result[name] = {}
        for m in methods:
            rows = {}
            for d, other in against.items():
                mine, theirs = values.get((d, m), {}), values.get((d, other), {})
                shared = sorted(mine.keys() & theirs.keys())
                if shared and m != other:
                    rows[d] = {
                        "against": other,
                        **compare_pairs([mine[s] - theirs[s] for s in shared]),
                    }
            for row, p in zip(rows.values(), holm([r["p"] for r in rows.values()]), strict=True):
                row["p_holm"] = p
            if rows:
                result[name][m] = rows
    return result


def _rounded_mean(values: Mapping[int, float]) -> float:
    return round(float(np.mean(list(values.values()))), _DIGITS)


def _tests(
    per_dataset: Mapping[str, Any],
    together: list[str],
    pairs: Mapping[str, list[int]],
    families: Mapping[str, str],
) -> dict[str, Any]:
    """Friedman and Nemenyi over families, each of which is one block whatever its size."""
    by_method = [
        _by_family({d: per_dataset[d][m]["rank"] for d in pairs}, families) for m in together
    ]
    n = len({families[d] for d in pairs})
    table = np.array([list(ranks.values()) for ranks in by_method], dtype=float)
    return {
        "methods": together,
        "families": n,
        "friedman": friedman(table.reshape(len(together), n).T),
        "critical_difference": critical_difference(len(together), n),
        "alpha": 0.05,
    }


def _versions(cells: Iterable[Cell]) -> dict[str, list[str]]:
    versions: dict[str, set[str]] = {}
    for c in cells:
        for package, version in (c.get("versions") or {}).items():
            versions.setdefault(package, set()).add(str(version))
    return {package: sorted(versions[package], key=_natural) for package in sorted(versions)}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts letter-lt-10 before letter-lt-100 and after letter-lt-5."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(parts)]
