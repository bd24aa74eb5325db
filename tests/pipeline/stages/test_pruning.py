"""The removal stage with criteria that look at images, with reconstruction, and with measured sensitivity."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cxr_compress.data import PHANTOM_FINDINGS, write_phantom
from cxr_compress.keras2 import keras
from cxr_compress.models import tiny_chexnet
from cxr_compress.models.files import load_model, save_model
from cxr_compress.models.original import read_original
from cxr_compress.pipeline import run_recipe
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.data import load_run_data
from cxr_compress.pipeline.run import run_stages, take_folder
from cxr_compress.pipeline.stages import remove_filters, stages_before
from cxr_compress.pipeline.stages.train import Recover
from cxr_compress.pipeline.store import StageStore
from cxr_compress.recipe import make_recipe
from cxr_compress.structured import (
    ChannelPlan,
    Sensitivity,
    analyze_channels,
    measure_cost,
    remove_channels,
    score_channels,
)
from cxr_compress.structured.criteria.base import CRITERIA
from cxr_compress.structured.sensitivity import CurveCache
from cxr_compress.train import WeightedBce
from tests.nets import conv_bn, enliven

RECIPE = make_recipe(
    "tiny_chexnet",
    {
        "dataset": "phantom",
        "force": True,  # hardly trained, it is no better than chance, which a run refuses
        **{"match": "position", "preset": "imagenet_torch"},  # of a model whose file says nothing
        "input_size": 32,
        "scope": "local",
        "scoring_images": 32,
        "sensitivity_images": 8,
        "reconstruct": False,
        "reconstruction_images": 24,
        "recalibration_images": 32,
    },
)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, n_train=120, n_test=30, size=64)
    return folder


@pytest.fixture(scope="module")
def data(phantom):
    return load_run_data(RECIPE, phantom, lambda split, done, total: None)


@pytest.fixture(scope="module")
def chexnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "chexnet.keras"
    save_model(enliven(tiny_chexnet(len(PHANTOM_FINDINGS), (32, 32, 3))), path)
    return path


@pytest.fixture(scope="module")
def base_file(tmp_path_factory):
    """image(32 px) -> stem(16) -> a(16) -> b(24) -> c(16) -> GAP -> logits(5), each with BN and ReLU."""
    image = x = keras.Input((32, 32, 3), name="image")
    for name, filters in (("stem", 16), ("a", 16), ("b", 24), ("c", 16)):
        x = conv_bn(keras.layers.AveragePooling2D()(x), filters, name)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(len(PHANTOM_FINDINGS), name="logits")(x))
    path = tmp_path_factory.mktemp("original") / "small.keras"
    save_model(enliven(model), path)
    return path


def run(folder, data, base_file, **changes):
    """The stages up to the repaired model, as a run makes them: the folder's facts, plan, models and progress."""
    log: list[str] = []
    store = StageStore(folder, log.append)
    original = read_original(base_file, preset="imagenet_torch")
    made = RunContext(RECIPE.with_values(**changes), data, "digest", store, log.append, original=original)
    take_folder(made)
    state = run_stages(made, stages_before(Recover))
    facts = {**state.made["select"].facts, **state.made["repair"].facts}
    return facts, state.plan, load_model(state.model.keras_file), log


def test_pruned_by_taylor_scores_with_labels_and_meets_the_budget(data, chexnet, tmp_path):
    facts, plan, pruned, _ = run(tmp_path, data, chexnet, criterion="taylor")
    assert measure_cost(pruned) == plan.after
    assert plan.after.macs <= 0.5 * plan.before.macs
    assert facts["steps"] == [facts["after"]]
    assert "reconstruction" not in facts


