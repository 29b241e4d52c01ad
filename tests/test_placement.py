"""Steps leave everything where the data is, seen on an accelerator that is only pretended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

SUPPORT = Path(__file__).parent / "support"


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot be told of a device that is not there",
)
@pytest.mark.processes
def test_nothing_mixes_devices() -> None:
    """But for the case that does so, by which the pretence shows what it finds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
    command = [sys.executable, "-W", "ignore", str(SUPPORT / "placement.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    failed = json.loads(done.stdout)
    assert "two devices, cpu and pretend:0" in failed.pop("mixed")
    assert failed == {}
