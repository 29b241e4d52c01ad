"""One cell: what it is known by, what it records, and that its failure is a record too."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autobalance import InputError
from autobalance.bilevel.lower_level import LowerLevel
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.losses.published import COSINE_SCALE, NormalizedLinear
from autobalance.objectives.aggregates import BalancedError, WeightedError
from autobalance_bench.augmentations import StandardAugmentation
from autobalance_bench.comparison.cells import Cell, cells_of, objective_of, run_cell
from autobalance_bench.comparison.configuration import Configuration, read_configuration
from autobalance_bench.comparison.dataset_definitions import DatasetDefinition
from autobalance_bench.comparison.datasets import load_problem
from autobalance_bench.comparison.methods import METHODS, ExecutionOptions, Task
from autobalance_bench.comparison.running import run_cells
from autobalance_bench.comparison.store import Store
from fake_libraries import install_imbens
from toy_cells import GROUPED, IMAGES, RECIPE, SEARCH, TOY, cell, told, write_images
from toys import write_toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_toy(tmp_path_factory.mktemp("data")).parent
    write_images(folder)
    return folder


PHOTOGRAPHS = DatasetDefinition(
    name="toy", path=".", target="bird", layout="waterbirds", network="cnn", as_bytes=True
)


def test_where_photographs_are_kept_is_no_part_of_a_result() -> None:
    kept = cell(dataset=replace(PHOTOGRAPHS, store="decoded"))
    assert kept.identity() == cell(dataset=PHOTOGRAPHS).identity()


# Identity -------------------------------------------------------------------------------------

ALWAYS: list[dict[str, Any]] = [
    {"seed": 1},
    {"recipe": replace(RECIPE, lr=0.5)},
    {"dataset": replace(TOY, drop=())},
    {"dataset": replace(TOY, test_fraction=0.4)},
    {"dataset": replace(TOY, recipe={"lr": 0.5})},
    {"objectives": ("balanced_error", "worst_class_error")},
    {"dataset": replace(TOY, layout="cifar10_lt", options={"imbalance": 10})},
    {"dataset": replace(TOY, network="cnn", as_bytes=True)},
    {"dataset": replace(TOY, backbone={"path": "a.b"})},
    {"augment": {"name": "standard"}},
    {"head": "cosine"},
    {"execution": ExecutionOptions(compiled=True)},
    {"execution": ExecutionOptions(precision="bf16-mixed")},
    {"dataset": replace(PHOTOGRAPHS, allowed_broken=1)},
    {"dataset": replace(PHOTOGRAPHS, validation="published")},
]
NEVER: list[dict[str, Any]] = [
    {"data": "elsewhere"},
    {"device": "cuda"},
    {"checkpoints": "kept"},
    {"dataset": replace(TOY, family="toys", half="confirm", source="a shelf")},
]


@pytest.mark.parametrize(
    ("method", "matters", "matters_not"),
    [
        (
            "cross_entropy",
            [],
            [{"search": replace(SEARCH, lr=0.5)}, {"tuning_runs": 9}],
        ),
        (
            "vs_tuned",
            [
                {"objective": "worst_class_error"},
                {"tuning_runs": 9},
                {"search": replace(SEARCH, validation_fraction=0.3)},
            ],
            [{"search": replace(SEARCH, lr=0.5)}],
        ),
        (
            "autobalance",
            [{"objective": "worst_class_error"}, {"search": replace(SEARCH, lr=0.5)}],
            [{"tuning_runs": 9}],
        ),
    ],
)
def test_the_identity_changes_with_what_matters_only(
    method: str, matters: list[dict[str, Any]], matters_not: list[dict[str, Any]]
) -> None:
    own = cell(method=method).identity()
    assert cell(method=method).identity() == own
    for change in (*ALWAYS, *matters):
        assert cell(method=method, **change).identity() != own, change
    for change in (*NEVER, *matters_not):
        assert cell(method=method, **change).identity() == own, change


def test_the_order_of_objectives_does_not_matter() -> None:
    names = ("balanced_error", "worst_class_error")
    assert cell(objectives=names).identity() == cell(objectives=names[::-1]).identity()


def test_what_is_unknown_has_an_identity_of_its_own() -> None:
    found = {
        c.identity()
        for c in (
            cell(),
            cell(method="focal"),
            cell(method="dice"),
            cell(dataset="nonesuch"),
            cell(dataset="nothing"),
            cell(dataset="car"),
        )
    }
    assert len(found) == 6


# All of them ----------------------------------------------------------------------------------


def test_cells_go_dataset_by_dataset_and_once_per_objective_where_it_matters() -> None:
    configuration = Configuration(
        datasets=(TOY, "car"),
        methods=("cross_entropy", "autobalance", "focal"),
        seeds=(0, 7),
        objectives=("balanced_error", "cvar_error"),
        recipe=RECIPE,
    )
    cells = cells_of(configuration, "data", "cpu")
    block = [
        ("cross_entropy", None),
        ("autobalance", "balanced_error"),
        ("autobalance", "cvar_error"),
        ("focal", None),
    ]
    assert [c.key for c in cells] == [
        (name, method, aim, seed)
        for name in ("toy", "car")
        for seed in (0, 7)
        for method, aim in block
    ]
    assert {c.data for c in cells} == {"data"}
    fast = replace(configuration, precision="bf16-mixed", compiled=True)
    assert {c.execution for c in cells_of(fast, "data", "cpu")} == {
        ExecutionOptions(precision="bf16-mixed", compiled=True)
    }
    assert {c.checkpoints for c in cells_of(fast, "data", "cpu", "kept")} == {"kept"}
    assert {c.recipe for c in cells} == {RECIPE}


def test_files_of_ones_own_are_looked_for_beside_the_yaml(folder: Path, tmp_path: Path) -> None:
    write_toy(tmp_path)
    (tmp_path / "cfg.yaml").write_text(
        "datasets: [car, {name: toy, path: toy.csv, target: kind}]\nmethods: [vs]\nseeds: 1\n"
        "recipe: {epochs: 1, min_steps: 20}\n"
    )
    configuration = read_configuration(tmp_path / "cfg.yaml")
    packaged, own = cells_of(configuration, None, "cpu")
    assert (packaged.data, own.data) == (None, str(tmp_path))
    assert run_cell(own)["status"] == "finished"
    assert "Name the data folder by --data DIR" in run_cell(packaged)["reason"]
    given = cells_of(configuration, str(folder), "cpu")
    assert [c.data for c in given] == [str(folder)] * 2
    assert given[1].identity() == own.identity()  # the same comparison, wherever it lies


# Running --------------------------------------------------------------------------------------


FOR_IMAGES = ("autobalance_standard", "autobalance_trivial")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(folder: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published search does its first upper step 20 lower ones after 0.4 of all."""
    if method == "self_paced_ensemble":  # its library needs an environment of its own
        install_imbens(monkeypatch)
    dataset = IMAGES if method in FOR_IMAGES else TOY
    recipe = replace(RECIPE, min_steps=40) if "published" in method else RECIPE
    aim = "balanced_error" if METHODS[method].uses_objective else None
    record = run_cell(cell(folder, dataset=dataset, method=method, objective=aim, recipe=recipe))
    assert record["status"] == "finished", record.get("reason")
    assert (record["title"], record["kind"]) == (METHODS[method].title, METHODS[method].kind)
    assert 0.0 <= record["objectives"]["balanced_error"] <= 1.0
    assert record["training_runs"] >= 1.0
    assert record["seconds"].keys() == {"wall", "cpu"}


