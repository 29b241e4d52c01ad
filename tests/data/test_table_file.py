"""Tables that stay in their file give what they give when they are read whole."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from autobalance._validation import InputError
from autobalance.data import table_file
from autobalance.data.table_encoder import TableEncoder, TableWarning
from autobalance.data.table_file import TableFile, encode_in_parts, open_table
from autobalance.data.tables import read_table

ODD = (
    "number,whole,code,money,flag,day,town,empty,mixed,holes\n"
    '1.5,1,007,"1,234.50",True,2024-01-31,"A, B",,1,3\n'
    '2.5e3,2,010,"2,000.00",False,2024-02-01,"say ""x""",,x,\n'
    'NA,-3,100,"5.25",True,,"two\nlines",,2,7\n'
    '4,4,200,"7.00",False,2024-03-01,,,NA,9\n'
)


@pytest.fixture
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_file, "LARGE_TABLE", 1)
    monkeypatch.setattr(table_file, "BLOCK", 7)


def mixed(rows: int = 100) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "x": rng.normal(size=rows) * 1e3,
            "n": rng.integers(0, 9, rows),
            "town": rng.choice(["A", "B", "C"], rows),
            "many": [f"name {i}" for i in rng.integers(0, 10**6, rows)],
            "flag": rng.random(rows) < 0.5,
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 99, rows), "D"),
        }
    )
    table.loc[rng.random(rows) < 0.2, ["x", "town"]] = None
    return table.astype({"flag": object}).assign(cat=table["town"].astype("category"))


def write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path, row_group_size=30, index=False)
    else:
        table.to_csv(path, index=False)
    return path


@pytest.mark.usefixtures("_everything_is_large")
@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.csv.gz", "t.csv.xz"])
def test_encoded_rows_and_encoder_are_those_of_the_whole_table(tmp_path: Path, name: str) -> None:
    path = write(mixed(), tmp_path / name)
    whole = read_table(path)
    target = np.arange(100) % 3
    expected = TableEncoder(one_hot=False)
    raw = expected.fit_raw(whole, target)
    table = open_table(path, folder=tmp_path / "run")
    assert isinstance(table, TableFile)
    encoder, sampled, told = TableEncoder(one_hot=False), np.array([0, 50, 99]), []
    rows, sample = encode_in_parts(
        table, encoder, target, None, sampled, lambda done, total: told.append((done, total))
    )
    assert encoder.to_dict() == expected.to_dict()
    np.testing.assert_array_equal(rows[:].numpy(), expected.encode(raw))
    np.testing.assert_array_equal(sample, raw[sampled])
    assert told == [(i + 1, 22) for i in range(22)]  # 7 columns, 15 blocks of 7 rows
    left = list((tmp_path / "run").iterdir())
    assert len(left) == 1
    del table, rows
    gc.collect()
    assert not left[0].exists()


@pytest.mark.usefixtures("_everything_is_large")
def test_a_csv_is_read_as_pandas_reads_it(tmp_path: Path) -> None:
    """Numbers, codes, quoted texts, lines in a cell, and what counts as missing."""
    path = tmp_path / "odd.csv"
    path.write_text(ODD)
    table, whole = open_table(path, text=["whole"]), read_table(path, text=["whole"])
    assert isinstance(table, TableFile)
    assert table.columns.tolist() == whole.columns.tolist()
    for name in whole.columns:
        pd.testing.assert_series_equal(table[name], whole[name], check_dtype=False)
    assert table[["day", "town"]].columns.tolist() == ["day", "town"]
    assert table.drop(columns=["day"]).shape == (4, 9)
    with pytest.raises(KeyError):
        table["gone"]


@pytest.mark.usefixtures("_everything_is_large")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n1,2,3\n", "line 3 has 3 fields"),
        (b"a,b\n\xff\xfe,1\n", "not text in UTF-8"),
        (b"a;b\n1;2\n", "looks separated by ';'"),
    ],
)
def test_a_csv_that_cannot_be_read_in_blocks_is_refused_as_ever(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_table(path, folder=tmp_path / "run")
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.usefixtures("_everything_is_large")
def test_a_csv_with_short_lines_is_read_whole(tmp_path: Path) -> None:
    """Where pyarrow refuses, pandas fills with missing values."""
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3\n")
    table = open_table(path)
    assert isinstance(table, pd.DataFrame)
    assert np.isnan(table["b"][1])


def test_small_tables_are_read_whole(tmp_path: Path) -> None:
    for name in ("t.parquet", "t.csv", "t.csv.gz"):
        assert isinstance(open_table(write(mixed(), tmp_path / name)), pd.DataFrame)


@pytest.mark.usefixtures("_everything_is_large")
def test_a_pandas_index_is_no_column(tmp_path: Path) -> None:
    table = pd.DataFrame({0: [1.0, 2.0], "a.b": ["x", "y"]}, index=pd.Index([7, 9], name="key"))
    table.columns = table.columns.map(str)
    table.to_parquet(tmp_path / "t.parquet")
    read = open_table(tmp_path / "t.parquet")
    assert isinstance(read, TableFile)
    assert read.columns.tolist() == ["0", "a.b"]
    assert read["a.b"].tolist() == ["x", "y"]
    assert read["0"].index.tolist() == [0, 1]


def test_a_row_group_that_is_large_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"x": np.arange(2000.0)}), path)
    monkeypatch.setattr(table_file, "LARGE_TABLE", 1)
    monkeypatch.setattr(table_file, "LARGE_ROW_GROUP", 10_000)
    with pytest.warns(TableWarning, match="has a row group of 0.0 GB: it is read column by column"):
        open_table(path)
    monkeypatch.setattr(table_file, "memory_size", lambda: 50_000.0)
    with pytest.raises(InputError, match=r"The column 'x' of .* holds 0\.0 GB .*4 times as much"):
        open_table(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(table_file, "memory_size", lambda: 1e9)
        pa.parquet.write_table(pa.table({"x": np.arange(2000.0)}), path, row_group_size=500)
        open_table(path)


def test_ten_gigabytes_in_one_row_group_are_told_from_the_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is small, as its one value is repeated; its metadata say what it would be in memory."""
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"x": np.arange(1000.0)}), path)
    monkeypatch.setattr(table_file, "_parquet_sizes", lambda path: {"x": 10**10})
    monkeypatch.setattr(table_file, "_largest_row_group", lambda path: 10**10)
    monkeypatch.setattr(table_file, "memory_size", lambda: 10**11)
    with pytest.warns(TableWarning, match=r"row group of 10\.0 GB.*largest of 10\.0 GB"):
        open_table(path)
    monkeypatch.setattr(table_file, "memory_size", lambda: 10**10)
    with pytest.raises(InputError, match=r"holds 10\.0 GB of values.*this machine has 10\.0 GB"):
        open_table(path)


@pytest.mark.usefixtures("_everything_is_large")
def test_a_disk_without_room_is_told_before_it_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = open_table(write(mixed(), tmp_path / "t.parquet"), folder=tmp_path / "run")
    assert isinstance(table, TableFile)
    monkeypatch.setattr(table_file, "free_bytes", lambda folder: 1000)
    with pytest.raises(InputError, match=r"0\.0 GB in .* are free. Make room"):
        encode_in_parts(table, TableEncoder(), None, None, np.array([0]))
    assert not list(table.folder.iterdir())


@pytest.mark.usefixtures("_everything_is_large")
def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "run" / "parts-left"
    left.mkdir(parents=True)
    (left / "encoded.npy").write_bytes(b"x")
    open_table(write(mixed(), tmp_path / "t.parquet"), folder=tmp_path / "run")
    assert not left.exists()
