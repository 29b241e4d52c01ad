"""`autobalance frontier`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jsonargparse import Namespace

from autobalance._validation import InputError, TrainingDiverged, gap_bound, whole
from autobalance.cli.fit import columns, fit_record, remove_checkpoints, tell_of_identifiers
from autobalance.cli.options import DONE, FAILED, INTERRUPTED, complain, training_options
from autobalance.records import output_folder, run_status, to_json, write_together

if TYPE_CHECKING:
    from autobalance.bilevel import Baseline, Frontier, FrontierPoint
    from autobalance.posthoc import Decided
    from autobalance.sklearn import AutoBalanceClassifier

FRONTIER = ("frontier.json", "frontier.csv", "frontier.svg")
_SHOWN = ("title", "mix", "main", "gap", "constant")  # of a point or baseline, in a report


def run_frontier(options: Namespace, command: str) -> int:
    whole("seed", options.seed, least=0)
    if options.max_gap is not None:
        gap_bound("max_gap", options.max_gap)
    mixes = _mixes(options.mixes)
    if options.by == "decisions":
        _check_decisions(options)
    out = output_folder(options.out, overwrite=options.overwrite)
    recipe, settings = training_options(options)
    features, target, groups = columns(options)
    tell_of_identifiers(features)
    import warnings

    from autobalance.bilevel import MIXES
    from autobalance.cli.terminal import LiveProgress, print_frontier
    from autobalance.sklearn import AutoBalanceClassifier

    begun = time.perf_counter()
    found: Frontier | None = None
    others: list[Baseline] = []
    with LiveProgress() as live:
        title = "frontier"
        classifier = AutoBalanceClassifier(
            options.main,
            recipe=recipe,
            settings=settings,
            missing_groups=options.missing_groups,
            device=options.device,
            random_state=options.seed,
            progress=lambda p: live.update(title, p),
        )
        data = {"X": features, "y": target, "sensitive_features": groups}
        if options.by == "decisions":
            return _decisions(classifier, data, out, command, begun, options)
        try:
            with warnings.catch_warnings():
                # said below, with the groups' names
                warnings.filterwarnings("ignore", "The held-out data lacks", UserWarning)
                found = classifier.frontier(**data, gap=options.gap, mixes=mixes or MIXES)
            title = "baselines"
            others = classifier.baselines(found, **data)
        except (TrainingDiverged, KeyboardInterrupt) as error:
            found = found or getattr(error, "partial", None)
            return _frontier_stopped(error, found, len(mixes or MIXES), out)
        _write_frontier(found, others, out, "finished")
        picked = None
        for line in _not_held_out(found, classifier):
            print(f"autobalance: {line}", file=sys.stderr)
        _tell_of_few(found.settings, classifier, decided=False)
        if options.max_gap is not None:
            try:
                picked = found.pick(gap=options.max_gap)
            except InputError:
                print_frontier(found, others)
                print(f"Frontier: {out / FRONTIER[0]}")
                raise
            title = "frontier"
            try:
                classifier.fit_point(found, picked, **data)
            except (TrainingDiverged, KeyboardInterrupt) as error:
                said = error if isinstance(error, TrainingDiverged) else "Interrupted."
                kept = f"Kept in {out}: the frontier. The network picked is not trained to its end."
                code = FAILED if isinstance(error, TrainingDiverged) else INTERRUPTED
                return complain(f"{said} {kept}", code)
    print_frontier(found, others, picked, options.max_gap)
    if picked is not None:
        _save_picked(classifier, found, picked, others, out, command, begun, options)
    print(f"Frontier: {out / FRONTIER[0]}\nPicture: {out / FRONTIER[2]}")
    return DONE


def _check_decisions(options: Namespace) -> None:
    """Decisions are for two objectives and one gap, and for groups that are all known."""
    from autobalance.posthoc import MAINS

    for name, possible in (("main", MAINS), ("gap", ("deo",)), ("missing_groups", ("refused",))):
        given = getattr(options, name)
        if given not in possible:
            raise InputError(
                f"--by decisions is for --{name.replace('_', '-')} {' or '.join(possible)}; "
                f"got {given}. Use --by losses."
            )
    if options.mixes is not None:
        raise InputError(
            "--mixes are for --by losses; decisions have bounds, and choose ten of them."
        )


def _decisions(
    classifier: AutoBalanceClassifier,
    data: dict[str, Any],
    out: Path,
    command: str,
    begun: float,
    options: Namespace,
) -> int:
    """The frontier of decisions: one network, and no training for any of the points."""
    from autobalance.cli.terminal import print_decisions

    try:
        learned = classifier.cell_posterior(**data, main=options.main)
    except TrainingDiverged as error:
        return complain(f"{error} No point was found yet.", FAILED)
    except KeyboardInterrupt:
        return complain("Interrupted. No point was found yet.", INTERRUPTED)
    points, plain = learned.frontier(), learned.most_probable()
    kept = None if options.max_gap is None else learned.within(options.max_gap)
    record = {
        "format": "autobalance-decisions",
        "version": 1,
        "status": "finished",
        "by": "bound",
        "main": options.main,
        "gap": options.gap,
        "points": [_point(p, options.main, "bound") for p in points],
        "baselines": [_point(plain, options.main, "title", "Cross-entropy")],
        "training_runs": learned.training_runs,
        "settings": learned.settings,
        "seed": learned.seed,
        "seconds": learned.seconds,
    }
    _write_record(record, out)
    _tell_of_few(learned.settings, classifier, decided=True)
    print_decisions(points, plain, options.main, kept, options.max_gap)
    if kept is not None:
        from autobalance.cli.run_folder import save_run
        from autobalance.report import REPORT

        classifier.fit_decision(learned, kept)
        run = fit_record(classifier, command, "finished", begun, options)
        run["kind"] = "frontier"
        run["objective"] = kept.objective
        taken = _point(kept, options.main, "bound")
        shown = sorted([taken, *record["points"]], key=lambda p: -p["gap"])
        run["frontier"] = {
            **{key: record[key] for key in ("by", "main", "gap", "baselines")},
            "points": shown,
            "bound": taken["bound"],
            "kept": taken,
        }
        save_run(out, classifier, run, target=options.target)
        print(f"RUN of the decision picked, which predicts without groups: {out}")
        print(f"Report: {out / REPORT}")
    print(f"Frontier: {out / FRONTIER[0]}\nPicture: {out / FRONTIER[2]}")
    return DONE


def _point(decided: Decided, main: str, by: str, name: str | None = None) -> dict[str, Any]:
    held = decided.held_out
    return {
        by: held.known_deo if name is None else name,
        "main": getattr(held, main),
        "gap": held.known_deo,
        "worst_cell": held.worst_class_and_group_error,
        "constant": bool(np.nanmax(held.class_errors) > 1 - 1e-9),
        "drawn_from": len(decided.network.shares),
    }


def _mixes(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"mixes are numbers with commas between, 0,0.3,0.6; got {text!r}."
        ) from None


def _write_frontier(
    found: Frontier,
    others: list[Baseline],
    out: Path,
    status: str,
) -> None:
    """The three files together; a RUN that is in the folder belongs to an earlier frontier."""
    baselines = [vars(b) for b in others]
    _write_record({"status": status, **found.to_dict(), "baselines": baselines}, out)


def _write_record(record: dict[str, Any], out: Path) -> None:
    from autobalance.cli.run_folder import LOSS, MODEL, WEIGHTS
    from autobalance.records import RESULT
    from autobalance.report import EVALUATION, REPORT, SAMPLES, as_csv, as_svg

    contents = (to_json(record, indent=1), as_csv(record), as_svg(record))
    write_together(out, {n: c.encode() for n, c in zip(FRONTIER, contents, strict=True)})
    for name in (EVALUATION, LOSS, MODEL, REPORT, RESULT, SAMPLES, WEIGHTS):
        (out / name).unlink(missing_ok=True)
    remove_checkpoints(out)


def _save_picked(
    classifier: AutoBalanceClassifier,
    found: Frontier,
    picked: FrontierPoint,
    others: list[Baseline],
    out: Path,
    command: str,
    begun: float,
    options: Namespace,
) -> None:
    from autobalance.cli.run_folder import save_run
    from autobalance.report import REPORT

    record = fit_record(classifier, command, "finished", begun, options)
    record["kind"] = "frontier"
    record["objective"] = classifier.result_.settings["objective"]
    points = [{k: v for k, v in vars(p).items() if k in _SHOWN} for p in found.points]
    record["frontier"] = {
        "mix": picked.mix,
        found.main: picked.main,
        found.gap: picked.gap,
        "main": found.main,
        "gap": found.gap,
        "points": points,
        "baselines": [{k: v for k, v in vars(b).items() if k in _SHOWN} for b in others],
    }
    save_run(out, classifier, record, target=options.target)
    print(f"RUN of mix {picked.mix:g}, its network trained on all data: {out}")
    print(f"Report: {out / REPORT}")


def _frontier_stopped(error: BaseException, found: Frontier | None, points: int, out: Path) -> int:
    """Keep the points so far, unless a finished frontier is there; say so."""
    kept = "No point was found yet."
    if found is not None and found.points:
        old = out / FRONTIER[0]
        finished = run_status(out) == "finished"
        if old.is_file():
            finished |= '"status": "finished"' in old.read_text(encoding="utf-8")[:200]
        if finished:
            kept = f"What was finished in {out} before is untouched."
        else:
            status = "diverged" if isinstance(error, TrainingDiverged) else "interrupted"
            _write_frontier(found, [], out, status)
            kept = (
                f"Kept in {out}: {len(found.points)} of {points} points. A frontier is not continued; fewer "
                "--mixes take less time."
            )
    if isinstance(error, TrainingDiverged):
        return complain(f"{error} {kept}", FAILED)
    return complain(f"Interrupted. {kept}", INTERRUPTED)


def _tell_of_few(
    settings: dict[str, Any], classifier: AutoBalanceClassifier, *, decided: bool
) -> None:
    """Where one example moves the gap by points."""
    from autobalance.report import few_in_a_cell

    assert classifier.groups_ is not None
    counts = np.asarray(settings["validation_counts"], dtype=float)
    classes, groups = (
        [str(name) for name in names] for names in (classifier.classes_, classifier.groups_)
    )
    said = few_in_a_cell(counts, classes, groups, decided=decided)
    if said is not None:
        print(f"autobalance: {said}", file=sys.stderr)


def _not_held_out(found: Frontier, classifier: AutoBalanceClassifier) -> list[str]:
    """Groups, and classes within groups, of which nobody is held out: the gap cannot see them."""
    assert classifier.groups_ is not None
    lines = []
    counts = found.settings["validation_counts"]
    for group, row in zip(classifier.groups_, counts, strict=True):
        absent = [str(c) for c, n in zip(classifier.classes_, row, strict=True) if n == 0]
        if absent:
            whom = "nobody" if len(absent) == len(row) else f"nobody of class {', '.join(absent)}"
            lines.append(
                f"the held-out data has {whom} of group {group}, whom the gap leaves out; merge small "
                "groups, or add data"
            )
    return lines
