"""Libraries that only the image sets need, imported with advice where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from autobalance import InputError

_DISTRIBUTIONS = {"PIL": "pillow"}
"""Names to install of modules that are imported under another."""


def import_optional(module: str, purpose: str, install: str | None = None) -> Any:
    """Import a module of an optional library.

    Parameters
    ----------
    module : str
        Its full name, such as ``"torchvision.datasets"``.
    purpose : str
        What needs it: the subject of the message's first sentence, in the singular.
    install : str, optional
        The command that installs it; by default ``pip install`` with the module's first name.

    Raises
    ------
    InputError
        If it cannot be imported; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision for another torch: a RuntimeError
        library = module.split(".")[0]
        install = install or f"pip install {_DISTRIBUTIONS.get(library, library)}"
        raise InputError(
            f"{purpose} needs {library}, which cannot be imported ({error}). Install it: {install}."
        ) from None
