"""A sample of Adult, UCI's census table, in the package: for examples and tests with groups.

4,000 rows of B. Becker and R. Kohavi, "Adult", UCI Machine Learning Repository, 1996,
https://doi.org/10.24432/C5XW20, licensed CC BY 4.0. Values are as published, but for "?", which
is a missing value here. `bench/make_adult_sample.py` drew the rows.
"""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

SAMPLE = "adult_sample.csv.gz"


def adult_sample() -> pd.DataFrame:
    """Rows of Adult, drawn in proportion to sex, race and income, in random order.

    The columns are Adult's but for "fnlwgt", a sampling weight. The usual target is "income",
    "<=50K" or, for 24 % of the rows, ">50K"; the usual groups are "sex" (2) and "race" (5). A
    missing value of "workclass", "occupation" or "native_country" is NaN.

    Returns
    -------
    DataFrame
        Shape ``(4000, 14)``.
    """
    with files("autobalance.data").joinpath(SAMPLE).open("rb") as stream:
        return pd.read_csv(stream, compression="gzip")
