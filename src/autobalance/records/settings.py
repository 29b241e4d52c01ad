"""How to train and how to search, as plain records that JSON and YAML can carry.

This module imports no torch, so that the command line can show its help at once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autobalance._validation import (
    InputError,
    below_one,
    fraction,
    not_negative,
    number,
    one_of,
    positive,
    whole,
    zero_to_one,
)

Precision = Literal["32-true", "bf16-mixed"]
"""Of passes through the network. In bf16-mixed weights, losses and the upper level stay float32."""

MANY_ROWS, LEAST_EPOCHS = 20_000, 8.0
"""Rows of a table from which its default recipe has larger batches, and fewer epochs down to so many."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the lower level trains the network's weights. One recipe serves search and retraining.

    Parameters
    ----------
    epochs : float
        Passes over the training data.
    min_steps : int
        At least so many optimiser steps, however small the data.
    batch_size : int
        Examples per step.
    optimizer : {"sgd", "adamw"}
        SGD with Nesterov momentum, or AdamW.
    lr : float
        Peak learning rate; it rises linearly over `warmup` and then falls along a cosine to 0.
    momentum : float
        Momentum of SGD; AdamW does not use it.
    weight_decay : float
        For SGD added to the gradient, for AdamW decoupled.
    warmup : float
        Share of the steps over which the learning rate rises, in [0, 1).
    max_grad_norm : float
        The gradient is scaled down to this norm when it exceeds it. Large logit adjustments with
        a high learning rate diverge without it.
    absorb : float
        In [0, 1]: by how much of the loss's additive adjustments l the bias of the network's last
        linear layer starts lower. At 0 training starts as published for logit adjustment, at 1
        as cross-entropy does that is adjusted post hoc; both reach the same losses. It needs a
        last `torch.nn.Linear` with a bias and one output per class, and does nothing else.
    """

    epochs: float = 60.0
    min_steps: int = 500
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 1e-2
    warmup: float = 0.05
    max_grad_norm: float = 5.0
    absorb: float = 1.0

    def __post_init__(self) -> None:
        positive("epochs", self.epochs)
        whole("min_steps", self.min_steps, least=1)
        whole("batch_size", self.batch_size, least=1)
        positive("lr", self.lr)
        positive("max_grad_norm", self.max_grad_norm)
        one_of("optimizer", self.optimizer, ("sgd", "adamw"))
        zero_to_one("absorb", self.absorb)
        not_negative("weight_decay", self.weight_decay)
        below_one("momentum", self.momentum)
        below_one("warmup", self.warmup)

    @classmethod
    def for_rows(cls, rows: int) -> Recipe:
        """The default for the training of a table with so many rows: ``Recipe()`` up to `MANY_ROWS`.

        Of more rows, each is seen less often, and larger batches make fewer steps of them.
        """
        if rows <= MANY_ROWS:
            return cls()
        epochs = max(LEAST_EPOCHS, cls.epochs * MANY_ROWS / rows)
        return cls(epochs=epochs, batch_size=512)

    def steps(self, examples: int) -> int:
        """Number of optimiser steps for a training set of so many examples."""
        return max(self.min_steps, math.ceil(self.epochs * examples / self.batch_size))

    def lr_factor(self, step: int, total: int) -> float:
        """Share of the peak learning rate used at `step` (from 0) of `total`."""
        rise = max(1, round(self.warmup * total))
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, total - rise)))

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dict, for JSON and YAML."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How the upper level tunes the loss (Algorithm 1 of the paper).

    Parameters
    ----------
    validation_fraction : float
        Share of each class held out for the upper level, in (0, 1).
    folds : int
        Number of splits searched side by side with one shared loss; hypergradients are averaged.
    choose : bool
        Whether, with two or more folds, the designed loss, its start and cross-entropy are then
        trained on every fold, and the best on held-out data is the result. So n folds cost 4 n
        training runs, and n without. With one fold and an augmentation learned, whether the start is trained
        once, without augmentation, and is the result if it is better by two standard errors.
    warmup : float
        Share of the lower steps with the starting loss held fixed, in [0, 1).
    every : int
        Lower steps between two upper steps. In one run with the training (`search_and_train`) they grow up
        to four times as the learning rate falls, and the upper steps with them.
    lr : float
        Learning rate of the upper level's optimiser.
    optimizer : {"adam", "sgd"}
        What moves the free parameters: Adam, or SGD with momentum 0.9 as in the paper's code.
    training_batches : int
        Training batches per upper step, the last ones trained on; products are averaged over them.
    average : float
        Share of the upper steps, counted from the end, over which the free parameters are
        averaged into the result, in (0, 1].
    validation_batch_size : int
        At most so many validation examples per upper step, drawn evenly over classes.
    patience : int or None
        Stop the search when the objective, averaged over so many upper steps, has not fallen below
        its lowest for as many again. None searches to the end of training.
    """

    validation_fraction: float = 0.2
    folds: int = 1
    choose: bool = True
    warmup: float = 0.3
    every: int = 5
    lr: float = 0.05
    optimizer: Literal["adam", "sgd"] = "adam"
    training_batches: int = 1
    average: float = 0.25
    validation_batch_size: int = 128
    patience: int | None = None

    def __post_init__(self) -> None:
        fraction("validation_fraction", self.validation_fraction)
        positive("lr", self.lr)
        below_one("warmup", self.warmup)
        if not 0.0 < number("average", self.average) <= 1.0:
            raise InputError(f"average must lie in (0, 1]; got {self.average}.")
        one_of("optimizer", self.optimizer, ("adam", "sgd"))
        if not isinstance(self.choose, bool):
            raise InputError(f"choose must be true or false; got {self.choose!r}.")
        for name in ("folds", "every", "training_batches", "validation_batch_size"):
            whole(name, getattr(self, name), least=1)
        if self.patience is not None:
            whole("patience (or None)", self.patience, least=1)
        if self.folds * self.validation_fraction > 1.0 + 1e-9:
            raise InputError(
                f"{self.folds} folds of {self.validation_fraction:g} each exceed the data: folds "
                "do not overlap. Use fewer folds or a smaller validation_fraction."
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dict, for JSON and YAML."""
        return asdict(self)
