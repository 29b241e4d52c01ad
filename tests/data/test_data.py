"""What `autobalance.data` offers by name."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

from autobalance import data


def test_every_name_is_there_and_none_is_that_of_a_module() -> None:
    """Importing the module would put it in the place of the function."""
    assert all(hasattr(data, name) for name in data.__all__)
    modules = {info.name for info in pkgutil.iter_modules(data.__path__)}
    assert not modules & set(data.__all__)


@pytest.mark.processes
def test_reading_without_images_needs_no_pillow() -> None:
    code = (
        "import sys; sys.modules['PIL'] = None; import autobalance.data as d; "
        "[getattr(d, n) for n in d.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