@pytest.mark.parametrize("method", ["cross_entropy", "autobalance", "vs_tuned", "group_dro"])
def test_every_kind_of_method_runs_with_groups_and_repeats(folder: Path, method: str) -> None:
    aims = ("worst_group_error", "balanced_error")
    aim = aims[0] if METHODS[method].uses_objective else None
    one = cell(folder, dataset=GROUPED, method=method, objective=aim, objectives=aims)
    first, second = run_cell(one), run_cell(one)
    assert first["status"] == "finished", first.get("reason")
    assert told(first) == told(second)
    assert first["objectives"].keys() == set(aims)
    assert first["report"]["group_errors"].keys() == {"north", "south"}
    worst = max(first["report"]["group_errors"].values())
    assert first["objectives"]["worst_group_error"] == pytest.approx(worst)


def test_the_record_is_that_of_the_library_called_by_hand(folder: Path, tmp_path: Path) -> None:
    record = run_cell(cell(folder, method="class_weighted", seed=3))
    problem = load_problem(TOY, 3, folder)
    loss = ParametricCrossEntropy.class_weighted(problem.train.counts())
    model = retrain(problem.network, problem.train, loss, recipe=RECIPE, seed=3, device="cpu")
    test, train = (
        (predict_logits(model, part.inputs), part.target) for part in (problem.test, problem.train)
    )
    assert record["objectives"] == {"balanced_error": BalancedError().hard(*test)}
    assert record["report"]["balanced_error"] == pytest.approx(BalancedError().hard(*test))
    wrong = train[0].argmax(1) != train[1]
    assert record["training_error"] == pytest.approx(float(wrong.double().mean()))
    assert record["sizes"] == {"train": 30, "test": 30}
    assert record["class_counts"] == [18, 8, 4]
    assert (record["dataset"], record["seed"], record["training_runs"]) == ("toy", 3, 1.0)
    store = Store(tmp_path / "cells.jsonl")
    store.append(record)  # it is one that the store takes and gives back
    assert [told(c) for c in store.cells()] == [told(record)]


