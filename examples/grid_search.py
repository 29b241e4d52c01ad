"""`GridSearchCV` over the objective and the training of `AutoBalanceClassifier`, in a Pipeline.

    python examples/grid_search.py

The column of the groups is routed as metadata to the classifier's `fit` and to the score, which here is
the error of the worse-off sex. No prediction sees it. The example prints the errors of each candidate
over the folds, and the error of the best one on rows that the grid search has not seen.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.metrics import balanced_accuracy_score, make_scorer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import sklearn
from autobalance import AutoBalanceClassifier, Recipe
from autobalance.data.adult import adult_sample


def worst_group(y_true: Any, y_pred: Any, *, sensitive_features: Any) -> float:
    """Return the lowest balanced accuracy of a group."""
    y_true, y_pred, groups = map(np.asarray, (y_true, y_pred, sensitive_features))
    parts = [groups == g for g in np.unique(groups)]
    return min(balanced_accuracy_score(y_true[part], y_pred[part]) for part in parts)


@sklearn.config_context(enable_metadata_routing=True)
def main(arguments: list[str] | None = None) -> GridSearchCV:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=2000, help="number of rows to use, from the top of the table"
    )
    parser.add_argument("--steps", type=int, default=100, help="training steps")
    args = parser.parse_args(arguments)

    table = adult_sample().head(args.rows)
    train, test = train_test_split(
        table, test_size=0.5, random_state=0, stratify=table["sex"] + table["income"]
    )
    features = table.columns.drop(["income", "sex"])
    encode = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
            make_column_selector(dtype_exclude="number"),
        ),
    )
    model = AutoBalanceClassifier(random_state=0).set_fit_request(sensitive_features=True)
    score = make_scorer(worst_group).set_score_request(sensitive_features=True)
    grid = GridSearchCV(
        Pipeline([("encode", encode), ("model", model)]),
        {
            "model__objective": ["balanced_error", "worst_group_error"],
            "model__recipe": [Recipe(epochs=1, min_steps=args.steps, lr=lr) for lr in (5e-4, 2e-3)],
        },
        scoring=score,
        cv=2,
    )
    grid.fit(train[features], train["income"], sensitive_features=train["sex"])
    for options, value in zip(
        grid.cv_results_["params"], grid.cv_results_["mean_test_score"], strict=True
    ):
        objective, lr = options["model__objective"], options["model__recipe"].lr
        print(f"{objective}, lr {lr:g}: error of the worse-off sex {100 * (1 - value):.1f} %")
    predicted = grid.predict(test[features])
    error = 1 - worst_group(test["income"], predicted, sensitive_features=test["sex"])
    print(f"The best on {len(test)} unseen rows: {100 * error:.1f} %")
    return grid


if __name__ == "__main__":
    main()
