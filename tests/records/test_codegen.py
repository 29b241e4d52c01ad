"""The loss as code has the values of the loss."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
import torch

from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.records.codegen import loss_snippet
from autobalance.report.html import render_report
from autobalance.report.record import MAX_SNIPPET, read_run
from report_records import checked, make_record

G, K, N = 3, 4, 20
SHAPES = {"none": None, "classes": (K,), "groups": (G, K)}


def defined(code: str) -> Any:
    """The function that the code defines, run with nothing of this library in sight."""
    names: dict[str, Any] = {}
    assert "autobalance" not in code
    exec(compile(code, "snippet", "exec"), names)
    return names["loss"]


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(N, K, generator=generator, dtype=dtype)
    return logits, torch.arange(N) % K, torch.arange(N) % G


def made(
    w: str, additive: str, delta: str, dtype: torch.dtype, **options: Any
) -> ParametricCrossEntropy:
    generator = torch.Generator().manual_seed(1)

    def drawn(kind: str, low: float) -> torch.Tensor | None:
        shape = SHAPES[kind]
        if shape is None:
            return None
        return low + torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    parts = drawn(w, 0.5), drawn(additive, -1.0), drawn(delta, 0.2)
    return ParametricCrossEntropy(*parts, **options)


@pytest.mark.parametrize("parts", [*product(SHAPES, repeat=3)], ids="-".join)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_has_the_value_and_gradient_of_the_loss(
    parts: tuple[str, str, str], reduction: Any, smoothing: float
) -> None:
    loss = made(*parts, torch.float32, reduction=reduction, label_smoothing=smoothing)
    logits, target, groups = batch()
    target[3] = -100
    given = [groups] if loss.num_groups else []
    found_at, expected_at = (logits.clone().requires_grad_() for _ in range(2))
    found = defined(loss.to_snippet())(found_at, target, *given)
    expected = loss(expected_at, target, groups=groups if given else None)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(found_at.grad, expected_at.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_digit_is_lost(dtype: torch.dtype) -> None:
    loss = made("classes", "groups", "groups", dtype)
    names: dict[str, Any] = {}
    exec(compile(loss.to_snippet(), "snippet", "exec"), names)
    for name, p in loss.parameters_of_loss._asdict().items():
        assert torch.equal(names[name], p)
        assert names[name].dtype == dtype


@pytest.mark.parametrize("parts", [("classes", "classes", "none"), ("groups", "none", "none")])
def test_another_ignored_index(parts: tuple[str, str, str]) -> None:
    loss = made(*parts, torch.float32, ignore_index=255)
    logits, target, groups = batch()
    target[:5] = 255
    given = [groups] if loss.num_groups else []
    found = defined(loss.to_snippet())(logits, target, *given)
    torch.testing.assert_close(found, loss(logits, target, groups=groups if given else None))


def test_it_is_short_and_reads_from_json() -> None:
    loss = ParametricCrossEntropy.vector_scaling([500, 50, 5])
    code = loss_snippet(json.loads(loss.to_json()))
    assert code == loss.to_snippet()
    assert len(code.splitlines()) == 10
    many = ParametricCrossEntropy.logit_adjusted(list(range(1, 200))).to_snippet()
    assert max(map(len, many.splitlines())) <= 90
    plain = ParametricCrossEntropy.cross_entropy().to_snippet()
    assert "torch.tensor" not in plain
    logits, target, _ = batch()
    expected = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(defined(plain)(logits, target), expected)


# In the report ----------------------------------------------------------------------------------


def test_the_report_prints_it() -> None:
    record = make_record(k=3)
    assert "The loss as code" not in render_report(record)
    loss = ParametricCrossEntropy.logit_adjusted([9, 5, 3], label_smoothing=0.1)
    record["search"]["loss"] = loss.to_dict()
    page = checked(record)
    assert "".join(page.text).count(loss.to_snippet()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"additive": [1.0, None, 0.0]},
        {"additive": "os.remove"},
        {"additive": [[1.0, 2.0]]},
        {"reduction": "worst"},
        {"dtype": "__import__('os')"},
        {"label_smoothing": "x"},
        {"ignore_index": "-1); evil("},
        {"format": "other"},
    ],
)
def test_the_report_prints_no_code_from_an_altered_record(change: dict[str, Any]) -> None:
    record = make_record(k=3)
    record["search"]["loss"] = ParametricCrossEntropy.logit_adjusted([9, 5, 3]).to_dict() | change
    assert read_run(record).snippet is None
    assert "The loss as code" not in render_report(record)


def test_a_long_one_is_left_to_the_file() -> None:
    record = make_record(k=MAX_SNIPPET + 1)
    loss = ParametricCrossEntropy.logit_adjusted([5] * (MAX_SNIPPET + 1))
    record["search"]["loss"] = loss.to_dict()
    assert read_run(record).snippet is None
