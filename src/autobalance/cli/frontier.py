"""`autobalance frontier`."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from jsonargparse import Namespace
from safetensors import SafetensorError

from autobalance._validation import InputError, TrainingDiverged, gap_bound, path_of, shown, whole
from autobalance.bilevel import MIXES, Baseline, Frontier, FrontierPoint
from autobalance.cli.fit import fit_record, read_columns, remove_checkpoints
from autobalance.cli.options import DONE, complain, complain_of_stop, training_options
from autobalance.cli.run_folder import LOSS, MODEL, WEIGHTS, save_run
from autobalance.cli.terminal import (
    LiveProgress,
    print_frontier,
    print_table_warnings,
)
from autobalance.posthoc import MAINS, CellPosterior, FairDecision
from autobalance.records import (
    RESULT,
    output_folder,
    read_json,
    run_status,
    to_json,
    write_together,
)
from autobalance.report import EVALUATION, REPORT, SAMPLES, as_csv, as_svg, few_in_a_cell
from autobalance.sklearn import AutoBalanceClassifier

FRONTIER = ("frontier.json", "frontier.csv", "frontier.svg")
POSTERIOR = "posterior.safetensors"
"""What a sweep of decisions learned, to pick from later without training again."""
_POINT_FIELDS = (
    "title",
    "mix",
    "main",
    "gap",
    "constant",
    "undefined",
)  # of a point or baseline, in a report


def run_frontier(options: Namespace, command: str) -> int:
    """Sweep the trade-off of an error and a gap between groups; returns the exit code.

    With a bound, a finished sweep that is in the folder already is picked from, and not swept again.
    """
    whole("seed", options.seed, least=0)
    if options.max_gap is not None:
        gap_bound("max_gap", options.max_gap)
    _read_mixes(options.mixes)
    if options.by == "decisions":
        _check_decisions(options)
    training_options(options)
    kept = _finished_sweep(options)
    out = output_folder(options.out, overwrite=options.overwrite or kept is not None)
    features, target, groups = read_columns(options)
    data = {"X": features, "y": target, "sensitive_features": groups}
    started = time.perf_counter()
    run = _sweep_decisions if options.by == "decisions" else _sweep_losses
    with LiveProgress() as live, print_table_warnings():
        recipe, settings = training_options(options)
        classifier = AutoBalanceClassifier(
            options.main,
            recipe=recipe,
            settings=settings,
            missing_groups=options.missing_groups,
            device=options.device,
            random_state=options.seed,
            # Only the baselines are trained one beside the other.
            progress=lambda p: live.update("baselines" if p.phase == "choose" else "frontier", p),
        )
        return run(classifier, data, out, command, started, options, kept)


def _sweep_losses(
    classifier: AutoBalanceClassifier,
    data: dict[str, Any],
    out: Path,
    command: str,
    started: float,
    options: Namespace,
    kept: dict[str, Any] | None,
) -> int:
    """The frontier of losses: one search that goes on from mix to mix, and a training of what is picked."""
    swept: Frontier | None = None
    try:
        if kept is None:
            swept, baselines = _train_losses(classifier, data, options, out)
            record = _frontier_record(swept, baselines, "finished") | {"asked": _asked(options)}
            _write_record(record, out)
            _warn_of_few(swept.settings, classifier, decided=False, absent=True)
        else:
            record, swept = kept, Frontier.from_dict(kept)
            baselines = [Baseline(**each) for each in kept["baselines"]]
    except _Stopped as stopped:
        return stopped.code
    if options.max_gap is None:
        print_frontier(record)
        return _name_files(out)
    picked = _pick(swept, record, options.max_gap, out)
    try:
        classifier.fit_point(swept, picked, **data)
    except (TrainingDiverged, KeyboardInterrupt) as error:
        state = f"Kept in {out}: the frontier. The network picked is not trained to its end."
        return complain_of_stop(error, state)
    if kept is not None:
        _warn_of_few(swept.settings, classifier, decided=False, absent=True)
    record = {**record, "picked": _select_fields(picked)}
    print_frontier(record, options.max_gap)
    run = fit_record(classifier, command, "finished", started, options)
    run |= _picked_record(classifier.result_.settings["objective"], swept, picked, baselines)
    save_run(out, classifier, run, target=options.target)
    _write_record(record, out, keep_run=True)
    print(f"RUN of mix {picked.mix:g}, its network trained on all data: {out}")
    print(f"Report: {out / REPORT}")
    return _name_files(out)


class _Stopped(Exception):
    """A sweep was interrupted or diverged, and what remains of it was told."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _train_losses(
    classifier: AutoBalanceClassifier, data: dict[str, Any], options: Namespace, out: Path
) -> tuple[Frontier, list[Baseline]]:
    """The sweep, and what to compare it with."""
    mixes, swept = _read_mixes(options.mixes) or MIXES, None
    try:
        with warnings.catch_warnings():
            # It is told later, with the groups' names.
            warnings.filterwarnings("ignore", "The held-out data lacks", UserWarning)
            swept = classifier.frontier(**data, gap=options.gap, mixes=mixes)
        return swept, classifier.baselines(swept, **data)
    except (TrainingDiverged, KeyboardInterrupt) as error:
        swept = swept or getattr(error, "partial", None)
        raise _Stopped(_report_stop(error, swept, len(mixes), out)) from None