@pytest.mark.parametrize("criterion", CRITERIA)
def test_pruned_by_every_criterion_keeps_the_filters_that_it_scores_highest(criterion, data, base_file, tmp_path):
    _, plan, _, _ = run(tmp_path, data, base_file, criterion=criterion)
    images, labels = data.sample_labeled(32, RECIPE.run.seed)
    model = load_model(base_file)
    scores = score_channels(
        model,
        analyze_channels(model),
        criterion=criterion,
        batches=[(next(data.batches(images)), labels)],
        loss=WeightedBce(np.ones(len(PHANTOM_FINDINGS))),  # its file names no weights, so it is taken to have had none
        seed=RECIPE.run.seed,
    )
    assert len(plan.kept) == 4
    for name, kept in plan.kept.items():
        assert set(kept) == set(np.argsort(scores[name], kind="stable")[-len(kept) :].tolist())


def test_pruned_by_lasso_with_reconstruction_lessens_the_error(data, chexnet, tmp_path):
    facts, plan, pruned, _ = run(tmp_path, data, chexnet, criterion="lasso", reconstruct=True)
    assert measure_cost(pruned) == plan.after
    repaired = facts["reconstruction"]
    assert repaired["images"] == 24
    assert repaired["images_with_copies"] > 48
    assert repaired["layers"] > 5
    assert repaired["error_after"] < 0.8 * repaired["error_before"]
    plain = remove_channels(load_model(chexnet), plan).get_layer("logits").get_weights()[0]
    assert not np.allclose(pruned.get_layer("logits").get_weights()[0], plain), "the readers were refitted"


def test_pruned_in_steps_reconstructs_once_from_the_original_model(data, base_file, tmp_path, monkeypatch):
    """The refit must start from the original model's statistics, not from those re-estimated between the steps."""
    seen = []
    refit = remove_filters.reconstruct_consumers

    def watched(pruned, model, plan, *arguments, **options):
        fresh = remove_channels(model, plan).get_weights()
        seen.append(all(np.array_equal(a, b) for a, b in zip(pruned.get_weights(), fresh, strict=True)))
        return refit(pruned, model, plan, *arguments, **options)

    monkeypatch.setattr(remove_filters, "reconstruct_consumers", watched)
    facts, plan, _, _ = run(tmp_path, data, base_file, removal_steps=2, reconstruct=True)
    assert seen == [True]
    assert len(facts["steps"]) == 2
    assert facts["steps"][0]["macs"] > facts["steps"][1]["macs"] == plan.after.macs


