"""A run on images without labels: it follows the original model alone, and no image of the score is seen before it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import decode_split, load_dataset, write_phantom
from cxr_compress.device.classifier import Classifier
from cxr_compress.device.image_checks import ImageStatistics
from cxr_compress.device.modelfile import read_model
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate import score_file
from cxr_compress.keras2 import keras
from cxr_compress.metrics.answers import AnswerStatistics
from cxr_compress.models import ModelAbout, load_model, read_about, save_model
from cxr_compress.models.imports.foreign import import_weights
from cxr_compress.pipeline import run_recipe
from cxr_compress.pipeline.run import open_run, run_stages, take_folder
from cxr_compress.pipeline.stages import stages_before
from cxr_compress.pipeline.stages.remove_filters import draw_labels
from cxr_compress.pipeline.stages.score import Score
from cxr_compress.recipe import Recipe, make_recipe
from tests.conftest import REPOSITORY
from tests.nets import conv_bn, enliven

FINDINGS = ("Mass", "Nodule")
SIZE = 24
QUICK = {"dataset": "images", "calibration_images": 16, "bootstrap_samples": 50, "target_macs": 0.6, "round_to": 2}
BRIGHT = ImageStatistics((0.4,), (0.2,))
KNOWN = AnswerStatistics(
    images=200, mean=(0.0, 0.0), std=(1.0, 1.0), quantiles=((0.0,) * 5,) * 2, above=(0.5, 0.5), features_spread=1.0
)


def network() -> keras.Model:
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.AveragePooling2D(2)(conv_bn(conv_bn(image, 12, "a"), 16, "b"))
    x = keras.layers.GlobalAveragePooling2D()(conv_bn(x, 12, "c"))
    return enliven(keras.Model(image, keras.layers.Dense(2, name="logits")(x)))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Eighty drawn images in one folder."""
    folder = tmp_path_factory.mktemp("images")
    write_phantom(folder / "set", n_train=80, n_test=8, size=32)
    (folder / "flat").mkdir()
    for path in sorted((folder / "set").rglob("*.png"))[:80]:
        path.rename(folder / "flat" / path.name)
    return folder / "flat"


@pytest.fixture(scope="module")
def original(images, tmp_path_factory) -> Path:
    """A model whose logits for these images lie around 0, with thresholds and weights of a loss in its file."""
    path, model = tmp_path_factory.mktemp("model") / "mine.keras", network()
    spec = PreprocessSpec(SIZE, SIZE)
    everything = load_dataset("images", images)
    pixels = np.concatenate([decode_split(split, spec) for split in everything.splits])
    head = model.get_layer("logits")
    logits = model.predict(normalize(pixels, spec), verbose=0)
    kernel, bias = head.get_weights()
    kernel = kernel * 2 / logits.std(axis=0)
    head.set_weights([kernel, bias])
    logits = model.predict(normalize(pixels, spec), verbose=0)
    head.set_weights([kernel, bias - np.median(logits, axis=0)])
    about = ModelAbout(
        FINDINGS,
        spec,
        dataset="drawn",
        attribution="Them, CC BY 4.0",
        images=BRIGHT,
        thresholds=(0.3, 0.5),
        pos_weight=(2.0, 1.0),
        answers=KNOWN,
    )
    save_model(model, path, about=about)
    return path


@pytest.fixture(scope="module")
def finished(images, original, tmp_path_factory):
    """A run without any training, and what it said."""
    folder, log = tmp_path_factory.mktemp("run") / "run", list[str]()
    recipe = make_recipe("mine", {**QUICK, "recovery_epochs": 0, "input_size": SIZE})
    report = run_recipe(recipe, data_dir=images, output_dir=folder, keras_model_file=original, log=log.append)
    return folder, report, log, recipe


def held_out(images: Path) -> np.ndarray:
    return normalize(
        decode_split(load_dataset("images", images).test, PreprocessSpec(SIZE, SIZE)), PreprocessSpec(SIZE, SIZE)
    )


def test_run_trains_nothing_says_so_and_about_how_long_it_takes(finished):
    folder, _, log, recipe = finished
    assert log[0].startswith("way: no training")
    assert any(line.startswith("about ") and "on this machine" in line for line in log)
    assert not any("epoch " in line for line in log)
    assert (recipe.sparsity.zeroes_weights, recipe.export.qat.when, recipe.recovery.distill_weight) == (
        False,
        "never",
        1,
    )
    assert not {"recover", "sparsify", "qat"} & {path.stem for path in (folder / "manifests").iterdir()}