def _asked(options: Namespace) -> dict[str, Any]:
    """What a sweep is of; a bound can be picked from another's sweep where it is the same."""
    recipe, settings = training_options(options)
    return {
        "table": hashlib.sha256(Path(options.table).expanduser().read_bytes()).hexdigest(),
        "target": options.target,
        "id": options.id,
        "groups": options.groups,
        "missing_groups": options.missing_groups,
        "by": options.by,
        "main": options.main,
        "gap": options.gap,
        "mixes": _read_mixes(options.mixes),
        "seed": options.seed,
        "recipe": None if recipe is None else recipe.to_dict(),
        "search": settings.to_dict(),
    }


def _finished_sweep(options: Namespace) -> dict[str, Any] | None:
    """The record of a finished sweep in the folder, to pick from; None where it is to be swept.

    Raises
    ------
    InputError
        If the sweep that is there was of other data or options.
    """
    path = path_of("The output", options.out) / FRONTIER[0]
    if options.max_gap is None or options.overwrite or not path.is_file():
        return None
    record = read_json(path)
    then = record.get("asked")
    if record.get("status") != "finished" or not isinstance(then, dict):
        return None
    if not Path(options.table).expanduser().is_file():
        return None  # reading the table says so
    now = json.loads(to_json(_asked(options)))
    other = [name for name in now if then.get(name) != now[name]]
    if not other:
        return record
    name = other[0]
    what = f"--{name.replace('_', '-')} was {shown(then.get(name))}"
    if name in ("table", "recipe", "search"):
        what = {"table": "the table had other contents"}.get(name, f"--{name} was different")
    raise InputError(
        f"{path.parent} holds a sweep of something else: {what}. Repeat its options to pick from it, give "
        "another --out, or add --overwrite to sweep anew."
    )


def _check_decisions(options: Namespace) -> None:
    """Decisions are for two objectives and one gap, and for groups that are all known."""
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


def _pick(swept: Frontier, record: dict[str, Any], bound: float, out: Path) -> FrontierPoint:
    """The point for a bound; where none keeps it, the frontier is shown before that is said."""
    try:
        return swept.pick(gap=bound)
    except InputError:
        print_frontier(record)
        print(f"Frontier: {out / FRONTIER[0]}")
        raise


def _sweep_decisions(
    classifier: AutoBalanceClassifier,
    data: dict[str, Any],
    out: Path,
    command: str,
    started: float,
    options: Namespace,
    kept: dict[str, Any] | None,
) -> int:
    """The frontier of decisions: one network, and no training for any of the points."""
    if kept is None:
        try:
            posterior = classifier.cell_posterior(**data, main=options.main)
        except (TrainingDiverged, KeyboardInterrupt) as error:
            return complain_of_stop(error, "No point was found yet.")
        record = _decisions_record(posterior, options)
        _write_record(record, out, {POSTERIOR: safetensors.torch.save(posterior.state())})
    else:
        posterior, record = _kept_posterior(classifier, data, out, kept), kept
    _warn_of_few(posterior.settings, classifier, decided=True, absent=True)
    if options.max_gap is None:
        print_frontier(record)
        return _name_files(out)
    picked = posterior.within(options.max_gap)
    taken = _point_record(picked, options.main, "bound")
    record = {**record, "picked": taken}
    print_frontier(record, options.max_gap)
    classifier.fit_decision(posterior, picked)
    run = fit_record(classifier, command, "finished", started, options)
    run |= {"kind": "frontier", "objective": picked.objective}
    run["rules"] = {
        "shares": picked.network.shares.tolist(),
        "prices": picked.network.weights.tolist(),
    }
    run["frontier"] = {
        **{key: record[key] for key in ("by", "main", "gap", "baselines")},
        "points": sorted([taken, *record["points"]], key=lambda p: -p["bound"]),
        "bound": taken["bound"],
        "kept": taken,
    }
    save_run(out, classifier, run, target=options.target)
    _write_record(record, out, keep_run=True)
    print(f"RUN of the decision picked, which predicts without groups: {out}")
    print(f"Report: {out / REPORT}")
    return _name_files(out)


def _decisions_record(posterior: CellPosterior, options: Namespace) -> dict[str, Any]:
    return {
        "format": "autobalance-decisions",
        "version": 1,
        "status": "finished",
        "by": "bound",
        "main": options.main,
        "gap": options.gap,
        "points": [_point_record(p, options.main, "bound") for p in posterior.frontier()],
        "baselines": [
            _point_record(posterior.most_probable(), options.main, "title", "Cross-entropy")
        ],
        "training_runs": posterior.training_runs,
        "settings": posterior.settings,
        "seed": posterior.seed,
        "seconds": posterior.seconds,
        "asked": _asked(options),
    }


