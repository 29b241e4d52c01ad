"""Exported networks against the networks themselves."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from autobalance import AutoBalanceClassifier, Recipe, export
from autobalance._validation import InputError
from autobalance.export import export_model
from autobalance.networks import TableNetwork
from helpers import NETWORKS


@pytest.mark.parametrize("name", ["cnn", "batch_norm", "dropout", "tied"])
def test_a_program_gives_the_networks_logits_for_any_batch(tmp_path: Path, name: str) -> None:
    model = NETWORKS[name]().train()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    path = export_model(model, np.zeros((4, 1, 4, 4), np.float32), tmp_path / "new" / "model.pt2")
    assert [p.name for p in path.parent.iterdir()] == ["model.pt2"]
    assert model.training
    for key, t in model.state_dict().items():
        assert torch.equal(t, before[key])
    again = torch.export.load(path).module()
    model.eval()
    for n in (1, 2, 9):
        images = torch.randn(n, 1, 4, 4)
        torch.testing.assert_close(again(images), model(images))


def test_the_default_network_is_exported_and_a_file_replaced(tmp_path: Path) -> None:
    path = tmp_path / "table.pt2"
    for _ in range(2):
        model = TableNetwork(5, 3).eval()
        inputs = torch.randn(6, 5)
        assert export_model(model, inputs, path) == path
        torch.testing.assert_close(torch.export.load(path).module()(inputs), model(inputs))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if x.sum() > 0 else x


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("model", "example", "name", "message"),
    [
        (Branching(), torch.ones(3, 2), "a.pt2", "This network cannot be exported: .* values of"),
        (Random(), torch.ones(3, 2), "a.pt2", "gives other logits than the network itself"),
        (nn.Linear(2, 3), torch.ones(1, 2), "a.pt2", r"at least two inputs, .* got shape \(1, 2\)"),
        (nn.Linear(2, 3), torch.ones(3, 2), "a.pth", r"must end in .pt2 or .onnx; got 'a.pth'"),
    ],
)
def test_refused_and_nothing_written(
    tmp_path: Path, model: nn.Module, example: Tensor, name: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_model(model, example, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_exporter_too_old_for_torch_is_no_fault_of_the_network(
    tmp_path: Path, monkeypatch: Any
) -> None:
    def beyond(*args: Any, **options: Any) -> None:
        raise ModuleNotFoundError("No module named 'onnx_ir'")

    monkeypatch.setattr(torch.onnx, "export", beyond)
    with pytest.raises(
        InputError, match=r"too old here: No module named 'onnx_ir'. Update them: pip"
    ):
        export_model(nn.Linear(3, 2), torch.zeros(2, 3), tmp_path / "model.onnx")


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"Install .*: pip install onnx"):
        export_model(NETWORKS["cnn"]().eval(), torch.zeros(4, 1, 4, 4), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_onnx_gives_the_networks_logits(tmp_path: Path) -> None:
    import onnxruntime

    model, path = NETWORKS["cnn"]().eval(), tmp_path / "model.onnx"
    export_model(model, torch.zeros(4, 1, 4, 4), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.randn(5, 1, 4, 4)
    [found] = session.run(["logits"], {"inputs": images.numpy()})
    np.testing.assert_allclose(found, model(images).detach().numpy(), atol=1e-5)


# Classifiers, with all that predict does ------------------------------------------------------

QUICK = {"recipe": Recipe(epochs=2, min_steps=80), "random_state": 0, "device": "cpu"}


pytestmark = pytest.mark.filterwarnings(
    "ignore:column:autobalance.data.table_encoder.TableWarning",
    "ignore:At the end of the search:UserWarning",
)


def mixed(n: int = 300) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    y = np.where(draw.random(n) < 0.3, "rare", "common")
    size = 500 + 100 * draw.normal(size=n) + 150 * (y == "rare")
    table = pd.DataFrame({"size": size, "town": draw.choice(["A", "B", None], n)})
    table["owner"] = draw.random(n) < 0.5
    table["price"] = [f"${v:,.2f}" for v in 1000 * draw.random(n) + 500]
    table.loc[::9, "size"] = np.nan
    return table, y, draw.choice(["f", "m"], n)


def read_back(path: Path, raw: np.ndarray) -> np.ndarray:
    """What a program says of rows, for each of both formats."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(torch.from_numpy(raw)).detach().numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    kind = wanted[session.get_inputs()[0].type]
    return np.asarray(session.run(None, {"inputs": raw.astype(kind)})[0])


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_file_of_a_classifier_decides_as_predict(tmp_path: Path, suffix: str) -> None:
    X, y, _ = mixed()
    model = AutoBalanceClassifier(**QUICK).fit(X, y)
    path = export_model(model, tmp_path / f"model{suffix}")
    new = X.sample(frac=1.0, random_state=0).assign(town=lambda t: t["town"].replace("A", "new"))
    raw = model.encoder_.raw(new)
    decided = model.classes_[read_back(path, raw).argmax(axis=1)]
    np.testing.assert_array_equal(decided, model.predict(new))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_program_holds_columns_categories_and_classes(tmp_path: Path) -> None:
    X, y, _ = mixed()
    model = AutoBalanceClassifier(**QUICK).fit(X, y)
    extra = {"table.json": ""}
    program = torch.export.load(export_model(model, tmp_path / "m.pt2"), extra_files=extra)
    assert json.loads(extra["table.json"]) == {
        "classes": ["common", "rare"],
        "columns": ["size", "town", "owner", "price"],
        "categories": {"town": ["<missing>", "A", "B"]},
    }
    # By hand from that file: a missing number, a category's position, a boolean.
    row = torch.tensor([[np.nan, 1.0, 1.0, 700.0]])
    frame = pd.DataFrame({"size": [np.nan], "town": ["A"], "owner": [1], "price": ["$700.00"]})
    for dtype in (torch.float32, torch.float64):
        decided = program.module()(row.to(dtype)).argmax(dim=1)
        assert model.classes_[decided.numpy()] == model.predict(frame)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_array_goes_into_its_program_as_it_is(tmp_path: Path, dtype: str) -> None:
    X, y = np.random.default_rng(0).normal(size=(200, 3)) * 100 + 500, np.arange(200) % 4 == 0
    X[:, 0] += 100 * y
    model = AutoBalanceClassifier(**QUICK).fit(X.astype(dtype), y)
    path = export_model(model, tmp_path / "m.pt2")
    decided = read_back(path, X.astype(dtype)).argmax(axis=1).astype(bool)
    np.testing.assert_array_equal(decided, model.predict(X.astype(dtype)))


