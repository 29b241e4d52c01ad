"""Plain records without torch: settings, results, metrics and their JSON."""

from autobalance.records.codegen import DTYPES, loss_snippet
from autobalance.records.files import (
    RESULT,
    check_format,
    checkpoint_files,
    format_bytes,
    free_bytes,
    output_folder,
    parsed_record,
    read_json,
    read_record,
    run_status,
    to_json,
    write_atomically,
    write_together,
)
from autobalance.records.metrics import (
    HeldOut,
    Reliability,
    class_ranges,
    classification_report,
    confused_pairs,
    expected_calibration_error,
    reliability,
)
from autobalance.records.settings import Precision, Recipe, SearchSettings

__all__ = [
    "DTYPES",
    "HeldOut",
    "Precision",
    "RESULT",
    "Recipe",
    "Reliability",
    "SearchSettings",
    "check_format",
    "checkpoint_files",
    "class_ranges",
    "classification_report",
    "confused_pairs",
    "expected_calibration_error",
    "format_bytes",
    "free_bytes",
    "loss_snippet",
    "output_folder",
    "parsed_record",
    "read_json",
    "read_record",
    "reliability",
    "run_status",
    "to_json",
    "write_atomically",
    "write_together",
]
