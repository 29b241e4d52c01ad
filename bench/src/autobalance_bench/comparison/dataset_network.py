"""The networks that a dataset's definition names: what is trained, and a frozen backbone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from autobalance import InputError
from autobalance.bilevel import ModelFactory
from autobalance.networks import (
    CentralCrop,
    FromBytes,
    Normalize,
    ResNet32,
    SmallCNN,
    TableNetwork,
    by_path,
    imported,
    with_new_head,
    without_head,
)
from autobalance_bench.comparison.dataset_definitions import NETWORKS, DatasetDefinition

_OWN_KEYS = ("path", "normalize", "new_head", "crop")


def network_factory(
    definition: DatasetDefinition, shape: tuple[int, ...], num_classes: int
) -> ModelFactory:
    """Return what builds the definition's network, for inputs ``(n, *shape)``; it can be pickled.

    Raises
    ------
    InputError
        If the network does not fit the inputs, is not there, or needs arguments that are not given.
    """
    factory = _factory(definition, shape, num_classes)
    return (
        partial(_build_for_bytes, factory) if definition.as_bytes and len(shape) == 3 else factory
    )


def check_importable(definition: DatasetDefinition) -> None:
    """Refuse a network that does not import, before any row is read.

    Raises
    ------
    InputError
        As `network_of` would.
    """
    network = definition.network
    path = network["path"] if isinstance(network, Mapping) else network
    if path not in NETWORKS:
        try:
            imported(path)
        except InputError as error:
            raise InputError(f"{definition.name}: {error}") from None


def build_backbone(definition: Mapping[str, Any]) -> nn.Module:
    """Build a pretrained network without its last linear layer, from the mapping of a definition.

    Raises
    ------
    InputError
        If it is not there, or cannot be built like this.
    """
    given = {key: value for key, value in definition.items() if key not in _OWN_KEYS}
    network = without_head(by_path(definition["path"], **given))
    return _prepend_preprocessing(
        network, definition.get("normalize", False), definition.get("crop")
    )


def _factory(
    definition: DatasetDefinition, shape: tuple[int, ...], num_classes: int
) -> ModelFactory:
    num_features = int(np.prod(shape))
    offered: dict[str, Any] = {"num_features": num_features, "num_classes": num_classes}
    if len(shape) == 3:
        offered |= {"channels": shape[0], "size": shape[1:]}
    name = definition.network
    if isinstance(name, Mapping):
        if len(shape) == 3 and name.get("crop") is not None:  # what it is going to see
            offered["size"] = tuple(min(side, name["crop"]) for side in shape[1:])
        return _factory_by_path(definition, name, offered)
    if name == "table":
        return partial(TableNetwork, num_features, num_classes)
    if name == "linear":
        return partial(nn.Linear, num_features, num_classes)
    if name not in NETWORKS:
        return _factory_by_path(definition, {"path": name}, offered)
    if len(shape) != 3:
        raise InputError(
            f"{definition.name}: the network {name} takes images, but this dataset has rows of "
            f"{num_features} numbers. Choose table or linear."
        )
    if name == "resnet32":
        return partial(ResNet32, num_classes, channels=shape[0])
    return partial(SmallCNN, num_classes, channels=shape[0], size=(shape[1], shape[2]))


def _factory_by_path(
    definition: DatasetDefinition, network: Mapping[str, Any], offered: dict[str, Any]
) -> ModelFactory:
    path = network["path"]
    own = {key: value for key, value in network.items() if key not in _OWN_KEYS}
    num_classes = offered["num_classes"] if network.get("new_head", False) else None
    if num_classes is not None:
        del offered["num_classes"]  # it is built as it was pretrained
    try:
        given = _select_arguments(path, imported(path), offered, own)
    except InputError as error:
        raise InputError(f"{definition.name}: {error}") from None
    before = network.get("normalize", False), network.get("crop")
    return partial(_build, path, given, before, num_classes)


def _select_arguments(
    path: str, build: Any, offered: dict[str, Any], own: dict[str, Any]
) -> dict[str, Any]:
    """Add to the arguments `own` those of `offered` that the callable has parameters for.

    One that takes any keyword passes them on, as torchvision's do; it gets the number of classes.
    """
    try:
        wanted = inspect.signature(build).parameters
    except ValueError:  # some of those written in C
        wanted = {}
    anything = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
    passed = {*wanted, "num_classes"} if anything else set(wanted)
    given = {key: value for key, value in offered.items() if key in passed} | own
    needed = [
        p.name
        for p in wanted.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    absent = [name for name in needed if name not in given]
    if absent:
        raise InputError(
            f"The network {path} needs {', '.join(absent)}, but only {', '.join(offered)} are passed. "
            "Give the others in the definition: network: {path: ..., name: value}."
        )
    return given


def _build(
    path: str, given: dict[str, Any], before: tuple[Any, int | None], num_classes: int | None
) -> nn.Module:
    network = by_path(path, **given)
    if num_classes is not None:
        network = with_new_head(network, num_classes)
    return _prepend_preprocessing(network, *before)


def _prepend_preprocessing(network: nn.Module, normalize: Any, crop: int | None) -> nn.Module:
    before: list[nn.Module] = [] if crop is None else [CentralCrop(crop)]
    if normalize:
        before.append(Normalize(**normalize) if normalize is not True else Normalize())
    return nn.Sequential(*before, network) if before else network


def _build_for_bytes(factory: ModelFactory) -> nn.Module:
    return nn.Sequential(FromBytes(), factory())
