"""Records to report on, and what must hold for every page made of one."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np

from autobalance.report.html import render_report

VOID = {"meta", "wbr", "link", "br", "hr", "img", "input"}


def make_record(
    k: int = 4,
    groups: int = 0,
    steps: int = 30,
    parts: tuple[str, ...] = ("additive",),
    seed: int = 0,
) -> dict[str, Any]:
    """A run's record as the library writes it, with random numbers."""
    draw = np.random.default_rng(seed)
    shape = (groups, k) if groups else (k,)
    counts = np.sort(draw.integers(5, 500, size=shape))[..., ::-1]
    prior = np.log(counts / counts.sum(axis=-1, keepdims=True))
    ends = {
        "additive": (prior, 1.4 * prior + 0.1 * draw.normal(size=shape)),
        "multiplicative": (np.ones(shape), draw.uniform(0.7, 1.3, size=shape)),
        "weight": (np.ones(shape), draw.uniform(0.5, 2, size=shape)),
    }

    def loss(share: float) -> dict[str, Any]:
        return {
            key: ((1 - share) * a + share * b).tolist() if key in parts else None
            for key, (a, b) in ends.items()
        }

    def method(title: str) -> dict[str, Any]:
        errors = draw.integers(0, 51, size=k) / 50
        return {
            "title": title,
            "balanced_error": float(errors.mean()),
            "worst_class_error": float(errors.max()),
            "class_errors": errors.tolist(),
            "n": 50 * k,
            "class_n": [50] * k,
            "seconds": 12.3,
            "training_runs": 1,
        }

    names = {
        "cross_entropy": "Cross-entropy",
        "logit_adjustment": "LA",
        "autobalance": "autobalance",
    }
    return {
        "kind": "demo",
        "command": "autobalance demo --out run",
        "objective": "group_balanced_error" if groups else "balanced_error",
        "class_names": [f"class {i}" for i in range(k)],
        "group_names": [f"group {i}" for i in range(groups)] or None,
        "class_counts": counts.tolist(),
        "search": {
            "format": "autobalance-search",
            "version": 1,
            "status": "finished",
            "seed": 0,
            "loss": loss(1.0),
            "start": loss(0.0),
            "design": {"space": "HierarchicalSpace"},
            "settings": {"recipe": {"epochs": 20.0}, "steps": 300, "class_counts": counts.tolist()},
            "versions": {"python": "3.11"},
            "seconds": {"wall": 3.0, "cpu": 2.9},
            "history": [
                {
                    "step": 100 + 5 * i,
                    "objective": 0.4 - 0.001 * i,
                    "hard_objective": float(draw.uniform(0.2, 0.4)),
                    "training_loss": 1.0 / (1 + i),
                    "norm": float("nan"),
                    "reason": "iterations",
                }
                for i in range(steps)
            ],
            "path": [
                {"step": 0, **loss(0.0)},
                *({"step": 100 + 5 * i, **loss((i + 1) / steps)} for i in range(steps)),
            ],
        },
        "methods": {name: method(title) for name, title in names.items()},
        "evaluation_data": f"{50 * k:,} balanced test images",
        "seconds": {"search": 3.0, "retrain": 75.0, "total": 4000.0},
        "versions": {"python": "3.11", "torch": "2.6"},
        "seed": 0,
    }


class Checker(HTMLParser):
    """Collects what the tests ask about, and fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> outside SVG"
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


def checked(record: dict[str, Any]) -> Checker:
    """Render the record and check what must hold for every page."""
    return checked_page(render_report(record))


def checked_page(page: str) -> Checker:
    """Check what must hold for every page."""
    checker = Checker(page)
    assert len(page.encode()) < 2_000_000
    assert len(checker.ids) == len(set(checker.ids)), "ids clash"
    names = set(checker.ids)
    for tag, attrs in checker.tags:
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        assert "src" not in attrs, (tag, attrs)
        assert tag not in ("link", "iframe", "img", "object", "embed", "base"), tag
        if tag == "image":
            assert re.fullmatch(r"data:image/png;base64,[\w+/]+=*", attrs["href"]), attrs
        for key in ("href", "xlink:href"):
            if tag != "image" and key in attrs and tag != "a":
                assert attrs[key].startswith("#"), (tag, attrs)
                assert attrs[key][1:] in names, (tag, attrs)
        assert set(re.findall(r"url\(#([^)]*)\)", attrs.get("clip-path", ""))) <= names
        for key in ("aria-labelledby", "aria-describedby"):
            assert set(attrs.get(key, "").split()) <= names
    assert not re.search(r"@import|url\((?!#)", page.partition("</style>")[0])
    headings = [int(tag[1]) for tag, _ in checker.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert checker.count("script") == 1
    assert checker.count("caption") == checker.count("table")
    assert {a.get("lang") for t, a in checker.tags if t == "html"} == {"en"}
    svgs = [attrs for tag, attrs in checker.tags if tag == "svg"]
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in svgs)
    return checker


def measured_record(k: int = 4, groups: int = 0, seed: int = 0, **given: Any) -> dict[str, Any]:
    """As `make_record`, with what networks predicted: errors, confusions and calibration agree."""
    record = make_record(k, groups, seed=seed, **given)
    draw = np.random.default_rng(seed)
    target = np.repeat(np.arange(k), 50 if k <= 50 else 3)
    for i, method in enumerate(record["methods"].values()):
        logits = draw.normal(size=(len(target), k))
        logits[np.arange(len(target)), target] += 1.0 + 0.4 * i
        group = np.arange(len(target)) % groups if groups else None
        names = record["group_names"]
        entry = predicted_by(logits, target, group, names)
        method.update(entry)
        method["calibration"] = {"temperature": 1.2, "raw": bins(2 * logits, target)}
        method["calibration"]["corrected"] = bins(logits, target)
    return record


def predicted_by(
    logits: np.ndarray, target: np.ndarray, group: np.ndarray | None, names: list[str] | None
) -> dict[str, Any]:
    """Errors and confusions of these logits."""
    from autobalance.records.metrics import classification_report, confused_pairs

    predicted, k = logits.argmax(axis=1), logits.shape[1]
    return {
        **classification_report(target, predicted, k, group, names),
        "confused": confused_pairs(target, predicted, k),
    }


def bins(logits: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """A reliability diagram of their softmax."""
    from dataclasses import asdict

    from autobalance.records.metrics import reliability

    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return asdict(reliability(p / p.sum(axis=1, keepdims=True), target))
