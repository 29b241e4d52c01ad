"""The lower level as the driver of a search sees it, and that of a network's search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from autobalance.bilevel.candidate_selection import Outcomes, train_candidates
from autobalance.bilevel.held_out import Splits, calibration_stride
from autobalance.bilevel.lower_level import LowerLevel
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.types import ProgressListener
from autobalance.bilevel.upper_level import StochasticUpperLevel
from autobalance.data import ArrayData, BalancedBatches, BatchSource
from autobalance.hypergrad import Hypergradient
from autobalance.losses import ParametricCrossEntropy
from autobalance.spaces import LossSnapshot

H_co = TypeVar("H_co", covariant=True)


class LowerProblem(Protocol[H_co]):
    """The lower level on every fold: minimise the training loss over the weights.

    Attributes
    ----------
    steps_per_run : int
        Lower steps that cost as much as one training run.
    cells : list of Tensor
        For each fold ``group * k + class`` of its held-out examples.
    sample_weights : list of (Tensor or None)
        For each fold the weights of these.
    shape : (int, int)
        Numbers of groups and of classes held out.
    """

    steps_per_run: int
    cells: list[Tensor]
    sample_weights: list[Tensor | None]
    shape: tuple[int, int]

    def step(self, loss: LossSnapshot) -> None:
        """Bring the weights of every fold nearer to the minimum of this loss."""
        ...

    def training_loss(self) -> float:
        """The last training loss, mean over folds."""
        ...

    def hypergradients(self) -> Sequence[H_co]:
        """For each fold, the derivative of its held-out objective by the loss's free parameters."""
        ...

    def predict_held_out(self) -> list[Tensor]:
        """For each fold, the classes that its present weights predict of the examples held out."""
        ...

    def train_candidates(
        self,
        losses: Mapping[str, ParametricCrossEntropy],
        augments: Mapping[str, nn.Module | None],
        outcomes: Outcomes,
        after_each: Callable[[], None],
        progress: ProgressListener | None,
    ) -> None:
        """Fill in what weights trained with each loss predict, see `candidate_selection`."""
        ...


@dataclass
class Fold:
    """One split's network in training, and its validation data.

    Attributes
    ----------
    lower : LowerLevel
        The network, its optimiser and its batches.
    validation : ArrayData
        The examples held out, on the device.
    draws : BatchSource
        The batch of them that each upper step sees, drawn evenly over classes (and groups).
    """

    lower: LowerLevel
    validation: ArrayData
    draws: BatchSource


