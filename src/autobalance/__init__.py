"""Designs the training loss for imbalanced and group-sensitive classification.

The public names stand in ``__init__.pyi``, where editors and type checkers find them. At run time each
is imported on first use, so that importing the package is cheap.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
