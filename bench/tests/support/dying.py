"""A network whose first processes are killed while they build it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from torch import nn


def network(num_features: int, num_classes: int, folder: str, times: int) -> nn.Module:
    """A linear network, once so many processes have died; each leaves a file in the folder."""
    deaths = len(list(Path(folder).iterdir()))
    if deaths < times:
        (Path(folder) / f"{deaths}").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.Linear(num_features, num_classes)