def test_a_fair_decision_is_in_the_file(tmp_path: Path) -> None:
    X, y, sex = mixed()
    model = AutoBalanceClassifier(**QUICK)
    posterior = model.cell_posterior(X, y, sensitive_features=sex)
    model.fit_decision(posterior, posterior.within(0.1))
    path = export_model(model, tmp_path / "m.pt2")
    decided = model.classes_[read_back(path, model.encoder_.raw(X)).argmax(axis=1)]
    np.testing.assert_array_equal(decided, model.predict(X))


def test_an_own_module_gets_the_array_as_it_is_and_so_does_its_file(tmp_path: Path) -> None:
    X, y = np.random.default_rng(0).normal(size=(200, 3)) * 100 + 500, np.arange(200) % 3 == 0
    largest = []

    class Net(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                largest.append(float(input.detach().max()))
            return super().forward(input / 1000)

    def network(num_features: int, num_classes: int) -> nn.Module:
        return Net(num_features, num_classes)

    model = AutoBalanceClassifier(module=network, arms=None, **QUICK).fit(X, y)
    assert max(largest) == np.float32(X.max())
    assert model.encoder_ is None
    path = export_model(model, tmp_path / "m.pt2")
    decided = read_back(path, X.astype(np.float32)).argmax(axis=1).astype(bool)
    np.testing.assert_array_equal(decided, model.predict(X))
    largest.clear()
    scaled = AutoBalanceClassifier(module=network, encode=True, arms=None, **QUICK).fit(X, y)
    assert max(largest) < 10
    assert scaled.encoder_ is not None


def test_a_network_from_a_table_is_not_exported_without_its_encoder(tmp_path: Path) -> None:
    X, y, _ = mixed()
    model = AutoBalanceClassifier(**QUICK).fit(X, y)
    for example in (model.encoder_.transform(X), np.zeros((4, model.encoder_.num_features)), X):
        with pytest.raises(InputError, match=r"Export the classifier: export_model\(classifier"):
            export_model(model.module_, example, tmp_path / "m.pt2")
    # Given rows of the table itself, the file holds the encoder too.
    path = export_model(model.module_, model.encoder_.raw(X)[:5], tmp_path / "m.pt2")
    decided = model.classes_[read_back(path, model.encoder_.raw(X)).argmax(axis=1)]
    np.testing.assert_array_equal(decided, model.predict(X))


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("copy_of", ["itself", "deepcopy", "pickle", "torch.save"])
def test_a_copy_of_a_tables_network_knows_of_it(
    tmp_path: Path, copy_of: str, standardised: bool
) -> None:
    """Encoded rows are refused for certain, also where they look like rows of the table."""
    X = np.random.default_rng(0).normal(size=(200, 3))
    X = (X - X.mean(0)) / X.std(0) if standardised else X * 100 + 500
    model = AutoBalanceClassifier(**QUICK).fit(X, X[:, 0] > X[:, 0].mean())
    network, path = model.module_, tmp_path / "m.pt2"
    if copy_of == "deepcopy":
        network = copy.deepcopy(network)
    elif copy_of == "pickle":
        network = pickle.loads(pickle.dumps(network))
    elif copy_of == "torch.save":
        torch.save(network, tmp_path / "network.pt")
        network = torch.load(tmp_path / "network.pt", weights_only=False)
    encoded = model.input_.transform(model, X)
    for example in (
        encoded,
        encoded[:2],
        torch.from_numpy(encoded),
        *([X] if standardised else []),
    ):
        with pytest.raises(InputError, match=r"Export the classifier: export_model\(classifier"):
            export_model(network, example, path)
    if not standardised:
        export_model(network, X[:4], path)
        decided = model.classes_[read_back(path, X.astype(np.float32)).argmax(axis=1)]
        np.testing.assert_array_equal(decided, model.predict(X))


def test_a_module_around_a_tables_network_needs_the_encoder(tmp_path: Path) -> None:
    X, y, sex = mixed()
    model = AutoBalanceClassifier(**QUICK).fit(X, y)
    path = tmp_path / "m.pt2"
    around = nn.Sequential(model.module_, nn.Softmax(dim=1))
    with pytest.raises(InputError, match=r"put classifier\.encoder_\.as_module\(\) before it"):
        export_model(around, model.encoder_.transform(X)[:4], path)
    whole = nn.Sequential(model.encoder_.as_module(), model.module_)
    raw = model.encoder_.raw(X)
    export_model(whole, raw[:4], path)
    decided = model.classes_[read_back(path, raw).argmax(axis=1)]
    np.testing.assert_array_equal(decided, model.predict(X))
    posterior = model.cell_posterior(X, y, sensitive_features=sex)
    for network in (posterior.network, posterior.within(0.5).network):
        with pytest.raises(InputError, match="Export the classifier"):
            export_model(network, model.encoder_.transform(X)[:4], path)


def test_a_classifier_that_holds_no_rows_asks_for_some(tmp_path: Path) -> None:
    X, y, _ = mixed()
    model = AutoBalanceClassifier(**QUICK).fit(X, y)
    model.input_.rows = None  # as after load_run
    with pytest.raises(InputError, match=r"holds no rows .* export_model\(classifier, X, path\)"):
        export_model(model, tmp_path / "m.pt2")
    path = export_model(model, X, tmp_path / "m.pt2")
    decided = model.classes_[read_back(path, model.encoder_.raw(X)).argmax(axis=1)]
    np.testing.assert_array_equal(decided, model.predict(X))
