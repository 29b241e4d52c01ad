"""A loss as gradient boosting takes it: the trees it fits are those of the loss itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import torch

from autobalance import GroupSpace, HierarchicalSpace, TunableCrossEntropy
from autobalance._validation import InputError
from autobalance.losses.modules import ParametricCrossEntropy
from helpers import blobs

PARAMS = {"num_leaves": 6, "min_data_in_leaf": 3, "verbosity": -1, "num_threads": 1}
TREES = 20


def example(k: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    data = blobs((120, 40, 12)[:k], groups=True)
    assert data.groups is not None
    return data.inputs.double().numpy(), data.target.numpy(), data.groups.numpy()


def scores_with(
    loss: ParametricCrossEntropy, X: np.ndarray, y: np.ndarray, groups: Any = None
) -> np.ndarray:
    """Raw scores of LightGBM fitted with the loss's weights and starting scores, ``(n, k)``."""
    weight, start = loss.boosting_inputs(y, groups)
    k = int(y.max()) + 1
    objective = {"objective": "binary"} if k == 2 else {"objective": "multiclass", "num_class": k}
    train = lightgbm.Dataset(X, y, weight=weight, init_score=start)
    scores = np.asarray(lightgbm.train(PARAMS | objective, train, TREES).predict(X, raw_score=True))
    return np.stack([0 * scores, scores], axis=1) if k == 2 else scores


def scores_of_the_loss(
    loss: ParametricCrossEntropy, X: np.ndarray, y: np.ndarray, groups: Any = None
) -> np.ndarray:
    """The same by a custom objective, whose gradient torch takes of the loss itself.

    The curvature is the diagonal of the Hessian, times LightGBM's factor k / (k - 1) for several
    classes. The loss is scaled as boosting has it: a sum whose weights have mean 1.
    """
    k = int(y.max()) + 1
    rows = None if groups is None else torch.from_numpy(groups)
    target = torch.from_numpy(y)

    def total(f: torch.Tensor) -> torch.Tensor:
        if k == 2:
            f = torch.cat([torch.zeros_like(f), f], dim=1)
        return len(y) * loss(f, target, groups=rows)

    def objective(scores: np.ndarray, _: Any) -> tuple[np.ndarray, np.ndarray]:
        f = torch.tensor(scores.reshape(len(y), -1)).requires_grad_()
        (gradient,) = torch.autograd.grad(total(f), f, create_graph=True)
        columns = range(f.shape[1])
        curved = [
            torch.autograd.grad(gradient[:, j].sum(), f, retain_graph=True)[0] for j in columns
        ]
        curvature = torch.stack([c[:, j] for j, c in enumerate(curved)], dim=1)
        factor = k / (k - 1) if k > 2 else 1.0
        found = gradient.detach().numpy(), factor * curvature.numpy()
        return found if k > 2 else (found[0].ravel(), found[1].ravel())

    params = PARAMS | {"objective": objective} | ({"num_class": k} if k > 2 else {})
    scores = np.asarray(lightgbm.train(params, lightgbm.Dataset(X, y), TREES).predict(X))
    return np.stack([0 * scores, scores], axis=1) if k == 2 else scores


LOSSES = {
    "additive": lambda k: ParametricCrossEntropy.logit_adjusted((120, 40, 12)[:k]).double(),
    "weights": lambda k: ParametricCrossEntropy((5.0, 1.0, 2.0)[:k]).double(),
    "both": lambda k: ParametricCrossEntropy((0.5, 1, 3)[:k], (1.0, -0.5, -2.0)[:k]).double(),
}


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_the_trees_are_those_of_the_loss_itself(name: str, k: int) -> None:
    X, y, _ = example(k)
    loss = LOSSES[name](k)
    expected = scores_of_the_loss(loss, X, y)
    if name == "weights":  # without starting scores LightGBM starts at the class frequencies
        weight, start = loss.boosting_inputs(y)
        assert start is None
        assert weight is not None
        full = ParametricCrossEntropy(loss.weight, torch.zeros(k).double())
        np.testing.assert_array_equal(full.boosting_inputs(y)[0], weight)
        loss = full
    found = scores_with(loss, X, y)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found[:, -1]).max() > 1.0


@pytest.mark.parametrize("k", [2, 3])
def test_with_a_row_per_group(k: int) -> None:
    X, y, groups = example(k)
    table = np.stack([np.bincount(y[groups == g], minlength=k) for g in (0, 1)])
    space = GroupSpace(table, learn=("weight", "additive")).double()
    with torch.no_grad():
        space.log_weight += 0.5 * torch.arange(2 * k).view(2, k)
    loss = TunableCrossEntropy(space).frozen()
    found = scores_with(loss, X, y, groups)
    np.testing.assert_allclose(found, scores_of_the_loss(loss, X, y, groups), rtol=1e-4, atol=1e-4)
    assert np.abs(found - scores_with(loss, X, y, 1 - groups)).max() > 0.1