def _kept_posterior(
    classifier: AutoBalanceClassifier, data: dict[str, Any], out: Path, record: dict[str, Any]
) -> CellPosterior:
    """What the sweep in the folder learned."""
    try:
        state = safetensors.torch.load((out / POSTERIOR).read_bytes())
        return classifier.restore_posterior(state, record, **data)
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"The sweep in {out} cannot be picked from, for {POSTERIOR} is absent or altered ({error}). Add "
            "--overwrite to sweep anew."
        ) from None


def _name_files(out: Path) -> int:
    print(f"Frontier: {out / FRONTIER[0]}\nPicture: {out / FRONTIER[2]}")
    return DONE


def _point_record(
    decision: FairDecision, main: str, by: str, name: str | None = None
) -> dict[str, Any]:
    held_out = decision.held_out
    reason = held_out.undefined("deo")
    return {
        # The name of a point is the gap over the cells that have examples, which its bound was on.
        by: held_out.known_deo if name is None else name,
        "main": getattr(held_out, main),
        "gap": held_out.deo,
        **({} if reason is None else {"undefined": {"gap": reason}}),
        "worst_cell": held_out.worst_class_and_group_error,
        "constant": bool(np.nanmax(held_out.class_errors) > 1 - 1e-9),
        "drawn_from": len(decision.network.shares),
    }


def _read_mixes(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"mixes are numbers with commas between, 0,0.3,0.6; got {text!r}."
        ) from None


def _frontier_record(swept: Frontier, baselines: list[Baseline], status: str) -> dict[str, Any]:
    return {"status": status, **swept.to_dict(), "baselines": [b.to_dict() for b in baselines]}


def _write_record(
    record: dict[str, Any],
    out: Path,
    more: Mapping[str, bytes] | None = None,
    *,
    keep_run: bool = False,
) -> None:
    """The files of a frontier together; a RUN of an earlier one goes, unless it is this one's."""
    contents = (to_json(record, indent=1), as_csv(record), as_svg(record))
    files = {n: c.encode() for n, c in zip(FRONTIER, contents, strict=True)}
    write_together(out, {**files, **(more or {})})
    if keep_run:
        return
    stale = {EVALUATION, LOSS, MODEL, POSTERIOR, REPORT, RESULT, SAMPLES, WEIGHTS}
    for name in stale - (more or {}).keys():
        (out / name).unlink(missing_ok=True)
    remove_checkpoints(out)


def _picked_record(
    objective: str, swept: Frontier, picked: FrontierPoint, baselines: list[Baseline]
) -> dict[str, Any]:
    """What the record of a fit has otherwise where the fit is a frontier's point."""
    record: dict[str, Any] = {"mix": picked.mix, swept.main: picked.main, swept.gap: picked.gap}
    record |= {"main": swept.main, "gap": swept.gap}
    record["points"] = [_select_fields(p) for p in swept.points]
    record["baselines"] = [_select_fields(b) for b in baselines]
    return {"kind": "frontier", "objective": objective, "frontier": record}


def _select_fields(point: FrontierPoint | Baseline) -> dict[str, Any]:
    return {key: value for key, value in point.to_dict().items() if key in _POINT_FIELDS}


def _report_stop(error: BaseException, swept: Frontier | None, points: int, out: Path) -> int:
    """Keep the points so far, unless a finished frontier is there; say so."""
    state = "No point was found yet."
    if swept is not None and swept.points:
        old = out / FRONTIER[0]
        finished = run_status(out) == "finished"
        if old.is_file():
            finished |= '"status": "finished"' in old.read_text(encoding="utf-8")[:200]
        if finished:
            state = f"What was finished in {out} before is untouched."
        else:
            status = "diverged" if isinstance(error, TrainingDiverged) else "interrupted"
            _write_record(_frontier_record(swept, [], status), out)
            state = (
                f"Kept in {out}: {len(swept.points)} of {points} points. A frontier is not continued; fewer "
                "--mixes take less time."
            )
    return complain_of_stop(error, state)


def _warn_of_few(
    settings: dict[str, Any],
    classifier: AutoBalanceClassifier,
    *,
    decided: bool,
    absent: bool = False,
) -> None:
    """Tell where the gap cannot see anybody, and where one example moves it by points."""
    assert classifier.groups_ is not None
    counts = np.asarray(settings["validation_counts"], dtype=float)
    classes, groups = [str(c) for c in classifier.classes_], classifier.groups_
    for group, row in zip(groups, counts, strict=True) if absent else ():
        missing = [c for c, n in zip(classes, row, strict=True) if n == 0]
        if missing:
            whom, so = (
                f"nobody of class {', '.join(missing)}",
                "so a gap between groups is not defined",
            )
            if len(missing) == len(row):
                whom, so = "nobody", "whom the gap leaves out"
            complain(
                f"the held-out data has {whom} of group {group}, {so}; merge small groups, or add data"
            )
    few = few_in_a_cell(counts, classes, groups, decided=decided)
    if few is not None:
        complain(few)
