"""Settings of both suites: threads, Hypothesis and seeds."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the subprocesses that tests start

# The same examples on every machine and no deadline: a failure can be repeated, and a slow
# machine is no failure.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, max_examples=40, database=None
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Whatever a test draws from the global random state is the same in each run and order."""
    torch.manual_seed(0)
