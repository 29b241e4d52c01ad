"""The settings of tests/support/shared_settings.py hold for all tests here."""

from shared_settings import seeded

__all__ = ["seeded"]