def test_pruned_by_sensitivity_stopped_on_the_way_goes_on_and_gives_the_same_plan(
    data, base_file, tmp_path, monkeypatch
):
    whole = run(tmp_path / "whole", data, base_file, scope="sensitivity")
    write, written = CurveCache.add, []

    def stopping(self, *arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(arguments[0])
        write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CurveCache, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", data, base_file, scope="sensitivity")
    kept = Sensitivity.from_json((tmp_path / "cut" / "sensitivity.json").read_text())
    assert list(kept.curves) == written
    _, plan, _, log = run(tmp_path / "cut", data, base_file, scope="sensitivity")
    assert "sensitivity: 3 groups measured before, kept" in log
    assert plan == whole[1]
    measured = Sensitivity.from_json((tmp_path / "cut" / "sensitivity.json").read_text())
    assert set(measured.curves) == set(analyze_channels(load_model(base_file)).groups)
    # Another budget needs another plan, and no new measurement.
    again = run(tmp_path / "cut", data, base_file, scope="sensitivity", target_macs=0.7)
    assert f"sensitivity: {len(measured.curves)} groups measured before, kept" in again[3]
    assert again[1].after.macs > plan.after.macs


@pytest.mark.parametrize("scope", ["local", "latency"])
def test_pruned_with_whole_layers_measures_them_and_delivers_a_model_without(scope, data, chexnet, tmp_path):
    """tiny_chexnet has dense layers; at a quarter of its MACs some of them go, and the refit reads what is left."""
    _, plan, pruned, _ = run(
        tmp_path, data, chexnet, scope=scope, remove_layers=True, target_macs=0.25, reconstruct=True, round_to=4
    )
    measured = Sensitivity.from_json((tmp_path / "sensitivity.json").read_text())
    blocks = analyze_channels(load_model(chexnet)).blocks
    assert set(measured.blocks) == set(blocks)
    # The same share of every group asks for no curve.
    assert all(bool(curve.errors) == (scope == "latency") for curve in measured.curves.values())
    gone = [name for name, kept in plan.kept.items() if not kept]
    assert gone
    assert not {block for name in gone if name in blocks for block in blocks[name].layers} & {
        layer.name for layer in pruned.layers
    }
    assert measure_cost(pruned).macs == plan.after.macs <= 0.25 * plan.before.macs
    assert (plan.after.latency_ms is not None) == (scope == "latency")


def test_pruned_by_sensitivity_in_steps_measures_every_model(data, base_file, tmp_path):
    run(tmp_path, data, base_file, scope="sensitivity", removal_steps=2, max_removed_fraction=0.5)
    first, second = (
        Sensitivity.from_json((tmp_path / name).read_text()) for name in ("sensitivity.json", "sensitivity_step2.json")
    )
    assert first.key != second.key
    assert sum(curve.channels for curve in first.curves.values()) > sum(c.channels for c in second.curves.values())


def test_pruned_overrides_and_floors_hold(data, base_file, tmp_path):
    model = load_model(base_file)
    groups = analyze_channels(model).groups
    name = next(iter(groups))
    _, free, _, _ = run(tmp_path, data, base_file)
    assert name in free.kept
    assert min(len(kept) for kept in free.kept.values()) < 12
    _, held, _, _ = run(tmp_path, data, base_file, overrides={".*": 0.75, name: 0.0}, min_channels=12, target_macs=0.8)
    assert name not in held.kept
    assert min(len(kept) for kept in held.kept.values()) == 12


def test_pruned_is_done_again_exactly_when_a_field_decides_it(data, base_file, tmp_path):
    stages = {"select: started", "remove: started", "repair: started"}
    assert stages <= set(run(tmp_path, data, base_file)[3])
    # What this recipe does not do cannot change its result.
    unused = {"scoring_images": 16, "reconstruction_images": 16, "sensitivity_images": 16, "quant_type": "none"}
    assert not stages & set(run(tmp_path, data, base_file, **unused)[3])
    again = set(run(tmp_path, data, base_file, recalibration_images=24)[3])
    assert again & stages == {"repair: started"}, "the plan does not depend on it"
    assert stages <= set(run(tmp_path, data, base_file, min_channels=8)[3])


@pytest.mark.parametrize(
    "changes",
    [
        {"min_channels": 2},
        {"normalizer": "none"},
        {"group_reduction": "max"},
        {"allow_inexact": True},
        {"overrides": {"a": 0.5, ".*": 0.7}},
        {"criterion": "apoz"},
        {"scope": "sensitivity"},
        {"scope": "latency"},
        {"remove_layers": True},
    ],
)
def test_choosing_fields_change_with_every_choice(changes):
    assert remove_filters.choosing_fields(RECIPE.with_values(**changes)) != remove_filters.choosing_fields(RECIPE)


@pytest.mark.parametrize("changes", [{"reconstruct": True}, {"from_scratch": True}, {"recalibration_images": 17}])
def test_repair_fields_change_with_every_choice(changes):
    assert remove_filters.repair_fields(RECIPE.with_values(**changes)) != remove_filters.repair_fields(RECIPE)
    assert remove_filters.choosing_fields(RECIPE.with_values(**changes)) == remove_filters.choosing_fields(RECIPE)


@pytest.mark.parametrize(
    ("where", "field"),
    [
        ({"criterion": "taylor"}, "scoring_images"),
        ({"scope": "sensitivity"}, "sensitivity_images"),
        ({"scope": "latency"}, "sensitivity_images"),
        ({"remove_layers": True}, "sensitivity_images"),
        ({"removal_steps": 2}, "recalibration_images"),
    ],
)
def test_choosing_fields_count_images_where_they_are_looked_at(where, field):
    def differ(recipe) -> bool:
        return remove_filters.choosing_fields(recipe.with_values(**{field: 17})) != remove_filters.choosing_fields(
            recipe
        )

    assert differ(RECIPE.with_values(**where))
    assert not differ(RECIPE)


def test_repair_fields_count_the_images_of_the_repair_that_is_made():
    def fields(**changes) -> dict:
        return remove_filters.repair_fields(RECIPE.with_values(**changes))

    assert fields(reconstruct=True, recalibration_images=17) == fields(reconstruct=True)
    assert fields(reconstruct=True, reconstruction_images=17) != fields(reconstruct=True)
    assert fields(reconstruction_images=17) == fields()
    assert fields(from_scratch=True, recalibration_images=17) == fields(from_scratch=True)


def test_choosing_fields_know_the_order_of_overrides():
    """The last match counts; the store sorts the keys of a mapping before it hashes them."""
    first, second = ({"a": 0.5, ".*": 0.7}, {".*": 0.7, "a": 0.5})
    texts = {
        json.dumps(remove_filters.choosing_fields(RECIPE.with_values(overrides=o)), sort_keys=True)
        for o in (first, second)
    }
    assert len(texts) == 2


def test_repair_from_scratch_draws_other_weights_for_the_same_shapes(data, base_file, tmp_path):
    _, plan, kept, _ = run(tmp_path / "kept", data, base_file)
    facts, same, scratch, _ = run(tmp_path / "scratch", data, base_file, from_scratch=True)
    assert same == plan
    assert facts["weights"] == "drawn anew"
    assert [w.shape for w in scratch.get_weights()] == [w.shape for w in kept.get_weights()]
    name = next(layer.name for layer in kept.layers if isinstance(layer, keras.layers.Conv2D))
    assert not np.allclose(scratch.get_layer(name).get_weights()[0], kept.get_layer(name).get_weights()[0])


def test_run_recipe_with_every_choice_of_the_removal_delivers_and_is_kept(phantom, base_file, tmp_path):
    """The whole way to the report; a second run finds every stage done."""
    choices = {
        **{"criterion": "taylor", "scope": "sensitivity", "removal_steps": 2, "reconstruct": True},
        **{"overrides": {"stem": 0.25}, "min_channels": 4, "group_reduction": "mean", "normalizer": "max"},
        **{"recovery_epochs": 0, "weight_sparsity": 0.0, "calibration_images": 16, "bootstrap_samples": 20},
    }
    recipe, log = RECIPE.with_values(**choices), []
    folders = {"data_dir": phantom, "output_dir": tmp_path, "keras_model_file": base_file}
    report = run_recipe(recipe, **folders)
    plan = ChannelPlan.from_json((tmp_path / "plan.json").read_text())
    assert report["rows"][2]["macs"] == plan.after.macs <= 0.5 * plan.before.macs
    assert len(plan.kept.get("stem", range(16))) >= 12, "in two steps, too, no more than a quarter of 16"
    assert run_recipe(recipe, **folders, log=log.append) == report
    stages = [line for line in log if not line.startswith(("way: ", "about ")) and "original model" not in line]
    assert stages
    assert all(line.endswith("done before, kept") for line in stages)


def test_pruned_manifest_says_what_was_chosen(data, base_file, tmp_path):
    run(tmp_path, data, base_file, criterion="apoz", min_channels=4)
    manifest = json.loads((tmp_path / "manifests" / "select.json").read_text())
    chosen = manifest["inputs"]["recipe"]
    assert (chosen["criterion"], chosen["min_channels"], chosen["scoring_images"]) == ("apoz", 4, 32)
    assert manifest["facts"]["before"]["macs"] > manifest["facts"]["after"]["macs"]