def test_a_datasets_own_recipe_comes_before_the_comparisons(folder: Path) -> None:
    own = replace(TOY, recipe={"min_steps": 35})
    expected = run_cell(cell(folder, recipe=replace(RECIPE, min_steps=35)))
    found = run_cell(cell(folder, dataset=own))
    assert found["objectives"] == expected["objectives"]
    assert found["training_error"] == expected["training_error"]


def test_an_objective_over_groups_is_left_out_where_there_are_none(folder: Path) -> None:
    aims = ("worst_group_error", "balanced_error")
    record = run_cell(cell(folder, objectives=aims))
    assert record["objectives"].keys() == {"balanced_error"}
    assert run_cell(cell(folder, objectives=aims[:1]))["objectives"] == {}
    designed = run_cell(cell(folder, method="autobalance", objective=aims[0], objectives=aims))
    assert designed["status"] == "failed"
    assert "is over groups, but the data has none" in designed["reason"]


def explosive() -> nn.Module:
    raise MemoryError("too\n large")


def interrupted() -> nn.Module:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "autobalence"}, "There is no method 'autobalence'. Did you mean autobalance"),
        ({"method": "zz"}, "There is no method 'zz'. Known: cross_entropy, "),
        ({"dataset": "carr"}, "There is no dataset 'carr'. Did you mean car"),
        ({"dataset": replace(TOY, path="gone.csv", source="a shelf")}, "It comes from: a shelf."),
        ({"dataset": replace(TOY, target="sort")}, "'sort'"),
        ({"dataset": replace(TOY, network=f"{__name__}:explosive")}, "MemoryError: too large"),
        ({"objectives": ("accuracy",)}, "objective must be one of balanced_error, "),
    ],
)
def test_a_failure_is_recorded_with_its_reason(
    folder: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    one = cell(folder, **changes)
    record = run_cell(one)
    assert record["status"] == "failed"
    assert reason in record["reason"]
    assert "\n" not in record["reason"]
    assert record["identity"] == one.identity()
    Store(tmp_path / "cells.jsonl").append(record)


def test_ctrl_c_is_no_failure_of_the_cell(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell(folder, dataset=replace(TOY, network=f"{__name__}:interrupted")))


def test_threads_are_given_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    set_ = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (asked.append(n), set_(n)))
    before = torch.get_num_threads()
    run_cell(cell(folder, method="zz"), threads=2)
    assert asked == [2, before]
    assert torch.get_num_threads() == before


# Objectives by name ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("weighted_error(0)", [1, 1, 1]),
        ("weighted_error(1)", [18, 8, 2]),
        ("weighted_error(0.5)", [18**0.5, 8**0.5, 2**0.5]),
        ("weighted_error(-1)", [1 / 18, 1 / 8, 1 / 2]),
    ],
)
def test_weights_are_powers_of_the_class_counts(name: str, weights: list[float]) -> None:
    found = objective_of(name, np.array([18, 8, 2]))
    assert isinstance(found, WeightedError)
    np.testing.assert_allclose(found.weights, np.array(weights) / sum(weights))


def test_other_names_are_those_of_the_library() -> None:
    assert objective_of("balanced_error", np.array([1, 1])) == BalancedError()
    for name in ("weighted_error", "weighted_error(1.2.3)", "weighted_error()", "accuracy"):
        with pytest.raises(InputError, match="objective must be one of balanced_error"):
            objective_of(name, np.array([1, 1]))


