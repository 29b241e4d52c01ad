"""Public names have their types in an editor, although the package imports them lazily."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import autobalance

EXAMPLE = """
import torch
from autobalance import ArrayData, AutoBalanceClassifier, Recipe, retrain, search

def network() -> torch.nn.Module:
    return torch.nn.Linear(20, 3)

data = ArrayData.of(torch.randn(60, 20), torch.arange(60) % 3)
result = search(network, data, objective="worst_class_error", recipe=Recipe(epochs=20))
model = retrain(network, data, result.loss, recipe=Recipe(epochs=20))
classifier = AutoBalanceClassifier(random_state=0)
reveal_type(result)
reveal_type(result.loss.additive)
reveal_type(model)
reveal_type(classifier.fit)
"""


def test_an_editor_knows_the_type_of_every_public_name(tmp_path: Path) -> None:
    names = [name for name in autobalance.__all__]
    lines = [EXAMPLE, *(f"from autobalance import {name}\nreveal_type({name})" for name in names)]
    file = tmp_path / "example.py"
    file.write_text("\n".join(lines), encoding="utf-8")
    source = Path(autobalance.__file__).parents[1]
    config = {"extraPaths": [str(source)], "typeCheckingMode": "basic"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--project", str(tmp_path)]
    command += ["--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    diagnostics = json.loads(done.stdout)["generalDiagnostics"]
    revealed = [d["message"] for d in diagnostics if d["severity"] == "information"]
    problems = [d["message"] for d in diagnostics if d["severity"] == "error"]
    assert not problems
    assert len(revealed) == len(names) + 4
    opaque = [text for text in revealed if re.search(r'is "(Any|Unknown)"|\bUnknown\b', text)]
    assert not opaque