class NetworkFolds:
    """The lower level of a network's search: one network a fold, trained by the recipe.

    Parameters
    ----------
    spec : SearchSpec
        What to train, and how.
    splits : sequence of (ArrayData, ArrayData)
        Training and held-out data of each fold.
    fabric : Fabric
        Device and precision.
    upper : StochasticUpperLevel
        Whose tuner computes the hypergradients.
    start : ParametricCrossEntropy
        The loss at the start, for recipes that absorb it into the last bias.
    augment : nn.Module, optional
        How training batches are augmented.

    Attributes
    ----------
    folds : list of Fold
        The folds' networks and data.
    """

    def __init__(
        self,
        spec: SearchSpec,
        splits: Splits,
        fabric: Fabric,
        upper: StochasticUpperLevel,
        start: ParametricCrossEntropy,
        augment: nn.Module | None,
    ) -> None:
        self.spec, self.splits, self.upper = spec, splits, upper
        self.folds = [
            _build_fold(spec, train, held, fabric, spec.seed + i, start, augment)
            for i, (train, held) in enumerate(splits)
        ]
        self.processes = self.folds[0].lower.processes
        self.processes.seed_per_rank(spec.seed)
        self.steps_per_run = self.folds[0].lower.total
        self.cells = [held.cells() for _, held in splits]
        self.sample_weights = [held.sample_weight for _, held in splits]
        held = splits[0][1]
        self.shape = (held.num_groups or 1, held.num_classes)
        self._losses: list[Tensor] = []

    def step(self, loss: LossSnapshot) -> None:
        """One step of every fold's optimiser."""
        self._losses = [fold.lower.step(loss) for fold in self.folds]

    def training_loss(self) -> float:
        """The last batches' loss before the step, mean over folds."""
        return float(torch.stack(self._losses).mean())

    def hypergradients(self) -> list[Hypergradient]:
        """Each fold's, on its last training batches and newly drawn validation examples."""
        for fold in self.folds:  # no upper step on a network that has diverged
            fold.lower.check()
        results = []
        for i, fold in enumerate(self.folds):
            lower = fold.lower
            held = next(fold.draws)
            with lower.fabric.autocast():
                results.append(
                    self.upper.tuner.hypergradient(
                        lower.network,
                        list(lower.recent),
                        held,
                        optimizer=lower.optimizer,
                        replica=i,
                    )
                )
        # Weights that hardly move no longer answer the loss, so that its rate falls with theirs.
        rate = self.spec.settings.lr * self.folds[0].lower.lr_factor()
        for group in self.upper.tuner.upper_optimizer.param_groups:
            group["lr"] = rate
        return results

    def predict_held_out(self) -> list[Tensor]:
        """For each fold, the classes that its network predicts of the examples held out, now."""
        return [logits.argmax(dim=1) for logits in self._held_out_logits()]

    def predict_for_calibration(self) -> tuple[list[Tensor], list[Tensor]]:
        """As `predict_held_out`, and with it the logits that `held_out.calibrate` takes."""
        stride = calibration_stride(self.splits)
        predictions, logits = [], []
        for rows in self._held_out_logits():
            predictions.append(rows.argmax(dim=1))
            logits.append(rows[::stride].clone())
        return predictions, logits

    def networks(self) -> Iterator[nn.Module]:
        """For each fold, the network in training."""
        return (fold.lower.module for fold in self.folds)

    def _held_out_logits(self) -> Iterator[Tensor]:
        """Fold by fold, for with many classes they are large."""
        for fold in self.folds:
            fold.lower.processes.broadcast_buffers(fold.lower.module)
            yield predict_logits(fold.lower.module, fold.validation.inputs)

    def train_candidates(
        self,
        losses: Mapping[str, ParametricCrossEntropy],
        augments: Mapping[str, nn.Module | None],
        outcomes: Outcomes,
        after_each: Callable[[], None],
        progress: ProgressListener | None,
    ) -> None:
        """Train a new network with every loss on every fold; see `candidate_selection`."""
        train_candidates(self.spec, self.splits, losses, augments, outcomes, after_each, progress)

    def restart(self, total: int) -> None:
        """Go on from the present weights for so many steps, under the learning rate's schedule anew."""
        for fold in self.folds:
            fold.lower.restart(total)

    def state_dict(self) -> list[dict[str, Any]]:
        """Networks, optimisers and streams of batches, fold by fold."""
        return [
            {"lower": fold.lower.state_dict(), "draws": fold.draws.state_dict()}
            for fold in self.folds
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Inverse of `state_dict`."""
        for fold, saved in zip(self.folds, state, strict=True):
            fold.lower.load_state_dict(saved["lower"])
            fold.draws.load_state_dict(saved["draws"])


def _build_fold(
    spec: SearchSpec,
    train: ArrayData,
    held: ArrayData,
    fabric: Fabric,
    seed: int,
    start: ParametricCrossEntropy,
    augment: nn.Module | None,
) -> Fold:
    assert spec.model_factory is not None
    lower = LowerLevel(
        spec.model_factory,
        train.to(fabric.device),
        spec.recipe,
        fabric,
        seed,
        additive=start.additive,
        augment=augment,
        remembered=spec.settings.training_batches,
    )
    generator = torch.Generator().manual_seed(seed)
    size, weight = spec.settings.validation_batch_size, held.sample_weight
    draws = BalancedBatches(held.cells(), size, generator, weight)
    held, processes = held.to(fabric.device), lower.processes
    # Weights that have decided what is drawn are not applied again.
    drawn = held if draws.everything is not None else replace(held, sample_weight=None)
    source = BatchSource(drawn, draws, seed=seed, share=processes.share, rank=processes.rank)
    return Fold(lower, held, source)
