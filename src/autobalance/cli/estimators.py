"""Classifiers of other libraries on tables, kept in formats that hold no code: their own, or skops."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, TransformerMixin, is_classifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.validation import check_is_fitted

from autobalance._validation import InputError, how_to_install
from autobalance.data import TableEncoder

_SKOPS = "estimator.skops"
BOOSTERS = {"lightgbm": "booster.txt", "xgboost": "booster.json", "catboost": "booster.cbm"}
"""Libraries of boosted trees, and the file that each writes."""
FILES = (*BOOSTERS.values(), _SKOPS)
"""Names of the files that a classifier is kept in."""
_CLASSES = {
    "lightgbm": "lightgbm.LGBMClassifier",
    "xgboost": "xgboost.XGBClassifier",
    "catboost": "catboost.CatBoostClassifier",
    "random_forest": "sklearn.ensemble.RandomForestClassifier",
    "logistic": "sklearn.linear_model.LogisticRegression",
}
_SETTINGS: dict[str, dict[str, Any]] = {
    # Steps of bounded size: without a bound boosting diverges where a class has few examples.
    "lightgbm": {
        "max_delta_step": 1.0,
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    },
    "xgboost": {"max_delta_step": 1.0, "verbosity": 0},
    "catboost": {"verbose": False, "allow_writing_files": False},
    # A forest's leaves of one example would give most classes the probability 0.
    "random_forest": {"n_estimators": 300, "min_samples_leaf": 2},
    "logistic": {"max_iter": 1000},
}
_TREES = (
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
)
"""Beside what skops itself reads: arrays of nodes, which run no code. Nothing a file names is added to it."""

Score = Callable[[np.ndarray], np.ndarray]
"""Gives probabilities, or decision values, ``(n, k)`` to a table's numbers ``(n, d)``."""


class TableReader(TransformerMixin, BaseEstimator):
    """The package's reading of tables as a step of a pipeline: categories, numbers, missing values."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn scales and categories; `encoder_` has the notes of what is worth knowing."""
        target = None  # of several labels there is none that a column could decide alone
        if y is not None and np.ndim(y) == 1:
            target = np.unique(np.asarray(y), return_inverse=True)[1]
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
    score: Score

    @classmethod
    def of(cls, name: str, pipeline: Pipeline) -> Self:
        """Of a pipeline that `new_pipeline` made for this name, fitted to classes 0 to k - 1.

        Raises
        ------
        InputError
            If the classifier cannot be kept without a pickle.
        """
        encoder, model = pipeline[0].encoder_, pipeline[-1]  # pyright: ignore[reportAttributeAccessIssue]
        content = save_content(name, model)
        return cls(name, encoder, content, read_content(name, content))

    @classmethod
    def load(cls, folder: Path, entry: dict[str, Any]) -> Self:
        """From a RUN folder; `entry` is what `describe` gave."""
        name, encoder = entry["name"], TableEncoder.from_dict(entry["encoder"])
        content = (folder / BOOSTERS.get(name, _SKOPS)).read_bytes()
        return cls(name, encoder, content, read_content(name, content))

    def scores(self, table: pd.DataFrame) -> np.ndarray:
        """Shape ``(n, k)``, or of groups' cells ``(n, g k)``."""
        return self.score(self.encoder.transform(table))

    def describe(self) -> dict[str, Any]:
        """The classifier's name, and how to read a table."""
        return {"name": self.name, "encoder": self.encoder.to_dict()}

    def files(self) -> dict[str, bytes]:
        """The classifier."""
        return {BOOSTERS.get(self.name, _SKOPS): self.content}


def new_pipeline(name: str, seed: int) -> Pipeline:
    """The reader of a table and the classifier that ``--model`` names, not fitted.

    Raises
    ------
    InputError
        If its library is not installed, or it is no classifier that can be kept without a pickle.
    """
    module, _, class_name = _CLASSES.get(name, name).rpartition(".")
    if not module:
        known = ", ".join(["network", *_CLASSES, "auto"])
        raise InputError(
            f"--model must be one of {known}, or the path of a class of scikit-learn such as "
            f"sklearn.ensemble.ExtraTreesClassifier; got {name!r}."
        )
    if name not in BOOSTERS and module.split(".")[0] != "sklearn":
        raise InputError(_no_format(name))
    try:
        model = _import(module, class_name)(**_SETTINGS.get(name, {}))
    except TypeError as error:
        raise InputError(f"--model {name} cannot be made without arguments: {error}.") from None
    if not is_classifier(model):
        raise InputError(f"--model {name} is no classifier. Give the path of one.")
    if name == "catboost" or "random_state" in model.get_params():
        model.set_params(random_state=seed)
    if name in BOOSTERS:  # of themselves they take all cores, whatever OMP_NUM_THREADS says
        threads = "thread_count" if name == "catboost" else "n_jobs"
        model.set_params(**{threads: torch.get_num_threads()})
    if name not in BOOSTERS:
        _to_skops(name, model)  # whether it can be kept is to be known before it is fitted
    return make_pipeline(TableReader(), model)


