"""The packaged sample of Adult."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from autobalance.data import adult

# Of all 48,842 rows, as published.
INCOME_ABOVE_50K = 11_687 / 48_842
WOMEN = 16_192 / 48_842


def test_the_sample_has_adults_columns_and_values() -> None:
    sample = adult.adult_sample()
    assert sample.shape == (4000, 14)
    assert "fnlwgt" not in sample
    assert set(sample["income"]) == {"<=50K", ">50K"}
    assert set(sample["sex"]) == {"Female", "Male"}
    assert sample["race"].nunique() == 5
    assert sample["age"].between(17, 90).all()
    assert not (sample == "?").any(axis=None)


def test_only_three_columns_have_missing_values() -> None:
    missing = adult.adult_sample().isna().any()
    assert set(missing[missing].index) == {"workclass", "occupation", "native_country"}


def test_the_sample_keeps_the_shares_of_the_whole_and_every_cell() -> None:
    sample = adult.adult_sample()
    assert abs((sample["income"] == ">50K").mean() - INCOME_ABOVE_50K) < 1e-3
    assert abs((sample["sex"] == "Female").mean() - WOMEN) < 1e-3
    assert len(sample.groupby(["sex", "race", "income"])) == 20


def test_any_part_of_the_sample_is_mixed() -> None:
    """Examples take the first rows; a sorted file would give them one class or sex."""
    first = adult.adult_sample().head(300)
    assert 0.15 < (first["income"] == ">50K").mean() < 0.33
    assert 0.23 < (first["sex"] == "Female").mean() < 0.43


def test_income_can_be_learned_from_the_features() -> None:
    sample = adult.adult_sample()
    by_education = sample.groupby("education_num")["income"].agg(lambda s: (s == ">50K").mean())
    low, high = by_education[by_education.index < 9], by_education[by_education.index > 12]
    assert low.max() < high.min()


def test_each_call_returns_a_table_of_its_own() -> None:
    changed = adult.adult_sample()
    before = changed.copy()
    changed["age"] = np.nan
    pd.testing.assert_frame_equal(adult.adult_sample(), before)


def test_the_file_is_small_and_its_licence_stands_beside_it() -> None:
    folder = Path(adult.__file__).parent
    assert (folder / adult.SAMPLE).stat().st_size < 300_000
    assert "CC BY 4.0" in (folder / "ADULT_NOTICE").read_text()
