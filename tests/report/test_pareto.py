"""Which points of a frontier are shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from autobalance.report import frontier_points


def points(*ends: tuple[float | None, float | None], constant: tuple[int, ...] = ()) -> list[Any]:
    return [
        {"mix": i / 10, "main": main, "gap": gap, "constant": i in constant}
        for i, (main, gap) in enumerate(ends)
    ]


def mixes(record: dict[str, Any]) -> list[float]:
    return [point["mix"] for point in frontier_points(record)]


def test_what_is_shown_is_what_a_plain_double_loop_leaves() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        ends = generator.integers(0, 6, size=(10, 2)) / 10
        left = []
        for i, (main, gap) in enumerate(ends):
            beaten = any((e <= (main, gap)).all() and (e < (main, gap)).any() for e in ends)
            again = any((e == (main, gap)).all() for e in ends[:i])
            if not beaten and not again:
                left.append(i / 10)
        assert mixes({"points": points(*map(tuple, ends.tolist()))}) == left


def test_the_pick_stays_and_is_marked_once() -> None:
    record = {"points": points((0.1, 0.4), (0.2, 0.5), (0.3, 0.1))}
    assert mixes(record) == [0.0, 0.2]
    for given in ({"picked": record["points"][1]}, {"mix": 0.1}):
        shown = frontier_points({**record, **given})
        assert [(p["mix"], bool(p.get("picked"))) for p in shown] == [
            (0.0, False), (0.1, True), (0.2, False),
        ]  # fmt: skip


def test_a_picked_bound_takes_the_place_of_a_point_with_its_ends() -> None:
    swept = [{"bound": b, "main": 0.5 - b, "gap": b, "constant": False} for b in (0.3, 0.2, 0.1)]
    record = {"by": "bound", "points": swept}
    between = {"bound": 0.15, "main": 0.35, "gap": 0.15, "constant": False}
    shown = frontier_points({**record, "picked": between})
    assert [p["bound"] for p in shown] == [0.3, 0.2, 0.15, 0.1]
    same = {**swept[1], "bound": 0.2 + 1e-12, "main": 0.3 + 1e-12}
    shown = frontier_points({**record, "picked": same})
    assert [p["gap"] for p in shown] == [0.3, 0.2, 0.1]
    assert [bool(p.get("picked")) for p in shown] == [False, True, False]


def test_a_constant_point_beats_constant_ones_alone() -> None:
    swept = points((0.3, 0.2), (0.25, 0.0), (0.4, 0.0), constant=(1, 2))
    assert mixes({"points": swept}) == [0.0, 0.1]


def test_where_a_gap_is_not_defined_every_point_stays() -> None:
    assert mixes({"points": points((0.1, None), (0.2, None))}) == [0.0, 0.1]