def test_by_scikit_learns_face_it_finds_the_rare_class() -> None:
    """With labels of text, whose order is not that of the classes' sizes."""
    X, y, _ = example()
    labels = np.array(["b", "c", "a"])[y]
    names, index = np.unique(labels, return_inverse=True)
    loss = ParametricCrossEntropy.logit_adjusted(np.bincount(index))
    weight, start = loss.boosting_inputs(index)
    model = lightgbm.LGBMClassifier(n_estimators=TREES, verbosity=-1, n_jobs=1)
    plain = lightgbm.LGBMClassifier(n_estimators=TREES, verbosity=-1, n_jobs=1).fit(X, labels)
    model.fit(X, labels, sample_weight=weight, init_score=start)
    assert (model.classes_ == names).all()
    scores = model.predict(X, raw_score=True)
    assert (model.predict(X) == names[np.argmax(scores, axis=1)]).all()
    recall = [np.mean(m.predict(X)[labels == "a"] == "a") for m in (plain, model)]
    assert recall[1] > recall[0] + 0.2


def test_shapes_and_scale() -> None:
    y = [0, 2, 1, 0]
    loss = ParametricCrossEntropy([1, 2, 4], [0.0, -1.0, -2.0])
    weight, start = loss.boosting_inputs(y)
    assert weight is not None
    assert start is not None
    np.testing.assert_allclose(weight, np.array([1, 4, 2, 1]) / 2)
    np.testing.assert_allclose(start, [[0, -1, -2]] * 4)
    total = ParametricCrossEntropy([1, 2, 4], reduction="sum").boosting_inputs(torch.tensor(y))
    np.testing.assert_allclose(total[0], [1, 4, 2, 1])  # type: ignore[arg-type]
    assert total[1] is None
    two = ParametricCrossEntropy(additive=[0.5, -1.0]).boosting_inputs([0, 1])
    assert two[0] is None
    np.testing.assert_allclose(two[1], [-1.5, -1.5])  # type: ignore[arg-type]
    assert ParametricCrossEntropy.cross_entropy().boosting_inputs(y) == (None, None)
    start[0] = 7.0  # arrays of one's own
    np.testing.assert_allclose(start[1], [0, -1, -2])


def test_a_space_without_multiplicative_part_serves_and_delta_one_too() -> None:
    frozen = TunableCrossEntropy(HierarchicalSpace([9, 3, 1])).frozen()
    start = frozen.boosting_inputs([0, 1, 2])[1]
    np.testing.assert_allclose(start[0], 0.8 * np.log(np.array([9, 3, 1]) / 13), rtol=1e-6)  # type: ignore[index]
    ones = ParametricCrossEntropy(additive=frozen.additive, multiplicative=[1.0, 1.0, 1.0])
    np.testing.assert_array_equal(ones.boosting_inputs([0, 1, 2])[1], start)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "y", "groups", "message"),
    [
        (ParametricCrossEntropy.vector_scaling([9, 3]), [0, 1], None, "delta other than 1"),
        (
            ParametricCrossEntropy([1.0, 2.0], label_smoothing=0.1),
            [0, 1],
            None,
            r"hard labels; this loss smooths them by 0\.1",
        ),
        (ParametricCrossEntropy([1.0, 2.0]), ["a", "b"], None, "y must hold whole numbers"),
        (ParametricCrossEntropy([1.0, 2.0]), [[0], [1]], None, r"y must hold .* shape \(2, 1\)"),
        (ParametricCrossEntropy([1.0, 2.0]), [0, 2], None, r"y must lie in 0\.\.1.* from 0 to 2"),
        (ParametricCrossEntropy([1.0, 2.0]), [-100, 1], None, "numbers from -100 to 1"),
        (ParametricCrossEntropy([[1, 2], [3, 4]]), [0, 1], None, "2 groups: pass groups="),
        (ParametricCrossEntropy([[1, 2], [3, 4]]), [0, 1], [0, 2], r"groups must lie in 0\.\.1"),
        (ParametricCrossEntropy([[1, 2], [3, 4]]), [0, 1], [0], "y has 2, groups has 1"),
    ],
)
def test_refused(loss: ParametricCrossEntropy, y: Any, groups: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loss.boosting_inputs(y, groups)


def test_the_page_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs/how_to/boosting.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    printed = []
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})
        printed.append(capsys.readouterr().out)
    accuracy, explanation = printed
    assert float(accuracy.splitlines()[-1]) > 0.8
    assert "tau" in explanation
