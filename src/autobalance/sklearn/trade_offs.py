"""An error against a gap between groups, by losses or by decisions, as methods of the classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from autobalance._validation import InputError
from autobalance.bilevel import (
    DEFAULT_SOLVER,
    MIXES,
    Baseline,
    Frontier,
    FrontierPoint,
    baselines,
    frontier,
)
from autobalance.calibration import class_masses
from autobalance.posthoc import CellPosterior, FairDecision, cell_posterior
from autobalance.sklearn.base import ClassifierBase
from autobalance.sklearn.table_input import mark
from autobalance.sklearn.training_data import draw_seed


class TradeOffs(ClassifierBase):
    """Designs losses for mixes of an error and a gap, or decides by p(class, group | x) within a bound."""

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

        Nothing is fitted yet: choose a point and `fit_point` it. Data are given as to `fit`, with groups;
        `gap` and `mixes` as to `autobalance.frontier`, which says what it raises.
        """
        self._refuse_augmentation("frontier")
        data = self._training_data(X, y, sensitive_features, sample_weight, gap=gap)
        return frontier(
            self._network_factory(data),
            data,
            main=self.objective,  # type: ignore[arg-type]  # refused there where it is no name
            gap=gap,
            mixes=mixes,
            space=self.space,
            recipe=self.recipe_,
            settings=self.settings,
            solver=self.solver or DEFAULT_SOLVER,
            seed=draw_seed(self.random_state),
            device=self.device,
            progress=self.progress,
        )

    def baselines(
        self, swept: Frontier, X: Any, y: Any, *, sensitive_features: Any, sample_weight: Any = None
    ) -> list[Baseline]:
        """What to compare a frontier of `frontier` with, on the splits of the same data.

        These are cross-entropy and logit adjustment, also by group; see `autobalance.bilevel.baselines`.
        """
        data = self._training_data(X, y, sensitive_features, sample_weight, gap=swept.gap)
        return baselines(
            self._network_factory(data),
            data,
            main=swept.main,
            gap=swept.gap,
            recipe=self.recipe_,
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
        """Train the network on all data, given as to `fit`, with the loss of a point of a frontier.

        `swept` is of `frontier` on the same data, and the point what its `pick` took. Returns the
        estimator, fitted; `result_` is the point's, without the history of a search. Raises as `fit` does.
        """
        self._refuse_augmentation("fit_point")
        data = self._training_data(X, y, sensitive_features, sample_weight, gap=swept.gap)
        self.adopt(swept.result(point))
        self._retrain(data, seed=swept.seed)
        return self

    def cell_posterior(
        self,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any,
        sample_weight: Any = None,
        main: str = "balanced_error",
    ) -> CellPosterior:
        """Learn p(class, group | x), for decisions under a bound on the gap between groups.

        No loss is designed and `objective` plays no part. Nothing is fitted yet: choose a decision
        and `fit_decision` it. Data are given as to `fit`, with groups that are all known. `main` is
        "balanced_error", or "group_balanced_error" for a world in which all groups are alike in number.
        See `autobalance.cell_posterior`, which takes five folds and says what it raises.
        """
        self._refuse_augmentation("cell_posterior")
        data = self._training_data(X, y, sensitive_features, sample_weight, gap="deo")
        self.class_masses_ = class_masses(data)
        posterior = cell_posterior(
            self._network_factory(data),
            data,
            main=main,
            recipe=self.recipe_,
            seed=draw_seed(self.random_state),
            device=self.device,
            progress=self.progress,
        )
        mark(posterior.network, self.input_)
        return posterior

    def restore_posterior(
        self,
        state: Mapping[str, Tensor],
        record: Mapping[str, Any],
        X: Any,
        y: Any,
        *,
        sensitive_features: Any,
        sample_weight: Any = None,
    ) -> CellPosterior:
        """What an earlier `cell_posterior` on the same data learned, without training it again.

        `state` is of `CellPosterior.state`; `record` has its other fields by name.
        """
        data = self._training_data(X, y, sensitive_features, sample_weight, gap="deo")
        self.class_masses_ = class_masses(data)
        names = ("training_runs", "settings", "seed", "seconds", "main")
        fields = {name: record[name] for name in names}
        posterior = CellPosterior.from_state(self._network_factory(data), state, **fields)
        mark(posterior.network, self.input_)
        return posterior

    def fit_decision(self, posterior: CellPosterior, decision: FairDecision) -> Self:
        """Predict by a decision, such as ``posterior.within(0.05)``, without groups.

        `predict_proba` then gives the network's class probabilities at the class frequencies of
        training (or those of `prior`), whose largest need not be the decision.

        `posterior` is from this classifier's own `cell_posterior`, and `decision` what its `within` gave.
        Returns the estimator, fitted: `module_` is the decision, `loss_` cross-entropy over the cells,
        and `result_` without the history of a search.

        Raises
        ------
        InputError
            If `cell_posterior` was not called, or found other classes or groups.
        """
        shape = tuple(decision.network.weights.shape[1:])
        own = len(getattr(self, "groups_", None) or []), len(getattr(self, "classes_", []))
        if shape != own:
            raise InputError(
                f"The decision is for {shape[0]} groups and {shape[1]} classes, the classifier knows "
                f"{own[0]} and {own[1]}. Call its cell_posterior on the data first."
            )
        self.adopt(posterior.result(decision))
        self.module_ = mark(decision.network, self.input_)
        return self
