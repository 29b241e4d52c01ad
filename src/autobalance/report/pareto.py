"""Which points of a frontier are worth showing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DIGITS = 6
"""Of error and gap, as shares; points that agree to so many digits are one."""


def frontier_points(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points of a frontier's record, in its order, without any that is there twice or dominated.

    A point is dominated where another has at most its error and its gap, and less of one. A point whose
    network always errs on some class dominates only others of this kind. Where the error or the gap is
    not defined, nothing can be compared and all points stay. The point that was picked, "picked" of the
    record or the one under the record's own mix or bound, always stays, with "picked" set to True.
    """
    by = record.get("by", "mix")
    picked = record.get("picked")
    points = [dict(p) for p in record["points"]]
    if picked is None:
        picked = next((p for p in points if p[by] == record.get(by)), None)
    if picked is not None:
        points = [p for p in points if _ends(p) != _ends(picked) or None in _ends(p)]
        points = [p for p in points if p[by] != picked[by]]
        points.append({**picked, "picked": True})
        points.sort(key=lambda p: p[by], reverse=by == "bound")
    seen: set[Any] = set()
    kept = []
    for point in points:
        ends = _ends(point)
        if point.get("picked") or None in ends:
            kept.append(point)
        elif ends not in seen and not any(_dominates(other, point) for other in points):
            kept.append(point)
            seen.add(ends)
    return kept


def _ends(point: Mapping[str, Any]) -> tuple[float | None, float | None]:
    main, gap = (None if point[a] is None else round(point[a], _DIGITS) for a in ("main", "gap"))
    return main, gap


def _dominates(other: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    (a, b), (main, gap) = _ends(other), _ends(point)
    if a is None or b is None or main is None or gap is None:
        return False
    if other["constant"] and not point["constant"]:
        return False
    return a <= main and b <= gap and (a, b) != (main, gap)
