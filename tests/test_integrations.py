"""The integrations of examples/ run in a few seconds, and do what their first lines promise."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.utils.data import DataLoader

from autobalance import HierarchicalSpace, TunableCrossEntropy
from torchvision_operators import define_missing_operators

FOLDER = Path(__file__).parents[1] / "examples"
NAMES = (
    "plain_pytorch", "lightning_module", "huggingface_trainer", "skorch_net", "timm_loop",
    "grid_search", "peft_lora", "torchvision_dataset", "polars_lightgbm",
)  # fmt: skip
CHANCE = 90.0  # balanced error in percent, of ten classes


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports an example by its name; those with Lightning and transformers import torchvision."""
    define_missing_operators()
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def errors(shown: str) -> list[float]:
    return [
        float(found)
        for found in re.findall(r"(?i)balanced error(?: of .*:|, .*:)? ([\d.]+) %", shown)
    ]


def additive(loss: TunableCrossEntropy) -> Tensor:
    found = loss.frozen().additive
    assert found is not None
    return found


def moved(loss: TunableCrossEntropy) -> float:
    """How far l has gone from where it starts."""
    start = TunableCrossEntropy(HierarchicalSpace(loss.space.counts.numpy()))
    return float((additive(loss) - additive(start)).abs().max())


def same(a: Any, b: Any) -> bool:
    """Whether nested states are equal, tensors bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("name", NAMES)
def test_the_first_lines_say_how_to_run_it(name: str) -> None:
    assert f"    python examples/{name}.py\n" in (FOLDER / f"{name}.py").read_text()


def test_plain_pytorch(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example("plain_pytorch").main(["--steps", "150"])
    plain, designed = errors(capsys.readouterr().out)
    assert designed < plain - 3.0


# Lightning's own.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_lightning(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("lightning_module")
    first, second = module.main(["--epochs", "4"])
    half, end = errors(capsys.readouterr().out)
    assert end < CHANCE / 2
    assert end < half
    steps = [next(iter(m.tuner.upper_optimizer.state.values()))["step"] for m in (first, second)]
    assert steps == [6.0, 12.0]  # 15 batches an epoch: it went on counting from the file
    assert 0.01 < moved(first.tuner.loss) != moved(second.tuner.loss)

    # Loaded alone, with no epoch left to train, everything is as it was saved.
    data = module.images()
    path = tmp_path / "all.ckpt"
    second.trainer.save_checkpoint(path)
    third = module.Classifier(data)
    trainer = module.Trainer(max_epochs=4, accelerator="cpu", **module.QUIET)
    trainer.fit(third, module.loader_of(data), ckpt_path=path, weights_only=True)
    assert same(third.tuner.state_dict(), second.tuner.state_dict())
    assert same(dict(third.state_dict()), dict(second.state_dict()))


def test_hugging_face(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("huggingface_trainer")
    first, second = module.main(["--steps", "30"])
    half, end = errors(capsys.readouterr().out)
    assert end < half < CHANCE
    upper = [t.tuner.upper_optimizer for t in (first, second)]
    assert [next(iter(u.state.values()))["step"] for u in upper] == [6.0, 11.0]  # it went on
    assert 0.01 < moved(first.tuner.loss) != moved(second.tuner.loss)

    # Accumulated gradients are those of the mean over the batches, whatever the model accepts.
    batches = DataLoader(module.images().held, 16, collate_fn=module.collate)
    batch = next(iter(batches))
    model = second.model.train()
    model.zero_grad()
    second.every, second.current_gradient_accumulation_steps = 1000, 2
    second.training_step(model, dict(batch))
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    logits = model(pixel_values=batch["pixel_values"]).logits
    expected = torch.autograd.grad(
        second.tuner.loss(logits, batch["labels"]) / 2, list(model.parameters())
    )
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-6)


def test_skorch(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("skorch_net")
    found = module.main(["--epochs", "10"])
    designing, plain, designed = errors(capsys.readouterr().out)
    assert max(designing, designed) < plain - 3.0
    net = found["Designing"]["net"]
    assert net.module_[0].out_features == 64  # set as net__module__hidden
    assert moved(net.criterion_) > 0.1

    net.save_params(f_params=tmp_path / "weights.pt", f_criterion=tmp_path / "loss.pt")
    again = clone(net).initialize()
    assert moved(again.criterion_) == 0.0
    again.load_params(f_params=tmp_path / "weights.pt", f_criterion=tmp_path / "loss.pt")
    assert torch.equal(additive(again.criterion_), additive(net.criterion_))
    x = np.random.default_rng(0).normal(size=(5, 20)).astype(np.float32)
    np.testing.assert_array_equal(again.predict_proba(x), net.predict_proba(x))
    np.testing.assert_allclose(net.predict_proba(x).sum(axis=1), 1.0, rtol=1e-5)


def test_timm(
    example: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With timm's function where there is a name of its; here it stands in for the package."""
    module = example("timm_loop")
    errors = module.main(["--steps", "150"])
    assert max(errors.values()) < CHANCE / 2
    assert "The loss adds" in capsys.readouterr().out

    asked = []

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    module.main(["--model", "resnet18", "--steps", "5"])
    assert asked == [("resnet18", {"num_classes": 10, "in_chans": 1})]


def test_grid_search(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    grid = example("grid_search").main(["--rows", "600", "--steps", "30"])
    assert capsys.readouterr().out.count("error of the worse-off sex") == 4
    best = grid.best_estimator_["model"]
    assert best.groups_ == ["Female", "Male"]  # the groups came through
    assert best.loss_.additive.shape == (2, 2)
    assert best.objective == grid.best_params_["model__objective"]
    assert grid.best_score_ == max(grid.cv_results_["mean_test_score"]) > 0.5


# Deprecated within transformers itself.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("peft_lora")
    plain, designed = module.main([]).values()
    assert designed < plain - 3.0
    shown = capsys.readouterr().out
    assert errors(shown) == pytest.approx([plain, designed], abs=0.06)
    trained, total = re.findall(r"([\d,]+) of ([\d,]+) weights were trained", shown)[0]
    model = module.adapted_transformer()
    # Two blocks, each with two matrices of rank 8 beside query and value, of 32 rows; and the classifier.
    assert int(trained.replace(",", "")) == 2 * 2 * 2 * 8 * 32 + 33 * 4
    assert int(total.replace(",", "")) == sum(p.numel() for p in model.parameters())


def test_an_image_folder_of_torchvision(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = example("torchvision_dataset").main(["--steps", "60"])
    assert max(found.values()) < CHANCE / 2
    assert errors(capsys.readouterr().out) == pytest.approx(list(found.values()), abs=0.06)


def test_polars_and_lightgbm(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = example("polars_lightgbm").main([])
    assert found.columns == ["income", "rows", "most probable", "designed"]
    assert found["designed"].mean() < found["most probable"].mean() - 2.0
    assert errors(capsys.readouterr().out) == pytest.approx(
        [found[name].mean() for name in ("most probable", "designed")], abs=0.06
    )