def test_cells_can_be_sent_elsewhere() -> None:
    one = cell(dataset=GROUPED)
    twin: Cell = pickle.loads(pickle.dumps(one))
    assert twin == one
    assert twin.identity() == one.identity()


# How it is computed, and going on -------------------------------------------------------------


@pytest.mark.parametrize("method", ["ldam_drw", "head_retraining", "vs_tuned", "autobalance_plain"])
def test_networks_are_computed_as_the_comparison_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Each is compiled before it trains, has its weights in channels_last, and passes in bfloat16."""
    aim = "balanced_error" if METHODS[method].uses_objective else None
    one = cell(folder, dataset=IMAGES, method=method, objective=aim)
    compile_, compiled, kinds = torch.compile, [], set()

    def compiled_without_a_compiler(module: nn.Module, **options: Any) -> Any:
        if not options:  # Fabric compiles what was compiled once more
            [weight, *_] = [p for p in module.parameters() if p.ndim == 4] or [None]
            layout = torch.channels_last
            compiled.append(weight is None or weight.is_contiguous(memory_format=layout))
            module.register_forward_hook(lambda *run: kinds.add(run[-1].dtype))
        return compile_(module, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", compiled_without_a_compiler)
    options = ExecutionOptions(precision="bf16-mixed", channels_last=True, compiled=True)
    record = run_cell(replace(one, execution=options))
    assert record["status"] == "finished", record.get("reason")
    assert all(compiled)
    # of the final choice each network is made anew: the designed loss, its start, and the result
    assert (
        len(compiled)
        == {"ldam_drw": 1, "head_retraining": 2, "vs_tuned": 3, "autobalance_plain": 2}[method]
    )
    assert torch.bfloat16 in kinds
    simple = run_cell(one)
    assert record["objectives"]["balanced_error"] == pytest.approx(
        simple["objectives"]["balanced_error"], abs=0.35
    )


@pytest.mark.parametrize("method", ["vs_tuned", "autobalance", "head_retraining"])
def test_a_stopped_cell_goes_on_to_the_same_result(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Stopped in its last training run; what it had trained before is not trained again."""
    aim = "balanced_error" if METHODS[method].uses_objective else None
    one = cell(folder, method=method, objective=aim, checkpoints=str(tmp_path))
    expected = told(run_cell(replace(one, checkpoints=None)))
    monkeypatch.setattr("autobalance.bilevel.checkpoints.CHECKPOINT_SECONDS", 0.0)
    step, steps = LowerLevel.step, []

    def counted(self: LowerLevel, loss: Any) -> Any:
        steps.append(self.done)
        return step(self, loss)

    monkeypatch.setattr(LowerLevel, "step", counted)
    run_cells([one], Store(tmp_path / "first" / "cells.jsonl"))
    every = len(steps)
    assert one.state is not None
    assert not one.state.exists()  # nothing is left

    def interrupted(self: LowerLevel, loss: Any) -> Any:
        if len(steps) == every - 3:
            raise KeyboardInterrupt
        return counted(self, loss)

    steps.clear()
    monkeypatch.setattr(LowerLevel, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cell(one)
    steps.clear()
    monkeypatch.setattr(LowerLevel, "step", counted)
    record = run_cell(one)
    assert len(steps) == 3
    assert told(record) == expected
    assert record["seconds"]["resumed"] is True
    store = Store(tmp_path / "cells.jsonl")
    assert one.state.is_dir()  # until there is a record
    run_cells([one], store)
    assert len(steps) == 3
    assert told(store.cells()[0]) == expected
    assert not one.state.exists()


def test_a_given_validation_set_guides_what_searches_and_tunes(folder: Path) -> None:
    problem = load_problem(TOY, 0, folder)
    task = Task(
        network=problem.network,
        data=problem.train,
        validation=problem.test,
        recipe=RECIPE,
        settings=SEARCH,
        tuning_runs=2,
    )
    train, held = task.split()
    assert train is problem.train
    assert torch.equal(held.target, problem.test.target)
    for method in ("vs_tuned", "autobalance", "autobalance_short", "autobalance_head"):
        trained = METHODS[method].run(replace(task, settings=replace(SEARCH, every=3)))
        assert torch.isfinite(predict_logits(trained.model, problem.test.inputs)).all()
    with pytest.raises(InputError, match="set folds to 1"):
        METHODS["autobalance"].run(replace(task, settings=replace(SEARCH, folds=2)))


# Augmentation and bytes -----------------------------------------------------------------------

NOT_AUGMENTED = {"cross_entropy_head", "logit_adjustment_head", "autobalance_head"}


@pytest.mark.parametrize(
    "method",
    [
        "cross_entropy",
        "ldam_drw",
        "head_retraining",
        "vs_tuned",
        "autobalance_short",
        "autobalance",
    ],
)
def test_methods_of_every_kind_train_under_the_comparisons_augmentation(
    folder: Path, method: str
) -> None:
    aim = "balanced_error" if METHODS[method].uses_objective else None
    one = cell(folder, dataset=IMAGES, method=method, objective=aim)
    seen: list[str] = []

    def told_of(self: nn.Module, inputs: Any, target: Any, groups: Any = None) -> Any:
        seen.append(str(self))
        return inputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StandardAugmentation, "forward", told_of)
        record = run_cell(replace(one, augment={"name": "standard", "padding": 1, "flip": False}))
    assert record["status"] == "finished", record.get("reason")
    assert len(seen) >= RECIPE.min_steps
    assert set(seen) == {"StandardAugmentation(padding=1, flip=False)"}


