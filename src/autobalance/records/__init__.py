"""Plain records without torch: settings, results, metrics and their JSON."""

from autobalance.records.codegen import DTYPES, loss_snippet
from autobalance.records.error_table import (
    ErrorTable,
    as_counts,
    class_ranges,
    effective_counts,
    rates,
)
from autobalance.records.files import (
    RESULT,
    check_format,
    checkpoint_files,
    format_bytes,
    free_bytes,
    output_folder,
    parsed_record,
    phase_file,
    read_json,
    read_record,
    remove_parts,
    run_status,
    to_json,
    write_atomically,
    write_together,
)
from autobalance.records.label_metrics import average_precision_error
from autobalance.records.metrics import (
    Reliability,
    classification_report,
    confused_pairs,
    counts_to_dict,
    expected_calibration_error,
    reliability,
)
from autobalance.records.plain_settings import PlainSettings, recorded_kind
from autobalance.records.search_record import (
    ARM_OUTCOMES,
    Calibration,
    HeldOut,
    PathPoint,
    RacedArm,
    UpperRecord,
)
from autobalance.records.settings import Precision, Recipe, SearchSettings

__all__ = [
    "ARM_OUTCOMES",
    "DTYPES",
    "RESULT",
    "Calibration",
    "ErrorTable",
    "HeldOut",
    "PathPoint",
    "PlainSettings",
    "Precision",
    "RacedArm",
    "Recipe",
    "Reliability",
    "SearchSettings",
    "UpperRecord",
    "as_counts",
    "average_precision_error",
    "check_format",
    "checkpoint_files",
    "class_ranges",
    "classification_report",
    "confused_pairs",
    "counts_to_dict",
    "effective_counts",
    "expected_calibration_error",
    "format_bytes",
    "free_bytes",
    "loss_snippet",
    "output_folder",
    "parsed_record",
    "phase_file",
    "rates",
    "read_json",
    "read_record",
    "recorded_kind",
    "reliability",
    "remove_parts",
    "run_status",
    "to_json",
    "write_atomically",
    "write_together",
]
