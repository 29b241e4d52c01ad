"""Draw the package's sample of Adult from the table in a data folder.

.venv/bin/python bench/make_adult_sample.py --data DIR/fairness
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from autobalance.data.adult import SAMPLE
from autobalance_bench.comparison.dataset_split import proportional
from autobalance_bench.datasets.longtail import sample_by_class

TARGET = Path(__file__).parents[1] / "src/autobalance/data" / SAMPLE
SEED = 20220101
SIZE = 4000
CELLS = ["sex", "race", "income"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with adult_{train,test}.csv.gz")
    folder = Path(parser.parse_args().data)
    parts = [pd.read_csv(folder / f"adult_{name}.csv.gz") for name in ("train", "test")]
    table = pd.concat(parts, ignore_index=True).drop(columns="fnlwgt").replace("?", np.nan)
    cells = table.groupby(CELLS).ngroup().to_numpy()
    generator = np.random.default_rng(SEED)
    chosen = sample_by_class(cells, proportional(np.bincount(cells), SIZE), generator)
    sample = table.iloc[generator.permutation(chosen)]
    # Without the time of writing in it, the file is the same whenever it is made.
    sample.to_csv(
        TARGET, index=False, compression={"method": "gzip", "mtime": 0}, lineterminator="\n"
    )
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes; rows by {', '.join(CELLS)}:")
    print(sample.groupby(CELLS).size().to_string())


if __name__ == "__main__":
    main()
