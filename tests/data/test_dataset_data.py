"""Any map-style Dataset: its labels, views, items and seeds, and what is refused."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from autobalance._validation import InputError
from autobalance.bilevel import checkpoints
from autobalance.bilevel.checkpoints import Checkpoint, OtherRun
from autobalance.bilevel.execution import warn_of_min_steps
from autobalance.bilevel.network_search import search
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.types import Interrupted
from autobalance.data.array_data import ArrayData, concatenated, reading
from autobalance.data.dataset_data import DatasetData, as_data, find_labels
from autobalance.data.dataset_reader import ExampleError, start_method
from autobalance.heads.features import extract_features
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.records.settings import Recipe, SearchSettings
from torchvision_operators import define_missing_operators

RECIPE = Recipe(epochs=2, min_steps=12, batch_size=16, lr=0.02)
SETTINGS = SearchSettings(folds=1, warmup=0.2, every=2)


class Points(Dataset[Any]):
    """Sixty points of two classes, one three times as frequent, behind a transform."""

    def __init__(self, transform: Any = None, n: int = 60) -> None:
        generator = np.random.default_rng(0)
        self.targets = [int(i % 4 == 0) for i in range(n)]
        self.x = generator.normal(size=(n, 5)).astype(np.float32)
        self.x[:, 0] += self.targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = torch.from_numpy(self.x[index])
        return (x if self.transform is None else self.transform(x)), self.targets[index]


class Items(Dataset[Any]):
    """What a function makes of each number."""

    def __init__(self, item: Any, targets: Any = (0, 0, 0, 1, 1, 1)) -> None:
        self.item, self.targets = item, list(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


def jitter(x: Tensor) -> Tensor:
    """Draws from all three global random states."""
    return x + 0.1 * torch.randn(x.shape) + 0.01 * random.random() + 0.01 * float(np.random.rand())


def plain(x: Tensor) -> Tensor:
    return x


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.float().flatten() for value in model.state_dict().values()])


def trained(data: Any, **options: Any) -> Tensor:
    options = {"recipe": RECIPE, "device": "cpu", "loss": nn.CrossEntropyLoss(), **options}
    return weights(retrain(network, data, **options))


# The same as arrays, and one seed one result -------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_gives_the_bits_of_the_same_arrays(workers: int) -> None:
    points = Points()
    arrays = ArrayData.of(points.x, points.targets)
    data = DatasetData.of(points, num_workers=workers)
    first, second = (
        search(network, d, recipe=RECIPE, settings=SETTINGS, device="cpu") for d in (arrays, data)
    )
    assert first.loss.to_dict() == second.loss.to_dict()
    assert [h.objective for h in first.history] == [h.objective for h in second.history]
    assert torch.equal(trained(arrays, loss=first.loss), trained(data, loss=first.loss))
    assert multiprocessing.active_children() == []


def test_random_transforms_follow_the_seed_whatever_the_workers() -> None:
    runs = [
        trained(DatasetData.of(Points(jitter), evaluation=plain, num_workers=w), seed=s)
        for w, s in ((0, 1), (1, 1), (2, 1), (0, 2))
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], runs[3])
    assert not torch.equal(runs[0], trained(Points(), seed=1))


def test_global_random_states_are_given_back() -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = random.random(), np.random.rand(), torch.rand(())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    data = DatasetData.of(Points(jitter), evaluation=plain, num_workers=1)
    with reading(data):
        data.request(torch.arange(4), 3, training=True)()
    data = DatasetData.of(Points(jitter), evaluation=plain)
    data.request(torch.arange(4), 3, training=True)()
    assert (random.random(), np.random.rand(), torch.rand(())) == before


class Stopped(Exception):
    pass


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_continues_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)

    def run(checkpoint: Path | None) -> tuple[Any, Tensor]:
        data = DatasetData.of(Points(jitter), evaluation=plain, num_workers=workers)
        options: dict[str, Any] = {"recipe": RECIPE, "device": "cpu", "checkpoint": checkpoint}
        loss = search(network, data, settings=SETTINGS, **options).loss
        if checkpoint is not None:
            options["checkpoint"] = checkpoint.with_suffix(".retrain")
        return loss.to_dict(), weights(retrain(network, data, loss, **options))

    whole = run(None)
    save, saves = Checkpoint.save, 0

    def save_and_stop(self: Checkpoint) -> None:
        nonlocal saves
        save(self)
        saves += 1
        if saves in (5, 12, 20):
            raise Stopped

    monkeypatch.setattr(Checkpoint, "save", save_and_stop)
    file = tmp_path / "state"
    for _ in range(3):
        with pytest.raises(Stopped):
            run(file)
    loss, final = run(file)
    assert (loss, torch.equal(final, whole[1])) == (whole[0], True)
    assert multiprocessing.active_children() == []
    other = DatasetData.of(Subset(Points(), range(40)))
    with pytest.raises(OtherRun, match="its training data are others"):
        search(network, other, settings=SETTINGS, recipe=RECIPE, device="cpu", checkpoint=file)


def test_ctrl_c_stops_the_workers() -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    data = DatasetData.of(Points(), num_workers=2)
    with pytest.raises(Interrupted):
        retrain(
            network, data, nn.CrossEntropyLoss(), recipe=RECIPE, progress=interrupt, device="cpu"
        )
    assert multiprocessing.active_children() == []


# Views ---------------------------------------------------------------------------------------


def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize("kind", ["transform", "dataset", "subset"])
def test_held_out_examples_are_seen_through_the_evaluation_view(kind: str) -> None:
    points: Any = Points(double)
    expected = torch.from_numpy(points.x)
    evaluation: Any = Points() if kind == "dataset" else plain
    if kind == "subset":
        points, expected = Subset(points, range(8, 60)), expected[8:]
    data = DatasetData.of(points, evaluation=evaluation)
    index = torch.tensor([3, 0, 7])
    assert torch.equal(data.batch(index).inputs, expected[index])
    assert torch.equal(data.request(index, 0, training=True)().inputs, 2 * expected[index])
    assert torch.equal(torch.cat(list(data.inputs.split(7))), expected)
    assert torch.equal(extract_features(nn.Identity(), data, device="cpu"), expected)
    assert torch.equal(predict_logits(nn.Identity(), data), expected)
    part = data.subset(torch.tensor([5, 2]))
    assert torch.equal(part.batch(torch.tensor([1])).inputs, expected[[2]])


def test_random_transforms_without_an_evaluation_view_are_told() -> None:
    with pytest.warns(UserWarning, match=r"held-out examples are augmented.*evaluation="):
        data = as_data(Points(jitter))
    index = torch.arange(5)
    assert torch.equal(data.batch(index).inputs, data.batch(index).inputs)


def test_a_generator_of_its_own_is_told() -> None:
    own = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="generator of their own"):
        DatasetData.of(Points(lambda x: x + float(own.random())))


# Labels --------------------------------------------------------------------------------------


def test_labels_are_found_where_datasets_keep_them() -> None:
    points = Points()
    x, y = torch.from_numpy(points.x), torch.tensor(points.targets)
    halves = ConcatDataset(
        [Subset(points, range(30)), Subset(Subset(points, range(20, 60)), range(10, 40))]
    )
    named = Items(lambda i: (x[i], int(y[i])), y.tolist())
    named.y, named.species = np.array(named.targets), named.targets  # type: ignore[attr-defined]
    del named.targets
    named.__class__ = type("Named", (Items,), {"__len__": lambda self: len(self.y)})
    for data in (
        as_data(points),
        as_data(halves),
        as_data(TensorDataset(x, y)),
        as_data(named),
        DatasetData.of(named, "species"),
        DatasetData.of(points, lambda d: d.targets),
        DatasetData.of(points, y, groups=lambda d: np.arange(60) % 2),
    ):
        assert data.target.tolist() == points.targets
        assert data.counts().sum() == 60
    assert find_labels(TensorDataset(x)) is None


def test_hugging_face_datasets() -> None:
    import datasets

    points = Points()
    made = datasets.Dataset.from_dict({"x": points.x.tolist(), "label": points.targets})
    made = made.with_format("torch")
    assert torch.equal(trained(made), trained(points))
    with pytest.raises(InputError, match="several splits"):
        as_data(datasets.DatasetDict({"train": made}))
    with pytest.raises(InputError, match="only in order"):
        DatasetData.of(made.to_iterable_dataset(), [0])


def test_an_image_folder_of_torchvision(tmp_path: Path, image_folder: Any) -> None:
    folder, ToTensor = image_folder
    data = DatasetData.of(folder, evaluation=ToTensor())
    assert (data.num_classes, data.inputs.shape) == (2, (8, 3, 6, 6))
    folder.transform = None
    with pytest.raises(InputError, match=r"PIL image.*ToTensor"):
        as_data(folder)


@pytest.fixture
def image_folder(tmp_path: Path) -> Any:
    from PIL import Image

    define_missing_operators()
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import ToTensor

    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = generator.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return ImageFolder(tmp_path, transform=ToTensor()), ToTensor


def test_two_datasets_are_joined() -> None:
    first, second = DatasetData.of(Points(double)), DatasetData.of(Points(), num_classes=2)
    both = concatenated(first.subset(torch.tensor([1, 2])), second.subset(torch.tensor([0])))
    expected = np.stack([2 * Points().x[1], 2 * Points().x[2], Points().x[0]])
    assert torch.equal(both.batch(torch.arange(3)).inputs, torch.from_numpy(expected))
    again = concatenated(first.subset(torch.tensor([1])), first.subset(torch.tensor([4])))
    assert again.target.tolist() == [0, 1]
    with pytest.raises(InputError, match="both come from a Dataset"):
        concatenated(first, ArrayData.of(Points().x, Points().targets))


# Items ---------------------------------------------------------------------------------------


class Words(nn.Module):
    """Takes its arguments by name, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask.unsqueeze(-1).float()
        return {"logits": self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))}