@pytest.mark.parametrize("method", ["cross_entropy", "head_retraining", "autobalance", "ldam_drw"])
def test_a_cosine_head_takes_the_place_of_every_networks_own(folder: Path, method: str) -> None:
    aim = "balanced_error" if METHODS[method].uses_objective else None
    one = replace(cell(folder, method=method, objective=aim), head="cosine")
    built: list[float] = []
    original = NormalizedLinear.forward

    def told_of(self: NormalizedLinear, input: torch.Tensor) -> torch.Tensor:
        built.append(self.scale)
        return original(self, input)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NormalizedLinear, "forward", told_of)
        record = run_cell(one)
    assert record["status"] == "finished", record.get("reason")
    assert set(built) == {1.0 if method == "ldam_drw" else COSINE_SCALE}


@pytest.mark.parametrize("method", sorted(NOT_AUGMENTED))
def test_exact_heads_refuse_augmentation(folder: Path, method: str) -> None:
    aim = "balanced_error" if METHODS[method].uses_objective else None
    one = cell(folder, method=method, objective=aim, augment={"name": "standard"})
    assert "Exact heads see each feature once" in run_cell(one)["reason"]


@pytest.mark.parametrize("augment", [None, {"name": "standard"}])
def test_images_kept_as_bytes_give_the_same_result(folder: Path, augment: Any) -> None:
    definition = replace(IMAGES, as_bytes=True)
    kept = load_problem(definition, 0, folder)
    assert kept.train.inputs.dtype == torch.uint8
    for method in ("ldam_drw", "autobalance", "autobalance_shared"):
        aim = "balanced_error" if METHODS[method].uses_objective else None
        found = [
            run_cell(cell(folder, dataset=d, method=method, objective=aim, augment=augment))
            for d in (IMAGES, definition)
        ]
        assert found[1]["status"] == "finished", found[1].get("reason")
        assert found[0]["report"] == found[1]["report"]
        assert found[0]["training_error"] == found[1]["training_error"]


def test_what_augmentation_cannot_take(folder: Path) -> None:
    assert "are for images" in run_cell(cell(folder, augment={"name": "standard"}))["reason"]
    bad = cell(folder, dataset=IMAGES, augment={"name": "random", "m": 40})
    assert "m must lie in 1..29" in run_cell(bad)["reason"]
    table = cell(folder, dataset=replace(TOY, as_bytes=True, network="cnn"))
    assert "toy: as_bytes is for images of bytes" in run_cell(table)["reason"]


def test_crops_of_another_size_than_the_built_in_network_are_refused(folder: Path) -> None:
    crops = {"name": "resized_crop", "size": 6}
    reason = run_cell(cell(folder, dataset=IMAGES, augment=crops))["reason"]
    assert "augment crops to 6 x 6, but the network cnn is made for the images' own 8 x 8" in reason
    fitting = run_cell(cell(folder, dataset=IMAGES, augment={**crops, "size": 8}))
    assert fitting["status"] == "finished", fitting.get("reason")