def _import(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        remedy = how_to_install(module) if module in BOOSTERS else "Check the path"
        raise InputError(f"{module}.{name} cannot be imported ({error}). {remedy}.") from None


def _no_format(name: str) -> str:
    return (
        f"--model {name} is no class of scikit-learn: it can be kept by a pickle only, which can run any "
        "code when it is read. Write its out-of-fold probabilities to a table and give that to "
        "`autobalance adjust`, or use LogitAdjustedClassifierCV in Python."
    )


def save_content(name: str, model: Any) -> bytes:
    """What is kept of a fitted classifier.

    Raises
    ------
    InputError
        If it cannot be kept without a pickle.
    """
    return _save_booster(name, model) if name in BOOSTERS else _to_skops(name, model)


def read_content(name: str, content: bytes) -> Score:
    """What a kept classifier predicts; a ValueError where it cannot be read."""
    try:
        return _score_of(name, content)
    except InputError:
        raise
    except Exception as error:  # each library has its own
        raise ValueError(f"{name} cannot read it ({error})") from None


def _save_booster(name: str, model: Any) -> bytes:
    if name == "lightgbm":
        return model.booster_.model_to_string().encode()
    if name == "xgboost":
        return bytes(model.get_booster().save_raw("json"))
    with tempfile.TemporaryDirectory() as folder:  # CatBoost writes to files only
        path = Path(folder) / BOOSTERS[name]
        model.save_model(str(path), format="cbm")
        return path.read_bytes()


def _score_of(name: str, content: bytes) -> Score:
    """What a kept classifier predicts: what is read is what was written, also right after a fit."""
    if name == "lightgbm":
        return _both_classes(_import(name, "Booster")(model_str=content.decode()).predict)
    if name == "xgboost":
        booster, matrix = _import(name, "Booster")(), _import(name, "DMatrix")
        booster.load_model(bytearray(content))
        return _both_classes(lambda numbers: booster.predict(matrix(numbers)))
    if name == "catboost":
        return _import(name, "CatBoostClassifier")().load_model(blob=content).predict_proba
    model = _from_skops(name, content)
    if hasattr(model, "predict_proba"):
        return model.predict_proba

    def score(numbers: np.ndarray) -> np.ndarray:
        f = model.decision_function(numbers)
        return np.stack([np.zeros_like(f), f], axis=1) if f.ndim == 1 else f

    return score


def _both_classes(predict: Score) -> Score:
    """Of two classes a booster gives the second's probability alone."""

    def score(numbers: np.ndarray) -> np.ndarray:
        p = np.asarray(predict(numbers))
        return np.stack([1.0 - p, p], axis=1) if p.ndim == 1 else p

    return score


def _skops() -> Any:
    try:
        return import_module("skops.io")
    except ImportError:
        raise InputError(
            "Models of scikit-learn are kept by skops, as a pickle could run any code when it is read, and "
            f"skops is not installed. {how_to_install('skops')}. The network and boosters need no skops."
        ) from None


def _to_skops(name: str, model: Any) -> bytes:
    skops = _skops()
    content = skops.dumps(model)
    unknown = _unknown_types(content)
    if unknown:
        raise InputError(
            f"--model {name} holds {unknown[0]}, which cannot be kept without a pickle. Take another class, "
            "or use LogitAdjustedClassifierCV in Python."
        )
    return content


def _from_skops(name: str, content: bytes) -> Any:
    unknown = _unknown_types(content)
    if unknown:
        raise InputError(
            f"{_SKOPS} holds {unknown[0]}, which no classifier kept here has: it was altered, and is not "
            f"read. Fit --model {name} again."
        )
    return _skops().loads(content, trusted=list(_TREES))


def _unknown_types(content: bytes) -> list[str]:
    return sorted(set(_skops().get_untrusted_types(data=content)) - set(_TREES))
