"""Classifiers of other libraries on tables, kept in formats that hold no code: text, or skops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin, is_classifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.validation import check_is_fitted

from autobalance._validation import InputError
from autobalance.data import TableEncoder

_BOOSTER, _ESTIMATOR = "booster.txt", "estimator.skops"
FILES = (_BOOSTER, _ESTIMATOR)
"""Names of the files that a classifier is kept in."""
_CLASSES = {
    "random_forest": "sklearn.ensemble.RandomForestClassifier",
    "logistic": "sklearn.linear_model.LogisticRegression",
}
_SETTINGS: dict[str, dict[str, Any]] = {
    # A forest's leaves of one example would give most classes the probability 0.
    "random_forest": {"n_estimators": 300, "min_samples_leaf": 2},
    "logistic": {"max_iter": 1000},
}


class TableReader(TransformerMixin, BaseEstimator):
    """The package's reading of tables as a step of a pipeline: categories, numbers, missing values."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn scales and categories; `encoder_` has the notes of what is worth knowing."""
        target = None if y is None else np.unique(np.asarray(y), return_inverse=True)[1]
        self.encoder_ = TableEncoder().fit(X, target)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Numbers, shape ``(n, num_features)``, float32."""
        check_is_fitted(self, "encoder_")
        return self.encoder_.transform(X)


@dataclass(frozen=True)
class TableEstimator:
    """A fitted classifier with its table's reader: the scores of a RUN.

    `name` is what ``--model`` named, `content` what is kept of the classifier, and `score` gives its
    probabilities, or decision values, for the numbers of a table.
    """

    name: str
    encoder: TableEncoder
    content: bytes
    score: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, name: str, pipeline: Pipeline) -> Self:
        """Of a pipeline that `new_pipeline` made, fitted.

        Raises
        ------
        InputError
            If the classifier cannot be kept without a pickle.
        """
        reader, model = pipeline[0], pipeline[-1]
        if name == "lightgbm":
            content = model.booster_.model_to_string().encode()
            return cls(name, reader.encoder_, content, _booster_scores(content))
        return cls(name, reader.encoder_, _to_skops(name, model), _scores_of(model))

    @classmethod
    def load(cls, folder: Path, entry: dict[str, Any]) -> Self:
        """From a RUN folder; `entry` is what `describe` gave."""
        name, encoder = entry["name"], TableEncoder.from_dict(entry["encoder"])
        content = (folder / _file_of(name)).read_bytes()
        if name == "lightgbm":
            return cls(name, encoder, content, _booster_scores(content))
        return cls(name, encoder, content, _scores_of(_from_skops(name, content)))

    def scores(self, table: pd.DataFrame) -> np.ndarray:
        """Shape ``(n, k)``, or of groups' cells ``(n, g k)``."""
        return self.score(self.encoder.transform(table))

    def describe(self) -> dict[str, Any]:
        """The classifier's name, and how to read a table."""
        return {"name": self.name, "encoder": self.encoder.to_dict()}

    def files(self) -> dict[str, bytes]:
        """The classifier."""
        return {_file_of(self.name): self.content}


def new_pipeline(name: str, seed: int) -> Pipeline:
    """The reader of a table and the classifier that ``--model`` names, not fitted.

    Raises
    ------
    InputError
        If its library is not installed, or it is no classifier that can be kept without a pickle.
    """
    return make_pipeline(TableReader(), _new_classifier(name, seed))


def _new_classifier(name: str, seed: int) -> Any:
    if name == "lightgbm":
        # Steps of bounded size: without a bound boosting diverges where a class has few examples.
        return _import("lightgbm", "LGBMClassifier", "lightgbm")(
            max_delta_step=1.0, random_state=seed, deterministic=True, force_row_wise=True, verbose=-1
        )  # fmt: skip
    path = _CLASSES.get(name, name)
    module, _, cls = path.rpartition(".")
    if not module:
        known = ", ".join(["network", "lightgbm", *_CLASSES])
        raise InputError(
            f"--model must be one of {known}, or the path of a class of scikit-learn such as "
            f"sklearn.ensemble.ExtraTreesClassifier; got {name!r}."
        )
    if module.split(".")[0] != "sklearn":
        raise InputError(_no_format(name))
    model = _import(module, cls, None)(**_SETTINGS.get(name, {}))
    if not is_classifier(model):
        raise InputError(f"--model {name} is no classifier. Give the path of one.")
    if "random_state" in model.get_params():
        model.set_params(random_state=seed)
    _to_skops(name, model)  # whether it can be kept is to be known before it is fitted
    return model


def _import(module: str, name: str, package: str | None) -> Any:
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        remedy = f"Install it: pip install {package}." if package else "Check the path."
        raise InputError(f"{module}.{name} cannot be imported ({error}). {remedy}") from None


def _no_format(name: str) -> str:
    return (
        f"--model {name} is of no library whose classifiers can be kept without a pickle, which can run "
        "any code when it is read. Write its out-of-fold probabilities to a table and give that to "
        "`autobalance adjust`, or use LogitAdjustedClassifierCV in Python."
    )


def _file_of(name: str) -> str:
    return _BOOSTER if name == "lightgbm" else _ESTIMATOR


def _skops() -> Any:
    try:
        return import_module("skops.io")
    except ImportError:
        raise InputError(
            "Models of scikit-learn are kept by skops, which is not installed. Install it: pip install "
            "'autobalance[skops]'. For --model network and lightgbm it is not needed."
        ) from None


def _to_skops(name: str, model: Any) -> bytes:
    skops = _skops()
    content = skops.dumps(model)
    if skops.get_untrusted_types(data=content):
        raise InputError(_no_format(name))
    return content


def _from_skops(name: str, content: bytes) -> Any:
    skops = _skops()
    unknown = skops.get_untrusted_types(data=content)
    if unknown:
        raise InputError(
            f"{_ESTIMATOR} holds {unknown[0]}, which is no part of scikit-learn: it was altered, and is "
            f"not read. Fit --model {name} again."
        )
    return skops.loads(content, trusted=[])


def _booster_scores(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    booster = _import("lightgbm", "Booster", "lightgbm")(model_str=content.decode())

    def score(numbers: np.ndarray) -> np.ndarray:
        p = np.asarray(booster.predict(numbers))
        return np.stack([1.0 - p, p], axis=1) if p.ndim == 1 else p

    return score


def _scores_of(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    if hasattr(model, "predict_proba"):
        return model.predict_proba

    def score(numbers: np.ndarray) -> np.ndarray:
        f = model.decision_function(numbers)
        return np.stack([np.zeros_like(f), f], axis=1) if f.ndim == 1 else f

    return score
