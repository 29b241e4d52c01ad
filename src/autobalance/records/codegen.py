"""A designed loss as a few lines of PyTorch that need nothing of this library. Imports no torch."""

from __future__ import annotations

from typing import Any

DTYPES = {
    "None": 17,
    "torch.float64": 17,
    "torch.float32": 9,
    "torch.float16": 5,
    "torch.bfloat16": 5,
}
"""Digits that tell all numbers of a dtype apart; without parameters there is none."""
_WIDTH = 88
_PARTS = ("weight", "additive", "multiplicative")


def loss_snippet(record: dict[str, Any]) -> str:
    """Source code of a function with the value of a loss, from the loss's record.

    Parameters
    ----------
    record : dict
        From `ParametricCrossEntropy.to_dict`, or ``loss.json``.

    Returns
    -------
    str
        Python that defines ``loss(logits, target)``, or with one row per group
        ``loss(logits, target, groups)``; the parameters in as many digits as they have. As torch's
        own it gives NaN for the mean over a batch whose targets are all ignored.
    """
    dtype = str(record.get("dtype"))
    used = {name: record[name] for name in _PARTS if record.get(name) is not None}
    rows = {name for name, values in used.items() if isinstance(values[0], list)}
    lines = ["import torch", "import torch.nn.functional as F", ""][0 if used else 1 :]
    for name, values in used.items():
        lines.append(f"{name} = torch.tensor({_literal(values, DTYPES.get(dtype, 17))}")
        lines[-1] += ")" if dtype in ("None", "torch.float32") else f", dtype={dtype})"
    groups = ", groups" if rows else ""
    lines += ["", ""] if used else [""]
    lines.append(f"def loss(logits, target{groups}):")

    def picked(name: str) -> str:
        return f"{name}.to(logits.device){'[groups]' if name in rows else ''}"

    z = "logits"
    if "multiplicative" in used:
        z = f"{picked('multiplicative')} * {z}"
    if "additive" in used:
        z = f"{z} + {picked('additive')}"
    reduction, ignored = record.get("reduction", "mean"), record.get("ignore_index", -100)
    smoothing = record.get("label_smoothing", 0.0)
    if z != "logits":
        lines.append(f"    z = {z}")
        z = "z"
    options = f", label_smoothing={smoothing!r}" if smoothing else ""
    options += f", ignore_index={ignored}" if ignored != -100 else ""
    if "weight" not in rows:
        if "weight" in used:
            options += f", weight={picked('weight')}.to({z}.dtype)"
        options += f", reduction={reduction!r}" if reduction != "mean" else ""
        lines.append(f"    return F.cross_entropy({z}, target{options})")
        return "\n".join(lines) + "\n"
    lines += [
        f"    valid = target != {ignored}",
        "    y = torch.where(valid, target, 0)[:, None]",
        f"    w = {picked('weight')}.to({z}.dtype)",
        "    w_y = torch.where(valid, w.gather(1, y)[:, 0], 0)",
        f"    log_p = F.log_softmax({z}, dim=1)",
        "    value = -w_y * log_p.gather(1, y)[:, 0]",
    ]
    if smoothing:
        lines += [
            "    smooth = -torch.where(valid, (w * log_p).mean(dim=1), 0)",
            f"    value = {1.0 - smoothing!r} * value + {smoothing!r} * smooth",
        ]
    ends = {"none": "value", "sum": "value.sum()", "mean": "value.sum() / w_y.sum()"}
    lines.append(f"    return {ends[reduction]}")
    return "\n".join(lines) + "\n"


def _literal(values: list[Any], digits: int) -> str:
    """Numbers as source code, on several lines where one would be long."""
    if isinstance(values[0], list):
        inner = [_literal(row, digits).replace("\n", "\n    ") for row in values]
        return "[\n    " + ",\n    ".join(inner) + ",\n]"
    numbers = [_number(value, digits) for value in values]
    line = "[" + ", ".join(numbers) + "]"
    if len(line) <= _WIDTH - 30:
        return line
    lines, now = [], "   "
    for text in numbers:
        if len(now) + len(text) + 2 > _WIDTH:
            lines.append(now)
            now = "   "
        now += f" {text},"
    return "[\n" + "\n".join([*lines, now]) + "\n]"


def _number(value: float, digits: int) -> str:
    text = f"{float(value):.{digits}g}"
    return text if any(mark in text for mark in ".en") else f"{text}.0"
