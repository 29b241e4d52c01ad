"""Settings in words: what the record keeps as the repr of a Python object."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from typing import Any

_OBJECTIVES = {
    "BalancedError": "balanced error",
    "WeightedError": "weighted error",
    "WorstError": "worst error",
    "CVaRError": "CVaR of the errors",
}
_OVER = {
    "class": "over classes",
    "group": "over groups",
    "class_and_group": "over pairs of group and class",
}
_SOLVERS = {
    "SingleLoop": "one step per update (single loop)",
    "ConjugateGradient": "conjugate gradients",
    "Neumann": "Neumann series",
    "Nystrom": "Nyström approximation",
    "Identity": "inverse curvature taken as the identity",
}
_WORDS = {"gauss_newton": "Gauss-Newton", "hessian": "exact Hessian"}
_MAX_PARSED = 2000  # characters; no object of the library has a longer repr


@dataclass(frozen=True)
class _Call:
    """``name(key=value, ...)``."""

    name: str
    options: dict[str, Any]


def readable(key: str, value: Any) -> str:
    """A setting's value in words; what is not understood stays as it is.

    Parameters
    ----------
    key : str
        The setting's name; "objective" and "solver" hold reprs.
    value : object
        From the record.
    """
    if isinstance(value, str):
        call = _parsed(value)
        if call is None:
            return value
        return _objective(call) if key == "objective" else _described(call)
    return _plain(value)


def _parsed(text: str) -> _Call | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in somebody's text
            found = _value(ast.parse(text[:_MAX_PARSED], mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, _Call) else None


def _value(node: ast.expr) -> Any:
    """A literal, or a call with named arguments; nothing is evaluated."""
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.args:
            raise ValueError("not a repr of a dataclass")
        return _Call(node.func.id, {str(k.arg): _value(k.value) for k in node.keywords})
    return ast.literal_eval(node)


def _objective(call: _Call) -> str:
    options = dict(call.options)
    over = options.pop("over", None)
    surrogate = options.pop("surrogate", None)
    words = [_OBJECTIVES.get(call.name, _spaced(call.name)), _OVER.get(str(over), "")]
    said = [" ".join(w for w in words if w)]
    if isinstance(surrogate, _Call):
        said.append(_surrogate(surrogate))
    return ", ".join(said + _options(options))


def _surrogate(call: _Call) -> str:
    if call.name == "CrossEntropyRisk":
        return "cross-entropy in place of the error"
    if call.name == "SmoothError":
        fixed, relative = call.options.get("temperature"), call.options.get("relative")
        scale = f"{_plain(relative)} × mean margin" if fixed is None else _plain(fixed)
        return f"smooth error with temperature {scale}"
    return _described(call)


def _described(call: _Call) -> str:
    """Name and options of any object."""
    name = _SOLVERS.get(call.name, _spaced(call.name))
    return ", ".join([name, *_options(call.options)])


def _options(options: dict[str, Any]) -> list[str]:
    said = []
    for key, value in options.items():
        name = key.replace("_", " ")
        if key == "curvature":
            said.append(f"{_plain(value)} curvature")
        elif isinstance(value, bool):
            said.append(name if value else f"not {name}")
        else:
            said.append(f"{name} {_plain(value)}")
    return said


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_plain(v) for v in value[:50])
        return shown + (", …" if len(value) > 50 else "")
    if isinstance(value, _Call):
        return _described(value)
    return _WORDS.get(str(value), str(value))


def _spaced(name: str) -> str:
    """BalancedError as "balanced error"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