def test_report_has_agreement_in_place_of_auroc_and_says_what_that_is_not(finished):
    folder, report, _, _ = finished
    assert report["dataset"]["labeled"] is False
    first, *others = report["rows"]
    assert first["agreement"] is None
    assert all(row["evaluation"] is None and row["degradation"] is None for row in report["rows"])
    for row in others:
        assert set(row["agreement"]["findings"]) == set(FINDINGS)
        assert row["agreement"]["images"] == 8
    assert others[-1]["agreement"]["findings"]["Mass"]["cam"]["value"] is not None
    gate = report["facts"]["gate"]
    assert gate["kind"] == "agreement"
    assert gate["verdict"] in ("broken", "not enough images to tell"), "eight images show nothing good"
    sentence = "agreement with the original says nothing about whether the original is right on these images"
    for text in ((folder / "README.md").read_text(), (folder / f"{others[-1]['name']}.md").read_text()):
        assert sentence in " ".join(text.split())
        assert "AUROC" not in text.replace("max_auroc_drop", "")
        assert "logits apart" in text
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    page = " ".join((folder / "report.html").read_text().split())
    assert "Nobody can say from these images whether" in page
    assert "Harm cannot be seen without labels" in page
    assert "NaN" not in (folder / "report.json").read_text()


def test_file_carries_the_thresholds_of_the_original_and_its_probabilities_follow_it(finished, images, original):
    folder, report, _, _ = finished
    info = read_model(folder / report["rows"][-1]["file"]).info
    assert info.thresholds == (0.3, 0.5)
    assert "carried over from its file" in info.threshold_source
    assert "follow the original model's on 7 dev images" in info.calibration_source
    assert info.training_data.startswith("drawn; made to follow that model on 65 images")
    batch = held_out(images)
    assert info.attribution.startswith("Them, CC BY 4.0; images without labels: not given")
    kept = read_about(folder / "pruned.keras")
    assert (kept.dataset, kept.images) == ("drawn", BRIGHT), "what it has learnt from is not these images"
    logits = load_model(original)(batch).numpy()
    theirs = 1 / (1 + np.exp(-(logits - np.log([2.0, 1.0]))))
    exact = Classifier(folder / report["rows"][0]["file"])
    # The original's own file: float32 sums in another order, on logits of about 2.
    np.testing.assert_allclose(exact.probabilities(exact.logits(batch)), theirs, atol=1e-4)
    compressed = Classifier(folder / report["rows"][-1]["file"])
    raw = compressed.logits(batch)
    followed = np.abs(compressed.probabilities(raw) - theirs).mean()
    assert followed < np.abs(1 / (1 + np.exp(-raw)) - theirs).mean(), "control: the logits as they are"


def test_no_stage_before_the_score_sees_a_held_out_image(images, original, tmp_path):
    recipe = make_recipe("mine", {**QUICK, "recovery_epochs": 0, "input_size": SIZE, "criterion": "taylor"})
    run = open_run(recipe, images, tmp_path / "run", original, lambda _: None, lambda *_: None)

    def refuse():
        raise AssertionError("a stage looked at the images that the score is for")

    run = dataclasses.replace(run, data=dataclasses.replace(run.data, decode_test=refuse))
    take_folder(run)
    state = run_stages(run, stages_before(Score))
    assert state.delivered.is_file()
    with pytest.raises(AssertionError, match="a stage looked"):
        run_stages(run, [Score()], state)


def test_run_again_keeps_every_stage(finished, images, original):
    folder, report, _, recipe = finished
    log: list[str] = []
    again = run_recipe(recipe, data_dir=images, output_dir=folder, keras_model_file=original, log=log.append)
    assert again == report
    assert not [line for line in log if line.endswith(": started")]


