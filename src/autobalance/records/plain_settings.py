"""Objects that are their settings, as plain dicts with a "kind" and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Self

from autobalance._validation import InputError


class PlainSettings:
    """Base of frozen dataclasses that a record can hold: objectives, surrogates and solvers.

    A subclass joins the registry by being defined; its "kind" is its name.
    """

    def to_dict(self) -> dict[str, Any]:
        """The kind and all settings, of numbers, strings, lists and dicts alone."""
        return {"kind": type(self).__name__, **_settings(self)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """Inverse of `to_dict`, called on the base of the kinds that are expected.

        Raises
        ------
        InputError
            If the record has an unknown kind or setting, or lacks one; the message lists the
            known ones.
        """
        kind = recorded_kind(cls, record)
        known = [f.name for f in fields(kind) if f.init]  # pyright: ignore[reportArgumentType]
        given = {key: _restored(value) for key, value in record.items() if key != "kind"}
        unknown = [key for key in given if key not in known]
        if unknown:
            raise InputError(
                f"{record['kind']} has no setting {unknown[0]!r}; it has {', '.join(known) or 'none'}."
            )
        try:
            return kind(**given)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"This record of {record['kind']} is altered: {error}.") from None


def recorded_kind(base: type, record: Any) -> type:
    """The class that a record's "kind" names, `base` or one below it with nothing left abstract.

    Raises
    ------
    InputError
        If the record has no kind, or an unknown one; the message lists the known ones.
    """
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise InputError(
            f'A record of {base.__name__} must be a dict with a "kind"; got '
            f"{type(record).__name__} {str(record)[:60]!r}."
        )
    kinds = {kind.__name__: kind for kind in _kinds(base)}
    if record["kind"] not in kinds:
        raise InputError(
            f"{record['kind']!r} is no kind of {base.__name__} that is known here; known are "
            f"{', '.join(sorted(kinds))}. Import the module that defines it first."
        )
    return kinds[record["kind"]]


def _settings(thing: Any) -> dict[str, Any]:
    if not is_dataclass(thing):
        return {}
    return {f.name: _plain(getattr(thing, f.name)) for f in fields(thing) if f.init}


def _plain(value: Any) -> Any:
    if isinstance(value, PlainSettings):
        return value.to_dict()
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy number
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    # A function of the user's own, which a record can only name.
    return {"kind": getattr(value, "__name__", type(value).__name__)}


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return PlainSettings.from_dict(value)
    return tuple(_restored(item) for item in value) if isinstance(value, list) else value


def _kinds(base: type) -> Iterator[type]:
    if base is not PlainSettings and not getattr(base, "__abstractmethods__", None):
        yield base
    for below in base.__subclasses__():
        yield from _kinds(below)
