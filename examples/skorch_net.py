"""A loss designed within skorch: the loss as criterion, the tuner as a callback.

    python examples/skorch_net.py

A Pipeline holds a `NeuralNetClassifier`, whose options nest as usual: `net__module__hidden`. The
callback moves the loss, judged on the rows that skorch's own split holds out. Then a second net is
trained on all rows with the loss found. The example prints the balanced errors of both nets and of one
trained with cross-entropy.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_classification
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from autobalance import HierarchicalSpace, LossTuner, TunableCrossEntropy


class Network(nn.Sequential):
    def __init__(self, features: int = 20, hidden: int = 32, classes: int = 3) -> None:
        super().__init__(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def tunable(counts: np.ndarray) -> TunableCrossEntropy:
    """Build a new loss for each fit. It starts at logit adjustment."""
    return TunableCrossEntropy(HierarchicalSpace(counts))


class Tune(Callback):
    """Moves the criterion of a net, a `TunableCrossEntropy`, after every `every` batches."""

    def __init__(self, objective: str = "balanced_error", every: int = 5) -> None:
        self.objective, self.every = objective, every

    def on_train_begin(self, net: NeuralNetClassifier, **_: Any) -> None:
        self.tuner_ = LossTuner(net.criterion_, self.objective, optimizer=net.optimizer_)
        self.batches_ = 0

    def on_epoch_begin(self, net: NeuralNetClassifier, dataset_valid: Any, **_: Any) -> None:
        [self.held_] = torch.utils.data.DataLoader(dataset_valid, len(dataset_valid))

    def on_batch_end(
        self, net: NeuralNetClassifier, batch: Any = None, training: bool = False, **_: Any
    ) -> None:
        self.batches_ += training
        if training and self.batches_ % self.every == 0:
            device = torch.device(net.device)
            moved = [[part.to(device) for part in each] for each in (batch, self.held_)]
            self.tuner_.step(net.module_, *moved)


def pipeline(criterion: Any, **options: Any) -> Pipeline:
    net = NeuralNetClassifier(
        Network,
        criterion=criterion,
        optimizer=torch.optim.AdamW,
        lr=5e-3,
        batch_size=64,
        iterator_train__shuffle=True,
        # The losses take logits, so the network returns logits.
        predict_nonlinearity=nn.Softmax(dim=-1),
        verbose=0,
        **options,
    )
    return Pipeline([("scale", StandardScaler()), ("net", net)])


def main(arguments: list[str] | None = None) -> dict[str, Pipeline]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args(arguments)

    X, y = make_classification(
        4000, 20, n_informative=6, n_classes=3, weights=[0.9, 0.07, 0.03], random_state=0
    )
    X, X_test, y, y_test = train_test_split(
        X.astype(np.float32), y, test_size=0.5, stratify=y, random_state=0
    )
    common: dict[str, Any] = {"max_epochs": args.epochs}
    designing = pipeline(
        tunable, criterion__counts=np.bincount(y), callbacks=[("tune", Tune())], **common
    )
    designing.set_params(net__module__hidden=64)
    torch.manual_seed(0)
    models = {"Designing": designing.fit(X, y)}
    loss = designing["net"].criterion_.frozen()
    for name, criterion in (("Cross-entropy", nn.CrossEntropyLoss()), ("Designed loss", loss)):
        torch.manual_seed(0)
        models[name] = pipeline(criterion, module__hidden=64, train_split=None, **common).fit(X, y)
    for name, model in models.items():
        error = 100 * (1 - balanced_accuracy_score(y_test, model.predict(X_test)))
        print(f"{name}: balanced error {error:.1f} %")
    print("The loss adds to the logits:", [round(v, 2) for v in loss.additive.tolist()])
    return models


if __name__ == "__main__":
    main()
