"""Who is charged again within two years? A loss designed for errors balanced over outcome and race.

    python examples/compas.py --data compas-scores-two-years.csv

The file is ProPublica's, from https://github.com/propublica/compas-analysis. Its other columns were
recorded after the decision, so they are left out. Errors here are measured against later charges,
which are not the same as later crimes: people who are watched more are charged more. No loss repairs
that.
"""

from __future__ import annotations

import argparse

from by_group import plain_predictions, table_by_group
from sklearn.model_selection import train_test_split

from autobalance import AutoBalanceClassifier, Recipe
from autobalance.data import column, read_table

FEATURES = [
    "age", "sex", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count",
    "c_charge_degree",
]  # fmt: skip
TARGET, GROUP = "two_year_recid", "race"
SMALLEST = 100
"""Groups with fewer rows are merged into "Other", because their errors could not be measured."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        required=True,
        help="the file compas-scores-two-years.csv, may be compressed as .gz",
    )
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    args = parser.parse_args(arguments)

    table = read_table(args.data)
    target, race = column(table, TARGET, "target"), column(table, GROUP, "group")
    race = race.where(race.map(race.value_counts()) >= SMALLEST, "Other")
    cells = race + target.astype(str)
    train, test = train_test_split(table.index, test_size=0.5, random_state=0, stratify=cells)

    recipe = Recipe(epochs=1, min_steps=args.steps)
    model = AutoBalanceClassifier(objective="group_balanced_error", recipe=recipe, random_state=0)
    X = table[FEATURES]
    model.fit(X.loc[train], target[train], sensitive_features=race[train])

    plain = plain_predictions(model, (X.loc[train], target[train]), X.loc[test], recipe)
    for name, predicted in (("Cross-entropy", plain), ("autobalance", model.predict(X.loc[test]))):
        print(f"{name}, errors in percent on {len(test)} rows:")
        print(table_by_group(target[test], predicted, race[test]), end="\n\n")


if __name__ == "__main__":
    main()