def test_look_warns_of_what_the_images_lack_in_log_report_and_folder(images, original, tmp_path):
    """A model that calls no image positive, of whose training images half were."""
    model, about = load_model(original), read_about(original)
    head = model.get_layer("logits")
    head.set_weights([head.get_weights()[0], head.get_weights()[1] - 50])
    save_model(model, tmp_path / "sure.keras", about=about)
    log: list[str] = []
    recipe = make_recipe("sure", {**QUICK, "recovery_epochs": 0, "input_size": SIZE})
    paths = {"data_dir": images, "output_dir": tmp_path / "run", "keras_model_file": tmp_path / "sure.keras"}
    report = run_recipe(recipe, **paths, log=log.append)
    said = "none of 65 images is above the threshold for Mass, Nodule; of its training images 50%, 50% were"
    assert any(said in line and line.startswith("warning: ") for line in log)
    assert any(said in warning for warning in report["facts"]["original"]["warnings"])
    assert said in " ".join((tmp_path / "run" / "README.md").read_text().split())
    assert report["rows"][-1]["agreement"]["findings"]["Mass"]["kappa"]["value"] is None
    # What the file records of its training images stays with the original model.
    assert read_about(tmp_path / "run" / "base.keras").answers == KNOWN


def test_training_follows_the_original_alone_and_its_record_is_json(images, original, tmp_path):
    log: list[str] = []
    changes = {"recovery_epochs": 1, "sparsity_epochs": 2, "batch_size": 8, "input_size": SIZE}
    recipe = make_recipe("mine", {**QUICK, **changes, "criterion": "taylor"})
    paths = {"data_dir": images, "output_dir": tmp_path / "run", "keras_model_file": original}
    report = run_recipe(recipe, **paths, log=log.append)
    assert "which follows the original model alone" in log[0]

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    for stage in ("recover", "sparsify"):
        text = (tmp_path / "run" / "manifests" / f"{stage}.json").read_text()
        assert json.loads(text, parse_constant=refuse)["inputs"]["recipe"]["distill_weight"] == 1
    history = json.loads((tmp_path / "run" / "manifests" / "recover.json").read_text())["facts"]["history"]
    assert [entry["epoch"] for entry in history] == [0, 1]
    assert all(entry["dev_auroc"] is None and entry["dev_objective"] > 0 for entry in history)
    assert report["rows"][-1]["name"] == "mine_m60_w50_int8"
    lines = [line for line in log if line.startswith("epoch ")]
    assert lines
    assert not any("AUROC" in line for line in lines)


def test_classes_that_exclude_one_another_need_no_labels_either(images, original, tmp_path):
    """Three classes, a softmax at the end, followed by training too."""
    model = load_model(original)
    x = keras.layers.Dense(3, activation="softmax")(model.layers[-2].output)
    keras.Model(model.input, x).save(tmp_path / "classes.keras")
    changes = {"recovery_epochs": 1, "weight_sparsity": 0.0, "qat": "never", "batch_size": 8, "input_size": SIZE}
    meaning = {"labels": ("a", "b", "c"), "preset": "imagenet_torch", "criterion": "taylor"}
    recipe = make_recipe("classes", {**QUICK, **changes, **meaning})
    paths = {"data_dir": images, "output_dir": tmp_path / "run", "keras_model_file": tmp_path / "classes.keras"}
    report = run_recipe(recipe, **paths)
    agreement = report["rows"][-1]["agreement"]
    assert set(agreement["findings"]) == {"a", "b", "c"}
    # Each image has one class: together they are all that is held out.
    assert sum(finding["positives"] for finding in agreement["findings"].values()) == agreement["images"]
    info = read_model(tmp_path / "run" / report["rows"][-1]["file"]).info
    assert info.exclusive
    assert "follow the original model's" in info.calibration_source


def test_labels_for_taylor_are_drawn_as_likely_as_the_model_says():
    logits = np.tile(np.array([[2.0, -1.0]], np.float32), (20_000, 1))
    drawn = draw_labels(logits, "sigmoid", 0)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    # Three deviations of a share of 20,000: below 0.011.
    np.testing.assert_allclose(drawn.mean(axis=0), 1 / (1 + np.exp(-logits[0])), atol=0.011)
    assert (draw_labels(logits, "sigmoid", 0) == drawn).all()
    assert (draw_labels(logits, "sigmoid", 1) != drawn).any()
    classes = draw_labels(np.tile(np.array([[1.0, 0.0, -1.0]], np.float32), (20_000, 1)), "softmax", 0)
    assert (classes.sum(axis=1) == 1).all()
    shares = np.exp([1.0, 0.0, -1.0])
    np.testing.assert_allclose(classes.mean(axis=0), shares / shares.sum(), atol=0.011)