def pad(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([item["input_ids"] for item in items], batch_first=True)
    labels = torch.tensor([item["labels"] for item in items])
    return {"input_ids": ids, "attention_mask": ids > 0, "labels": labels}


def sentence(index: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(index)
    length = int(torch.randint(2, 7, (), generator=generator))
    ids = torch.randint(1, 9, (length,), generator=generator)
    return {"input_ids": ids, "labels": int(index % 3 == 0)}


# Threads that other tests left, of joblib for example, are no matter here.
@pytest.mark.filterwarnings("ignore:Workers are forked")
@pytest.mark.parametrize("workers", [0, 1])
def test_variable_lengths_and_keyword_arguments_through_a_collate_fn(workers: int) -> None:
    items = Items(sentence, [int(i % 3 == 0) for i in range(40)])
    data = DatasetData.of(items, collate_fn=pad, num_workers=workers)
    assert data.inputs.shape == (40,)
    result = search(Words, data, recipe=RECIPE, settings=SETTINGS, device="cpu")
    model = retrain(Words, data, result.loss, recipe=RECIPE, device="cpu")
    logits = predict_logits(model, data)
    alone = model(**{k: v for k, v in pad([items[7]]).items() if k != "labels"})["logits"]
    torch.testing.assert_close(logits[7:8], alone)


def test_tuples_and_doubles_reach_the_network() -> None:
    pair = Items(lambda i: ((torch.ones(2), np.full(3, float(i))), i // 3))
    inputs = as_data(pair).batch(torch.tensor([4, 1])).inputs
    assert [tuple(t.shape) for t in inputs] == [(2, 2), (2, 3)]
    assert inputs[1].dtype == torch.float32
    single = as_data(Items(lambda i: {"image": torch.ones(2) * i, "label": i // 3}))
    assert single.batch(torch.tensor([2])).inputs.tolist() == [[2, 2]]


# Refusals ------------------------------------------------------------------------------------


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


class NoLength(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return torch.ones(2), 0


def odd(index: int) -> Any:
    return torch.ones(3 if index == 4 else 2), index // 3


@pytest.mark.parametrize(
    ("dataset", "given", "message"),
    [
        (Endless(), {}, r"Endless gives its examples only in order.*LossTuner"),
        (NoLength(), {}, r"has no length. Define __len__"),
        (Items(odd, []), {}, "There is no example"),
        (Items(odd), {"target": "kind"}, 'no target named "kind".*Give target='),
        (TensorDataset(torch.ones(3, 2)), {}, r"no target in .targets.*Give target="),
        (
            Items(lambda i: torch.ones(2)),
            {},
            r"pair \(inputs, target\) or a mapping.*example 0 is Tensor",
        ),
        (
            Items(lambda i: {"x": [1.0, 2.0], "y": i // 3}),
            {},
            r'list where a tensor.*with_format\("torch"\)',
        ),
        (Items(odd), {}, r"do not stack: example 4 .*collate_fn"),
        (Items(lambda i: (torch.ones(2), 1)), {}, "Example 0 has label 1 in its item, but 0"),
        (Items(odd), {"target": [0, 1]}, "target has 2 labels, but the Dataset has 6"),
        (Items(lambda i: (torch.tensor([i / 0.0 if i else 0.0]), i // 3)), {}, "ZeroDivision"),
        (Items(lambda i: (torch.full((2,), float("nan")), i // 3)), {}, "example 0 are not finite"),
        (
            Items(lambda i: {"a": torch.ones(1), "t": "x", "y": i // 3}),
            {},
            "t must be tensors.*str",
        ),
        (Items(odd), {"evaluation": plain}, "no attribute transform.*second Dataset"),
        (Points(), {"evaluation": Points(n=8)}, "same examples in the same order; it has 8"),
        (Points(), {"num_workers": -1}, "num_workers"),
        (Points(), {"collate_fn": lambda items: torch.ones(3)}, "collate_fn must return a pair"),
        (
            Points(),
            {"collate_fn": lambda items: 1 / 0},
            "cannot be collated.*Check your collate_fn",
        ),
    ],
)
def test_refused(dataset: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ExampleError), match=message):
        DatasetData.of(dataset, **given)


def test_examples_without_labels_can_be_predicted_for() -> None:
    bare = Items(lambda i: torch.ones(2) * i)
    assert predict_logits(nn.Identity(), bare)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_loader_is_refused_with_its_dataset_named() -> None:
    with pytest.raises(InputError, match=r"got a DataLoader. Give its dataset"):
        as_data(DataLoader(Points()))


def breaks_at(index: int) -> Any:
    if index == 17:
        raise OSError("the disk is gone")
    return torch.ones(5) * index, index % 2


def dies_at(index: int) -> Any:
    if index == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.ones(5) * index, index % 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_raises_is_named(workers: int) -> None:
    data = DatasetData.of(Items(breaks_at, [i % 2 for i in range(40)]), num_workers=workers)
    with pytest.raises(ExampleError, match=r"Example 17 .*OSError: the disk is gone") as raised:
        trained(data)
    assert raised.value.index == 17
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_told_with_its_batch() -> None:
    data = DatasetData.of(Items(dies_at, [i % 2 for i in range(40)]), num_workers=1)
    with pytest.raises(
        ExampleError, match=r"A worker process died while it read example 17: .*num_workers=0"
    ) as raised:
        torch.cat(list(data.inputs.split(8)))
    assert raised.value.index == 17
    assert multiprocessing.active_children() == []


FIT = """
import os, signal, sys, torch
from autobalance import DatasetData, Recipe, retrain
from autobalance.bilevel import checkpoints

checkpoints.CHECKPOINT_SECONDS = 0.0

class Points(torch.utils.data.Dataset):
    targets = [i % 2 for i in range(40)]

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 17 and os.path.exists("broken") and os.path.exists("state"):
            raise OSError("the disk is gone") if FAULT == "raises" else os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones(5) * index / 40, index % 2

def fit(workers, checkpoint):
    recipe = Recipe(epochs=3, min_steps=12, batch_size=8)
    data = DatasetData.of(Points(), num_workers=workers)
    return retrain(
        lambda: torch.nn.Linear(5, 2), data, torch.nn.CrossEntropyLoss(), recipe=recipe, device="cpu",
        checkpoint=checkpoint,
    )

if __name__ == "__main__":
    torch.save(fit(WORKERS, "state").state_dict(), "model.pt")
"""


@pytest.mark.processes
@pytest.mark.parametrize(("fault", "workers"), [("raises", 0), ("dies", 1)])
def test_a_script_whose_example_fails_exits_1_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, workers: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    Path("fit.py").write_text(f"FAULT, WORKERS = {fault!r}, {workers}\n{FIT}")
    Path("broken").touch()
    done = subprocess.run([sys.executable, "fit.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ExampleError" in done.stderr
    assert re.search("xample 17[ :]", done.stderr)
    assert Path("state").exists()
    assert not Path("model.pt").exists()
    Path("broken").unlink()
    # The script once more, in this process, and without the interruption.
    fit = runpy.run_path("fit.py")["fit"]
    resumed, whole = fit(0, "state"), fit(0, None)
    assert torch.equal(weights(resumed), weights(whole))


def test_other_numbers_of_classes_than_outputs_are_told_without_a_guess() -> None:
    with pytest.raises(InputError, match=r"returns 2 logits .* 3 classes\. Both must be the same"):
        trained(DatasetData.of(Points(), num_classes=3))


def test_how_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    examples: Any = DatasetData.of(Points()).inputs.pool.examples  # type: ignore[union-attr]
    # A test runner's worker process has a main module without a file, as a notebook has.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread()])
    assert start_method(examples) == "fork"
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread()] * 2)
    assert start_method(examples) == "forkserver"
    examples = DatasetData.of(Points(lambda x: x)).inputs.pool.examples  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="forked while 2 Python threads run"):
        assert start_method(examples) == "fork"


@pytest.mark.processes
def test_workers_of_a_fresh_process_give_the_same_bits() -> None:
    data = DatasetData.of(
        Points(jitter), evaluation=plain, num_workers=1, multiprocessing_context="forkserver"
    )
    here = DatasetData.of(Points(jitter), evaluation=plain)
    with reading(data):
        first, second = (d.request(torch.arange(9), 5, training=True)() for d in (data, here))
    assert torch.equal(first.inputs, second.inputs)


# What retrain takes --------------------------------------------------------------------------


def test_torchs_own_loss_is_the_librarys_cross_entropy() -> None:
    points = Points()
    recipe = Recipe(epochs=2, min_steps=12, batch_size=16, absorb=0.0)
    own = trained(points, recipe=recipe)
    ours = trained(points, loss=ParametricCrossEntropy.cross_entropy(), recipe=recipe)
    torch.testing.assert_close(own, ours)
    assert torch.equal(own, trained(points, loss=nn.functional.cross_entropy, recipe=recipe))


def test_losses_that_cannot_serve_are_refused() -> None:
    points = Points()
    with pytest.raises(InputError, match=r'one number, the mean.*reduction="mean"'):
        trained(points, loss=nn.CrossEntropyLoss(reduction="none"))
    weighted = DatasetData.of(points, sample_weight=np.ones(60))
    with pytest.raises(InputError, match="sample weights, but CrossEntropyLoss takes none"):
        trained(weighted)
    with pytest.raises(InputError, match=r"loss must be one of autobalance.losses.*callable"):
        trained(points, loss=3.0)


def test_a_checkpoint_knows_the_settings_of_torchs_loss(tmp_path: Path) -> None:
    trained(Points(), checkpoint=tmp_path / "state")
    with pytest.raises(OtherRun, match="its loss is another"):
        trained(
            Points(), checkpoint=tmp_path / "state", loss=nn.CrossEntropyLoss(label_smoothing=0.1)
        )


def test_transforms_of_inputs_alone_and_with_their_classes() -> None:
    class Shift(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return inputs[0] + 1.0

    def by_class(inputs: Tensor, target: Tensor, groups: Tensor | None) -> Tensor:
        return inputs + torch.ones_like(target, dtype=inputs.dtype)[:, None]

    runs = [trained(Points(), augment=a) for a in (Shift(), lambda x: x + 1.0, by_class)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    searched = search(
        network, Points(), augment=lambda x: x + 1.0, recipe=RECIPE, settings=SETTINGS, device="cpu"
    )
    assert searched.loss is not None
    with pytest.raises(InputError, match=r"of \(inputs\), or of \(inputs, target, groups\)"):
        trained(Points(), augment="mixup")


def test_min_steps_that_override_epochs_are_told() -> None:
    with pytest.warns(
        UserWarning, match=r"epochs=2 is overridden: min_steps=500 makes it 64 passes"
    ):
        warn_of_min_steps(Recipe(epochs=2), 1000)
    for recipe in (Recipe(), Recipe(epochs=2, min_steps=100), Recipe(epochs=80)):
        warn_of_min_steps(recipe, 1000)
