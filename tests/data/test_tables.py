"""Reading tables from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autobalance._validation import InputError
from autobalance.data import tables
from autobalance.data.tables import column, read_table


def mixed() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [20.0, 30.0, np.nan, 50.0],
            "income": [1, 2, 3, 4],
            "town": ["A", "B", None, "A"],
            "owner": [True, False, True, False],
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.xz", ".parquet"])
def test_every_kind_of_file_reads_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    table = mixed()
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_table(path), table, check_dtype=False)


def test_a_table_larger_than_the_memory_is_told_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.parquet"
    pd.DataFrame({"x": np.arange(1000.0)}).to_parquet(path)
    monkeypatch.setattr(tables, "memory_size", lambda: 4e3)
    monkeypatch.setattr(pd, "read_parquet", None)
    with pytest.raises(InputError, match=r"0\.0 GB of values, and .* Give a sample of its rows"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "There is no file"),
        ("empty.csv", b"", "is empty"),
        ("header.csv", b"a,b\n", "has no rows"),
        ("broken.parquet", b"not parquet", "cannot be read as a table"),
        ("broken.csv.gz", b"not gzip", "cannot be read as a table"),
        ("broken.csv", b'a,b\n1,2\n"', "cannot be read as a table"),
        ("binary.csv", b"\xff\xfe\x00\x81\n", "cannot be read as a table"),
        ("table.xlsx", b"x", "must end in"),
        ("latin.csv", "a,b\nä,1\n".encode("latin-1"), "not text in UTF-8. Save it as UTF-8"),
        ("text.parquet", b"a,b\n1,2\n3,4\n", "table: it is not in Parquet's format"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3\n", "table: line 3 has 3 fields, the lines before .* 2"),
        ("wide.csv", b"a,b\n1,2,3\n1,2,3\n", "more fields than its header, which has 2"),
        ("semicolon.csv", b"a;b\n1,5;2\n", "looks separated by ';'. Save it with commas"),
        ("tab.csv", b"a\tb\n1\t2\n", r"looks separated by '\\t'"),
        ("twins.csv", b"a,b,a\n1,2,3\n", "the column 'a' more than once"),
    ],
)
def test_unusable_file_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_table(path)


def test_folder_is_refused_and_names_that_only_look_alike_are_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder\. Give the path of a CSV or Parquet table"):
        read_table(tmp_path)
    (tmp_path / "one.csv").write_text("a,a.1\n1,2\n")
    assert read_table(tmp_path / "one.csv").columns.tolist() == ["a", "a.1"]


def test_column_is_named_when_absent_missing_or_doubled() -> None:
    table = mixed()
    with pytest.raises(InputError, match=r"target column 'label' is not in the table.*age, income"):
        column(table, "label", "target")
    with pytest.raises(InputError, match=r"has 1 missing value \(the first in row 3\)"):
        column(table, "town", "group")
    doubled = pd.concat([table, table[["age"]]], axis=1)
    with pytest.raises(InputError, match="more than once"):
        column(doubled, "age", "target")


def test_numbers_with_a_leading_zero_are_codes_and_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    path.write_text("zip,number,holes\n00501,1,007\n10001,2,\n")
    table = read_table(path)
    assert table["zip"].tolist() == ["00501", "10001"]
    assert table["number"].tolist() == [1, 2]
    assert table["holes"].tolist()[0] == "007"
    assert read_table(path, text=["number"])["number"].tolist() == ["1", "2"]
