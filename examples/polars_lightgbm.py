"""LightGBM on a polars DataFrame, with decisions that are designed for the balanced error.

    python examples/polars_lightgbm.py

LightGBM is trained as always. `LogitAdjustedClassifierCV` fits it on five folds besides, and designs on
the held-out probabilities what to take off each class's log-probability before the largest one decides. The
example prints the error of each class under both ways to decide, with the same trees.
"""

from __future__ import annotations

import argparse

import lightgbm
import numpy as np
import polars as pl
from sklearn.compose import make_column_transformer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from autobalance import LogitAdjustedClassifierCV
from autobalance.data.adult import adult_sample


def main(arguments: list[str] | None = None) -> pl.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objective", default="balanced_error", help="what is to become small")
    args = parser.parse_args(arguments)

    table = pl.from_pandas(adult_sample())
    train, test = train_test_split(table, test_size=1 / 3, random_state=0)
    features = [name for name in table.columns if name != "income"]
    # LightGBM needs numbers: text becomes codes, in a step that a fold fits on its own rows.
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    text = [name for name in features if table.schema[name] == pl.String]
    encode = make_column_transformer((codes, text), remainder="passthrough")
    trees = lightgbm.LGBMClassifier(n_jobs=1, verbose=-1, random_state=0)
    model = LogitAdjustedClassifierCV(
        make_pipeline(encode, trees), objective=args.objective, random_state=0
    )
    model.fit(train[features], train["income"])

    decisions = {
        "most probable": model.estimator_.predict(test[features]),
        "designed": model.predict(test[features]),
    }
    wrong = test.select("income").with_columns(
        *(pl.Series(name, np.asarray(d)) != pl.col("income") for name, d in decisions.items())
    )
    errors = wrong.group_by("income").agg(pl.len().alias("rows"), pl.exclude("income").mean() * 100)
    errors = errors.sort("rows", descending=True)
    print("Error of each class in percent:", errors, sep="\n")
    for name in decisions:
        print(f"Balanced error, {name}: {errors[name].mean():.1f} %")
    return errors


if __name__ == "__main__":
    main()
