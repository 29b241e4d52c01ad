"""Ranks, differences and tests against examples worked by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from autobalance import InputError
from autobalance_bench.comparison.statistics import (
    compare_pairs,
    critical_difference,
    friedman,
    holm,
    nemenyi_quantile,
    not_worse,
    summary,
)
from cells import cell, failure


def grid(table: dict[str, dict[str, Sequence[float]]], **changes: Any) -> list[dict[str, Any]]:
    """Cells of errors by dataset, method and seed."""
    return [
        cell(dataset, method, seed, error, **changes)
        for dataset, methods in table.items()
        for method, errors in methods.items()
        for seed, error in enumerate(errors)
    ]


THREE = {"cross_entropy": [0.4, 0.5], "focal": [0.3, 0.5], "autobalance": [0.2, 0.2]}


def test_one_dataset_by_hand() -> None:
    found = summary(grid({"letter": THREE}), "balanced_error")
    table = found["per_dataset"]["letter"]
    assert table["cross_entropy"]["mean"] == pytest.approx(0.45)
    assert table["cross_entropy"]["standard_error"] == pytest.approx(0.05)
    assert table["cross_entropy"]["seeds"] == [0, 1]
    assert table["autobalance"] == {
        "mean": 0.2,
        "standard_error": 0.0,
        "n": 2,
        "seeds": [0, 1],
        "rank": 1.0,
    }
    assert found["average_rank"] == {"autobalance": 1.0, "focal": 2.0, "cross_entropy": 3.0}
    assert found["mean"]["focal"] == pytest.approx({"balanced_error": 0.4, "error": 0.5})
    assert found["cost"] == dict.fromkeys(THREE, 1.0)
    assert found["methods"]["focal"] == {"title": "FOCAL", "kind": "published"}
    assert found["versions"] == {"numpy": ["2.0"]}
    assert not found["failed"]
    assert not found["incomplete"]
    assert not found["left_out"]
    assert found["halves"]["develop"]["average_rank"] == {}


def test_ties_share_the_mean_of_their_ranks() -> None:
    # 0.1 + 0.2 and 0.3 differ in the last bit.
    table = {"a": {"cross_entropy": [0.1 + 0.2], "focal": [0.3], "ldam": [0.5]}}
    found = summary(grid(table), "balanced_error")
    assert found["average_rank"] == {"cross_entropy": 1.5, "focal": 1.5, "ldam": 3.0}


def test_a_family_counts_once() -> None:
    low, high = {"p": [0.1], "q": [0.3]}, {"p": [0.5], "q": [0.4]}
    found = summary(grid({"letter-10": low, "letter-100": low, "car": high}), "balanced_error")
    assert found["average_rank"] == {"p": 1.5, "q": 1.5}
    assert found["mean"]["p"]["balanced_error"] == pytest.approx(0.3)
    assert found["tests"]["families"] == 2
    assert list(found["per_dataset"]) == ["car", "letter-10", "letter-100"]
    assert found["families"]["letter-100"] == "letter"


def test_variants_of_ours_are_no_rivals() -> None:
    errors = {"autobalance": 0.2, "autobalance_cvar": 0.1, "first": 0.3, "focal": 0.15, "ce": 0.4}
    found = summary(grid({"a": {m: [e] for m, e in errors.items()}}), "balanced_error")
    expected = {"autobalance_cvar": 1, "focal": 1, "autobalance": 2, "first": 3, "ce": 4}
    assert found["average_rank"] == expected
    assert set(found["tests"]["methods"]) == {"autobalance", "first", "focal", "ce"}
    errors.pop("autobalance")
    found = summary(grid({"a": {m: [e] for m, e in errors.items()}}), "balanced_error")
    assert found["average_rank"] == {"autobalance_cvar": 1, "focal": 1, "first": 2, "ce": 3}


def test_only_seeds_of_all_methods_are_paired() -> None:
    cells = grid({"a": {"cross_entropy": [0.4, 0.5, 0.6], "focal": [0.3, 0.9]}})
    cells.append(failure("a", "focal", 2))
    found = summary(cells, "balanced_error")
    assert found["per_dataset"]["a"]["cross_entropy"]["mean"] == pytest.approx(0.45)
    assert found["seeds"] == {"a": {"paired": [0, 1], "lacking": {"focal": [2]}}}
    assert found["failed"] == [
        {
            "dataset": "a",
            "method": "focal",
            "objective": None,
            "seed": 2,
            "reason": "diverged at step 3",
        }
    ]


def test_an_incomplete_method_has_no_rank() -> None:
    table = {d: {m: list(v) for m, v in THREE.items()} for d in ("a", "b")}
    table["a"]["ldam"] = [0.0]
    cells = [*grid(table), failure("b", "ldam", 0)]
    found = summary(cells, "balanced_error")
    assert found["average_rank"] == {"autobalance": 1.0, "focal": 2.0, "cross_entropy": 3.0}
    assert found["incomplete"] == {"ldam": {"missing": 3, "datasets": {"a": [1], "b": [0, 1]}}}
    assert found["mean"]["ldam"] == {"balanced_error": None, "error": None}
    assert found["per_dataset"]["a"]["ldam"]["rank"] is None
    assert found["per_dataset"]["a"]["ldam"]["n"] == 1
    assert found["per_dataset"]["a"]["focal"]["n"] == 2
    assert "ldam" not in found["per_dataset"]["b"]
    assert found["differences"]["to_reference"]["ldam"]["a"]["mean"] == pytest.approx(-0.4)
    # An incomplete method is no best baseline either.
    assert found["differences"]["to_best_baseline"]["autobalance"]["a"]["against"] == "focal"


def test_a_dataset_that_most_methods_lack_is_left_out() -> None:
    cells = [*grid({"a": THREE, "b": {"focal": [0.1, 0.1]}}), failure("c", "focal", 0)]
    found = summary(cells, "balanced_error")
    assert found["left_out"] == {
        "b": ["autobalance", "cross_entropy"],
        "c": ["autobalance", "cross_entropy", "focal"],
    }
    assert found["average_rank"]["focal"] == 2.0
    assert found["per_dataset"]["b"]["focal"]["rank"] is None
    assert found["incomplete"] == {}


def test_methods_without_a_common_seed_are_not_paired() -> None:
    cells = [*grid({"a": {"p": [0.1, 0.2], "q": [0.2, 0.3]}}), cell("a", "r", 7, 0.0)]
    found = summary(cells, "balanced_error")
    assert found["average_rank"] == {"p": 1.0, "q": 2.0}
    assert found["incomplete"] == {"r": {"missing": 2, "datasets": {"a": [0, 1]}}}
    assert found["per_dataset"]["a"]["r"]["seeds"] == [7]
    assert found["seeds"]["a"]["lacking"] == {"p": [7], "q": [7]}


def test_methods_are_those_given_this_objective_or_none() -> None:
    both = {"objectives": {"balanced_error": 0.1, "worst_class_error": 0.6}}
    cells = [
        cell("a", "focal", 0, 0.4, objectives={"balanced_error": 0.4, "worst_class_error": 0.7}),
        cell("a", "tau", 0, 0.1, objective="balanced_error", **both),
        cell(
            "a", "tau", 0, 0.1, objective="worst_class_error", objectives={"worst_class_error": 1}
        ),
        cell("a", "other", 0, 0.1, objective="cvar_error", **both),
    ]
    assert summary(cells, "balanced_error")["average_rank"] == {"tau": 1.0, "focal": 2.0}
    assert summary(cells, "worst_class_error")["average_rank"] == {"focal": 1.0, "tau": 2.0}
    with pytest.raises(
        InputError, match=r"No .* value of 'nonsense'; .* balanced_error, error, worst_class_error"
    ) as raised:
        summary(cells, "nonsense")
    assert "\n" not in str(raised.value)


def test_a_metric_is_averaged_where_every_method_has_it() -> None:
    with_groups = {"report": {"error": 0.5, "worst_group_error": 0.75}}
    cells = [*grid({"a": THREE}, **with_groups), *grid({"b": THREE})]
    found = summary(cells, "balanced_error")
    assert found["mean"]["focal"]["worst_group_error"] == 0.75
    # The objective itself may be defined on some of the datasets only.
    only = summary(cells, "worst_group_error")
    assert list(only["per_dataset"]) == ["a"]
    assert not only["left_out"]


def test_differences_and_their_correction() -> None:
    table = {
        "a": {"cross_entropy": [0.5, 0.6, 0.7], "autobalance": [0.4, 0.4, 0.7], "tau": [0.6] * 3},
        "b": {"cross_entropy": [0.5, 0.6, 0.7], "autobalance": [0.3, 0.45, 0.5], "tau": [0.2] * 3},
    }
    found = summary(grid(table), "balanced_error")["differences"]
    assert set(found) == {"to_reference", "to_best_baseline"}
    rows = found["to_reference"]["autobalance"]
    t = stats.ttest_rel([0.4, 0.4, 0.7], [0.5, 0.6, 0.7])
    interval = t.confidence_interval(0.95)
    assert rows["a"] == pytest.approx(
        {
            "against": "cross_entropy",
            "mean": -0.1,
            "standard_error": 0.1 / math.sqrt(3),
            "n": 3,
            "low": interval.low,
            "high": interval.high,
            "p": t.pvalue,
            "p_holm": t.pvalue,
        }
    )
    assert rows["b"]["p_holm"] == pytest.approx(2 * rows["b"]["p"])
    best = found["to_best_baseline"]
    assert {d: row["against"] for d, row in best["autobalance"].items()} == {
        "a": "cross_entropy",
        "b": "tau",
    }
    assert list(best["tau"]) == ["a"]
    assert list(best["cross_entropy"]) == ["b"]
    assert "cross_entropy" not in found["to_reference"]


def test_costs() -> None:
    cells = grid({"a-1": THREE, "a-2": THREE, "b": THREE})
    for c in cells:
        if c["method"] == "autobalance":
            c["training_runs"] = {"a-1": 2.0, "a-2": 4.0, "b": 5.0}[c["dataset"]]
            c["seconds"] = {"wall": 1.0, "cpu": 4.0 + 4 * c["seed"]}
        if c["method"] == "focal":
            c["seconds"] = None
    found = summary(cells, "balanced_error")
    assert found["cost"] == {"autobalance": 4.0, "cross_entropy": 1.0, "focal": 1.0}
    assert found["cpu_cost"] == {"autobalance": 3.0, "cross_entropy": 1.0, "focal": None}


def test_one_seed_is_strict_json_without_errors() -> None:
    table = {d: {m: v[:1] for m, v in THREE.items()} for d in ("a", "b")}
    found = summary([*grid(table), cell("a", "ldam", 0, None)], "balanced_error")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["per_dataset"]["a"]["focal"]["standard_error"] is None
    row = found["differences"]["to_reference"]["focal"]["a"]
    assert [row[k] for k in ("standard_error", "low", "high", "p", "p_holm")] == [None] * 5
    assert found["incomplete"]["ldam"]["missing"] == 2


def test_halves_are_summaries_of_their_own() -> None:
    worse = {"cross_entropy": [0.1, 0.1], "focal": [0.5, 0.5], "autobalance": [0.3, 0.3]}
    cells = [
        *grid({"a": THREE}, half="develop"),
        *grid({"b": worse, "c": worse}, half="confirm"),
        *grid({"d": worse}),
    ]
    found = summary(cells, "balanced_error")
    halves = found["halves"]
    assert set(halves) == {"develop", "confirm"}
    assert set(halves["develop"]) == set(found) - {"halves", "metric", "reference"}
    assert list(halves["develop"]["per_dataset"]) == ["a"]
    assert list(halves["confirm"]["per_dataset"]) == ["b", "c"]
    assert halves["confirm"]["average_rank"]["cross_entropy"] == 1.0
    assert list(found["per_dataset"]) == ["a", "b", "c", "d"]
    alone = summary([c for c in cells if c["half"] == "confirm"], "balanced_error")
    assert {k: alone[k] for k in halves["confirm"]} == halves["confirm"]


def test_the_order_of_cells_changes_nothing() -> None:
    cells = grid({"a": THREE, "b": {**THREE, "ldam": [0.1, 0.7]}})
    found = summary(cells, "balanced_error")
    shuffled = [cells[i] for i in np.random.default_rng(0).permutation(len(cells))]
    assert summary(shuffled, "balanced_error") == found
    assert list(summary(shuffled, "balanced_error")["methods"]) == list(found["methods"])


def test_not_worse() -> None:
    base = [0.2, 0.3, 0.25, 0.35]
    table = {
        "clear": {"ce": base, "m": [0.25, 0.36, 0.3, 0.41]},
        "tiny": {"ce": base, "m": [b + 0.004 + 1e-4 * i for i, b in enumerate(base)]},
        "noisy": {"ce": base, "m": [0.5, 0.1, 0.4, 0.3]},
        "better": {"ce": base, "m": [0.1, 0.21, 0.15, 0.26]},
        "same": {"ce": base, "m": base},
        "one": {"ce": [0.1], "m": [0.9]},
    }
    found = not_worse(grid(table), "m", "ce")
    assert {d: row["worse"] for d, row in found.items()} == {
        **dict.fromkeys(table, False),
        "clear": True,
    }
    t = stats.ttest_rel(table["clear"]["m"], base, alternative="greater")
    assert found["clear"]["p"] == pytest.approx(t.pvalue)
    assert found["clear"]["p_holm"] == pytest.approx(4 * t.pvalue)
    assert found["tiny"]["p_holm"] < 0.05
    assert not_worse(grid(table), "m", "ce", margin=0.0)["tiny"]["worse"]
    t = stats.ttest_rel(table["better"]["m"], base, alternative="greater")
    assert found["better"]["p"] == pytest.approx(t.pvalue)
    assert found["one"]["p"] is None
    with pytest.raises(InputError, match="m and nobody have finished no dataset and seed both"):
        not_worse(grid(table), "m", "nobody")
    with pytest.raises(InputError, match="alpha must lie strictly between 0 and 1"):
        not_worse(grid(table), "m", "ce", alpha=0.0)


def test_paired_without_spread() -> None:
    assert compare_pairs([0.0, 0.0])["p"] == 1.0
    same = compare_pairs([0.1 + 0.2, 0.3])
    assert (same["standard_error"], same["low"], same["high"], same["p"]) == (0.0, 0.3, 0.3, 0.0)


def test_holm_by_hand() -> None:
    # 4 x 0.005, 3 x 0.01, then 2 x 0.03, and 0.04 must not fall below it.
    found = holm([0.01, 0.04, 0.03, 0.005])
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, None, 0.8]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_holm_is_that_of_statsmodels() -> None:
    p_values = np.random.default_rng(0).uniform(size=30) ** 4
    p_values[3] = p_values[7]
    expected = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(np.array(holm(p_values.tolist()), float), expected, rtol=1e-12)


def test_friedman_of_demsar() -> None:
    # Table 6 of Demsar (2006): AUC of four variants of C4.5 on 14 data sets. The .1 stands for
    # digits that the paper ranks by and does not print.
    auc = """763 768 771 798|599 591 590 569|954 971 968 967|628 661 654 657|882 888 886 898
    936 931 916 931|661 668 609 685|583 583 563 625|775 838 866 875|1000 1000 1000 1000
    940 962 965 962|619 666 614 669|972 981 975.1 975|957 978 946 970"""
    table = -np.array(
        [[float(v) for v in row.split()] for row in auc.replace("\n", "|").split("|")]
    )
    ranks = stats.rankdata(table, axis=1)
    assert ranks.mean(axis=0) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=1e-3)
    found = friedman(table)
    expected = stats.friedmanchisquare(*table.T)
    assert found["chi2"] == pytest.approx(expected.statistic)
    assert found["p"] == pytest.approx(expected.pvalue)
    # The paper's 9.28 lacks the correction for ties, which divides by the variance they leave.
    left = np.sum((ranks - 2.5) ** 2) / (14 * 4 * 15 / 12)
    assert found["chi2"] * left == pytest.approx(9.28, abs=0.01)
    assert found["f"] == pytest.approx(13 * found["chi2"] / (42 - found["chi2"]))
    assert found["p_f"] == pytest.approx(stats.f.sf(found["f"], 3, 39))
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)


def test_friedman_at_its_limits() -> None:
    assert friedman(np.ones((5, 3)))["chi2"] is None
    assert friedman(np.ones((1, 3)))["p"] is None
    agreed = friedman(np.tile([1.0, 2.0, 3.0], (4, 1)))
    assert agreed["chi2"] == pytest.approx(8.0)
    assert (agreed["f"], agreed["p_f"]) == (None, 0.0)


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (5, 2.728), (10, 3.164)])
def test_nemenyi_quantiles_of_demsar(k: int, q: float) -> None:
    assert nemenyi_quantile(k) == pytest.approx(q, abs=6e-4)
    assert critical_difference(k, 6) == pytest.approx(q * math.sqrt(k * (k + 1) / 36), rel=3e-4)


def test_no_critical_difference_of_one() -> None:
    assert critical_difference(1, 10) is None
    assert critical_difference(5, 1) is None
    found = summary(grid({"a": THREE, "b": THREE}), "balanced_error")["tests"]
    assert found["critical_difference"] == pytest.approx(critical_difference(3, 2))
    assert found["friedman"]["chi2"] == pytest.approx(4.0)