def test_without_a_model_or_with_a_share_for_labels_a_run_is_refused(images, original, tmp_path):
    recipe = make_recipe("mine", {**QUICK, "input_size": SIZE})
    with pytest.raises(CompressionError, match="have no labels, so no model can be trained on them"):
        run_recipe(recipe, data_dir=images, output_dir=tmp_path / "run")
    half = Recipe().with_values(**QUICK, input_size=SIZE, distill_weight=0.5)
    with pytest.raises(CompressionError, match=r"--distill_weight=0.5 leaves a share of the loss to labels"):
        run_recipe(half, data_dir=images, output_dir=tmp_path / "run", keras_model_file=original)
    assert not (tmp_path / "run").exists()


def test_a_model_that_answers_all_images_alike_is_refused(images, original, tmp_path):
    model = load_model(original)
    head = model.get_layer("logits")
    head.set_weights([0 * head.get_weights()[0], head.get_weights()[1]])
    save_model(model, tmp_path / "dead.keras", about=read_about(original))
    recipe = make_recipe("dead", {**QUICK, "recovery_epochs": 0, "input_size": SIZE})
    with pytest.raises(CompressionError, match="gives each of 65 images the same answer for Mass, Nodule"):
        run_recipe(recipe, data_dir=images, output_dir=tmp_path / "run", keras_model_file=tmp_path / "dead.keras")


def test_a_model_that_does_not_name_its_outputs_is_asked_to(images, tmp_path):
    network().save(tmp_path / "nameless.keras")
    recipe = make_recipe("nameless", {**QUICK, "input_size": SIZE, "preset": "unit"})
    paths = {"data_dir": images, "output_dir": tmp_path / "run", "keras_model_file": tmp_path / "nameless.keras"}
    with pytest.raises(CompressionError, match="does not name its 2 outputs, and images without labels name none"):
        run_recipe(recipe, **paths)


def test_real_images_without_labels_keep_the_auroc_that_the_run_never_sees(cxr_data, tmp_path):
    """Kermany's trained tiny_chexnet, 150 of its training images as a flat folder, half the MACs, int8."""
    imported = import_weights("npz", REPOSITORY / "experiments/results/tiny_chexnet_kermany/weights_fp16.npz")
    save_model(imported.model, tmp_path / "tiny.keras", about=imported.about)
    dataset = load_dataset("kermany", cxr_data / "kermany224")
    (tmp_path / "flat").mkdir()
    for number in np.random.default_rng(0).choice(len(dataset.train), 150, replace=False):
        shutil.copy(dataset.train.paths[number], tmp_path / "flat" / f"{number}.jpeg")
    recipe = make_recipe("tiny", {"dataset": "images", "recovery_epochs": 0, "input_size": 64, "round_to": 4})
    paths = {"data_dir": tmp_path / "flat", "output_dir": tmp_path / "run", "keras_model_file": tmp_path / "tiny.keras"}
    report = run_recipe(recipe, **paths)
    test = dataset.test
    images = decode_split(test, PreprocessSpec(64, 64))
    scored = [
        score_file(tmp_path / "run" / row["file"], images, test.labels, test.patients, dataset.findings, samples=2)
        for row in (report["rows"][0], report["rows"][-1])
    ]
    before, after = (one.mean_auroc.value for one in scored)
    # 0.957 before; on 624 images a resampling of patients moves it by 0.009.
    assert before > 0.94
    assert after > before - 0.02
    assert report["rows"][-1]["agreement"]["logit_distance"]["value"] < 0.4
    assert report["rows"][-1]["macs"] <= 0.5 * report["rows"][0]["macs"]


def test_ranges_of_int8_come_from_images_and_their_varied_copies_where_nobody_says_what_they_show(
    images, original, tmp_path
):
    def sample(**choices: object) -> np.ndarray:
        recipe = make_recipe("mine", {**QUICK, "recovery_epochs": 0, "input_size": SIZE, **choices})
        run = open_run(recipe, images, tmp_path / "run", original, lambda _: None, lambda *_: None)
        return run.calibration_sample()

    plain, varied = sample(vary_images=False), sample()
    assert len(plain) == 16
    assert len(varied) == 256
    assert np.array_equal(varied[:: len(varied) // len(plain)], plain)
