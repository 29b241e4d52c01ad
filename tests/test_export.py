"""Exported networks against the networks themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance import export
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
    with pytest.raises(InputError, match=r"too old here: No module named 'onnx_ir'. Update: pip"):
        export_model(nn.Linear(3, 2), torch.zeros(2, 3), tmp_path / "model.onnx")


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'autobalance\[export\]'"):
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
