"""Losses along the trade-off of an error and a gap between groups, as methods of the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from autobalance.bilevel import (
    DEFAULT_SOLVER,
    MIXES,
    Baseline,
    Frontier,
    FrontierPoint,
    baselines,
    frontier,
)
from autobalance.sklearn.base import ClassifierBase
from autobalance.sklearn.training_data import draw_seed, network_factory


class LossFrontier(ClassifierBase):
    """Designs a loss for each mix of an error and a gap, and trains the network of one of them."""

    def frontier(
        self,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any,
        sample_weight: Any = None,
        gap: str = "deo",
        mixes: Sequence[float] = MIXES,
    ) -> Frontier:
        """Losses along the trade-off of the objective, which must be a name, and a gap.

        Nothing is fitted yet: choose a point and `fit_point` it.

        Parameters
        ----------
        X, y, sensitive_features, sample_weight
            Same as in `fit`; groups are needed.
        gap, mixes
            Same as in `autobalance.frontier`, which says what it raises.
        """
        self._refuse_augmentation("frontier")
        data = self._training_data(X, y, sensitive_features, sample_weight, gap=gap)
        return frontier(
            network_factory(self.module, data),
            data,
            main=self.objective,  # type: ignore[arg-type]  # refused there where it is no name
            gap=gap,
            mixes=mixes,
            space=self.space,
            recipe=self.recipe,
            settings=self.settings,
            solver=self.solver or DEFAULT_SOLVER,
            seed=draw_seed(self.random_state),
            device=self.device,
            progress=self.progress,
        )

    def baselines(
        self, swept: Frontier, X: Any, y: Any, *, sensitive_features: Any, sample_weight: Any = None
    ) -> list[Baseline]:
        """What to compare a frontier of `frontier` with, on the same splits.

        Parameters
        ----------
        swept : Frontier
            From `frontier`.
        X, y, sensitive_features, sample_weight
            The data that it was made of.

        Returns
        -------
        list of Baseline
            Cross-entropy and logit adjustment, also by group; see `autobalance.bilevel.baselines`.
        """
        data = self._training_data(X, y, sensitive_features, sample_weight, gap=swept.gap)
        return baselines(
            network_factory(self.module, data),
            data,
            main=swept.main,
            gap=swept.gap,
            recipe=self.recipe,
            settings=self.settings,
            seed=swept.seed,
            device=self.device,
            progress=self.progress,
        )

    def fit_point(
        self,
        swept: Frontier,
        point: FrontierPoint,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any,
        sample_weight: Any = None,
    ) -> Self:
        """Train the network on all data with the loss of a point of a frontier.

        Parameters
        ----------
        swept, point : Frontier, FrontierPoint
            From `frontier` on the same data, and what its `pick` took.
        X, y, sensitive_features, sample_weight
            Same as in `fit`.

        Returns
        -------
        estimator
            Itself, fitted; `result_` is the point's, without the history of a search.

        Raises
        ------
        InputError, TrainingDiverged, Interrupted
            Same as in `fit`.
        """
        self._refuse_augmentation("fit_point")
        data = self._training_data(X, y, sensitive_features, sample_weight, gap=swept.gap)
        self.adopt(swept.result(point))
        self._retrain(data, seed=swept.seed)
        return self
