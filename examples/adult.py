"""Who earns above 50,000 dollars? A loss designed for errors balanced over income and sex.

    python examples/adult.py

Few women in Adult earn that much, so a network trained with cross-entropy misses many of those who
do. Here the objective is the balanced error of each sex, averaged over the sexes. The loss has one
adjustment for each pair of income and sex. The network does not see the sex when it predicts.
"""

from __future__ import annotations

import argparse

import pandas as pd
from by_group import plain_predictions, table_by_group
from sklearn.model_selection import train_test_split

from autobalance import AutoBalanceClassifier, Recipe
from autobalance.data.adult import adult_sample


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=4000, help="number of rows to use, from the top of the table"
    )
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    args = parser.parse_args(arguments)

    table = adult_sample().head(args.rows)
    cells = table["sex"] + table["income"]
    train, test = train_test_split(table, test_size=0.5, random_state=0, stratify=cells)
    features = table.columns.drop(["income", "sex"])

    recipe = Recipe(epochs=1, min_steps=args.steps)
    model = AutoBalanceClassifier(objective="group_balanced_error", recipe=recipe, random_state=0)
    model.fit(train[features], train["income"], sensitive_features=train["sex"])

    plain = plain_predictions(model, (train[features], train["income"]), test[features], recipe)
    for name, predicted in (
        ("Cross-entropy", plain),
        ("autobalance", model.predict(test[features])),
    ):
        print(f"{name}, errors in percent on {len(test)} rows:")
        print(table_by_group(test["income"], predicted, test["sex"]), end="\n\n")
    print("What the designed loss adds to the logit of each income, by sex:")
    print(pd.DataFrame(model.loss_.additive.numpy(), model.groups_, model.classes_).round(2))


if __name__ == "__main__":
    main()
