"""The settings of tests/support/shared_settings.py hold for all tests here."""

from shared_settings import empty_pictures, few_draws, seeded

__all__ = ["empty_pictures", "few_draws", "seeded"]
