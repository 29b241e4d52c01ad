"""Classifiers of other libraries on tables, one for each of several labels, kept together."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import Pipeline, make_pipeline

from autobalance.cli.estimators import Score, new_pipeline, read_content, save_content
from autobalance.data import TableEncoder

FILE = "labels.zip"
"""The classifiers, each in the format of `autobalance.cli.estimators`, by the label's number."""


def label_pipeline(name: str, seed: int) -> Pipeline:
    """As `new_pipeline`, with a classifier of its own for each label."""
    reader, model = (step for _, step in new_pipeline(name, seed).steps)
    return make_pipeline(reader, MultiOutputClassifier(model))


@dataclass(frozen=True)
class LabelEstimators:
    """A fitted classifier for each label with their table's reader: the scores of a RUN.

    `contents` is what is kept of each, and `each` gives the two classes' probabilities, or decision values,
    of its label for the numbers of a table.
    """

    name: str
    encoder: TableEncoder
    contents: Sequence[bytes]
    each: Sequence[Score]

    @classmethod
    def of(cls, name: str, pipeline: Pipeline) -> Self:
        """Of a pipeline that `label_pipeline` made for this name, fitted."""
        reader, models = (step for _, step in pipeline.steps)
        contents = [save_content(name, model) for model in models.estimators_]
        return cls(name, reader.encoder_, contents, [read_content(name, c) for c in contents])

    @classmethod
    def load(cls, folder: Path, entry: dict[str, Any]) -> Self:
        """From a RUN folder; `entry` is what `describe` gave."""
        name, encoder = entry["name"], TableEncoder.from_dict(entry["encoder"])
        with zipfile.ZipFile(folder / FILE) as archive:
            contents = [archive.read(str(j)) for j in range(int(entry["labels"]))]
        return cls(name, encoder, contents, [read_content(name, c) for c in contents])

    def scores(self, table: pd.DataFrame) -> np.ndarray:
        """Probabilities, or decision values, that each label is present, shape ``(n, k)``."""
        numbers = self.encoder.transform(table)
        return np.column_stack([np.asarray(score(numbers))[:, 1] for score in self.each])

    def describe(self) -> dict[str, Any]:
        """The classifiers' name, their number, and how to read a table."""
        return {"name": self.name, "labels": len(self.each), "encoder": self.encoder.to_dict()}

    def files(self) -> dict[str, bytes]:
        """The classifiers."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for j, content in enumerate(self.contents):
                # A date of its own would make each RUN another.
                archive.writestr(zipfile.ZipInfo(str(j)), content, zipfile.ZIP_DEFLATED)
        return {FILE: packed.getvalue()}
