"""Models from elsewhere: whatever their end, order, preprocessing and kind of file, the export says what Keras says.

The network answers "gray" for images of one brightness between darker and brighter ones, which no other scaling of its
input does: a wrong preset, a wrong order or a second sigmoid shows in its probabilities and in its AUROC.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.cli.compress import main as compress
from cxr_compress.cli.convert import main as convert
from cxr_compress.cli.evaluate import main as evaluate
from cxr_compress.cli.train import main as train
from cxr_compress.device import Classifier, PreprocessSpec, read_model
from cxr_compress.keras2 import keras
from cxr_compress.models import ModelAbout
from cxr_compress.models.files import save_model
from tests.cli.runner import errors_of

layers = keras.layers
Build = Callable[[Any], Any]
SIZE = 16
# How each preset scales a pixel of 0 to 255, written out here and not taken from the package.
SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "unit": lambda x: x / 255,
    "tf": lambda x: x / 127.5 - 1,
    "raw": lambda x: x,
    "imagenet_torch": lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
}
INSIDE = {"inside_rescaling": (1 / 255, 0.0), "inside_tf": (1 / 127.5, -1.0)}


def hill(x: Any, center: float, width: float, height: float = 4.0) -> Any:
    """One logit, `height` at `center` and 0 at `width` beside it: two ReLUs of the mean."""
    slope = height / width
    kernel = np.array([[1.0, -1.0]], np.float32).repeat(3, axis=0) / 3
    both = layers.Dense(2, activation="relu", weights=[kernel, np.array([-center, center], np.float32)])(x)
    return layers.Dense(1, weights=[np.full((2, 1), -slope, np.float32), np.array([height], np.float32)])(both)


def network(end: Build, scale: str = "unit") -> Any:
    """image 16x16x3 - (normalization inside) - mean - hill at a gray of 64 - `end` of that one logit"""
    image = x = keras.Input((SIZE, SIZE, 3))
    space = scale
    if scale in INSIDE:
        x, space = (
            layers.Rescaling(*INSIDE[scale], name="scale")(x),
            {"inside_rescaling": "unit", "inside_tf": "tf"}[scale],
        )
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1, use_bias=False, weights=[np.eye(3)[None, None]])(x))
    low, middle, high = (float(np.mean(SCALES[space](np.full(3, value)))) for value in (13.0, 64.0, 115.0))
    return keras.Model(image, end(hill(x, middle, (high - low) / 2)), name="foreign")


def pair(first: bool) -> Build:
    """Two logits of which the first or the second is the finding's."""

    def make(z: Any) -> Any:
        kernel = np.array([[1.0, 0.0] if first else [0.0, 1.0]], np.float32)
        return layers.Dense(2, activation="softmax", weights=[kernel, np.zeros(2, np.float32)])(z)

    return make


def three(z: Any) -> Any:
    kernel = np.array([[1.0, 0.0, -0.5]], np.float32)
    return layers.Dense(3, activation="softmax", weights=[kernel, np.array([0.0, 0.5, 1.0], np.float32)])(z)


def average(z: Any) -> Any:
    heads = [layers.Dense(1, activation="sigmoid", weights=[np.full((1, 1), w), np.full(1, b)])(z) for w, b in HEADS]
    return layers.Average(name="ensemble")(heads)


def clip(z: Any) -> Any:
    return tf.clip_by_value(tf.sigmoid(z), 0.1, 0.9)


HEADS = ((1.0, 0.0), (3.0, -1.0))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """table.csv of gray images, those of brightness 64 with the finding "Gray"; 13 and 115 are "Not gray"."""
    folder = tmp_path_factory.mktemp("foreign")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(150):
        gray = number % 2
        level = rng.normal(64, 8) if gray else rng.choice([13, 115]) + rng.normal(0, 5)
        image = np.clip(level + rng.normal(0, 3, (20, 20)), 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), image)
        part = "train" if number < 40 else "dev" if number < 100 else "test"
        rows.append([f"{number}.png", f"p{number}", part, gray, 1 - gray])
    with (folder / "table.csv").open("w") as file:
        csv.writer(file).writerows([["path", "patient_id", "split", "Gray", "Not gray"], *rows])
    return folder


def pixels(folder: Path, scale: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The first eight images as the network takes them, without the package's own normalization."""
    read = [cv2.imread(str(folder / f"{number}.png"), cv2.IMREAD_GRAYSCALE) for number in range(8)]
    small = np.stack([cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for image in read])
    return scale(np.repeat(small[..., None].astype(np.float64), 3, axis=-1)).astype(np.float32)


def found_in(path: Path, folder: Path) -> dict[str, np.ndarray]:
    """Label -> probabilities that the exported file gives the first eight images."""
    results = [Classifier(path).predict(folder / f"{n}.png") for n in range(8)]
    return {label: np.array([one.probabilities[k] for one in results]) for k, label in enumerate(results[0].labels)}


def sigmoid_layer(z: Any) -> Any:
    return layers.Activation("sigmoid")(z)


# end, scale of its input, flags, label -> which output of Keras' it has to be
CASES: dict[str, tuple[Build, str, list[str], dict[str, int]]] = {
    "sigmoid": (sigmoid_layer, "unit", ["--labels=Gray", "--preset=unit"], {"Gray": 0}),
    "sigmoid_tf": (sigmoid_layer, "tf", ["--labels=Gray", "--preset=tf"], {"Gray": 0}),
    "imagenet": (sigmoid_layer, "imagenet_torch", ["--labels=Gray", "--preset=imagenet_torch"], {"Gray": 0}),
    "inside": (sigmoid_layer, "inside_rescaling", ["--labels=Gray"], {"Gray": 0}),
    "inside_tf": (sigmoid_layer, "inside_tf", ["--labels=Gray"], {"Gray": 0}),
    "average": (average, "unit", ["--labels=Gray", "--preset=unit"], {"Gray": 0}),
    "one_minus": (lambda z: 1.0 - tf.sigmoid(z), "unit", ["--labels=Not gray", "--preset=unit"], {"Not gray": 0}),
    "clip": (clip, "unit", ["--labels=Gray", "--preset=unit"], {"Gray": 0}),
    "finding_first": (
        pair(first=True),
        "unit",
        ["--labels=Gray,Not gray", "--positive=Gray", "--preset=unit"],
        {"Gray": 0},
    ),
    "finding_last": (
        pair(first=False),
        "unit",
        ["--labels=Not gray,Gray", "--positive=gray", "--preset=unit"],
        {"Gray": 1},
    ),
    "one_label": (pair(first=True), "unit", ["--labels=Gray", "--positive=0", "--preset=unit"], {"Gray": 0}),
    "classes": (three, "unit", ["--labels=Gray,B,C", "--preset=unit"], {"Gray": 0, "B": 1, "C": 2}),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("file", ["keras", "saved_model"])
def test_convert_a_foreign_model_gives_keras_own_probabilities_by_name(
    kind: str, file: str, images: Path, tmp_path: Path
) -> None:
    end, scale, flags, outputs = CASES[kind]
    model = network(end, scale)
    if file == "saved_model":
        tf.saved_model.save(model, str(tmp_path / "saved"))
        source = f"--saved_model_dir={tmp_path / 'saved'}"
        # Layers are gone: what normalizes inside cannot be seen, and has to be said.
        flags = [*flags, "--preset=raw"] if scale in INSIDE else flags
    else:
        save_model(model, tmp_path / "foreign.keras")
        source = f"--keras_model_file={tmp_path / 'foreign.keras'}"
    target = tmp_path / "out.tflite"
    assert convert([source, *flags, f"--output_file={target}"]) == 0
    own = model(pixels(images, SCALES.get(scale, SCALES["raw"]))).numpy()
    found = found_in(target, images)
    assert list(found) == list(outputs)
    for label, column in outputs.items():
        # float32 logits of at most 10 in other sums; a probability moves by a quarter of that.
        np.testing.assert_allclose(found[label], own[:, column], atol=3e-6)
        assert np.ptp(own[:, column]) > 0.1
        twice = 1 / (1 + np.exp(-own[:, column]))  # the control: a second sigmoid
        assert np.abs(found[label] - twice).max() > 0.1
    assert read_model(target).info.activation == ("softmax" if kind == "classes" else "sigmoid")
    if kind == "classes":
        assert all(sum(one.positive) == 1 for one in [Classifier(target).predict(images / "0.png")])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keras files that say nothing of themselves."""
    folder = tmp_path_factory.mktemp("models")
    save_model(network(sigmoid_layer), folder / "unit.keras")
    save_model(network(sigmoid_layer, "inside_rescaling"), folder / "inside.keras")
    save_model(network(pair(first=True)), folder / "pair.keras")
    save_model(network(average), folder / "average.keras")
    return folder


ASKED = {
    "preset": ("unit.keras", ["--labels=Gray"], "unit.keras does not say how images become its input"),
    "twice": ("inside.keras", ["--labels=Gray", "--preset=unit"], "--preset=unit would normalize twice"),
    "positive": ("pair.keras", ["--labels=Gray,Not gray", "--preset=unit"], "give --labels=Gray,Not gray --positive="),
    "which": ("pair.keras", ["--labels=Gray", "--preset=unit"], "one label and --positive=0 or 1"),
    "other": ("pair.keras", ["--labels=Gray,Not gray", "--positive=X", "--preset=unit"], "--positive as Gray or"),
    "no_pair": ("unit.keras", ["--labels=Gray", "--positive=0", "--preset=unit"], "gives 1 outputs of another"),
    "count": ("unit.keras", ["--labels=a,b", "--preset=unit"], "expected 1 labels, one for each output"),
    "double": ("pair.keras", ["--labels=a,a", "--positive=0", "--preset=unit"], "got 'a' and 'a'"),
}


@pytest.mark.parametrize("kind", ASKED)
def test_convert_asks_for_what_a_model_does_not_say(
    kind: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, flags, message = ASKED[kind]
    target = tmp_path / "out.tflite"
    assert convert([f"--keras_model_file={models / name}", *flags, f"--output_file={target}"]) == 2
    (error,) = errors_of(capsys.readouterr().err)
    assert message in error
    assert not target.exists()


def on(images: Path) -> list[str]:
    return ["--dataset=csv", f"--data_dir={images / 'table.csv'}", "--options=findings=Gray"]


def test_convert_finds_the_preset_on_dev_and_refuses_a_worse_one(
    images: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--keras_model_file={models / 'unit.keras'}", "--labels=Gray", *on(images)]
    assert convert([*flags, f"--output_file={tmp_path / 'a.tflite'}"]) == 0
    err = capsys.readouterr().err
    assert "AUROC on dev by --preset: unit " in err
    assert "preprocessing unit (the clear best on dev)" in err
    assert "original model: findings Gray, preprocessing unit; AUROC 1.000" in err
    assert read_model(tmp_path / "a.tflite").info.preprocess.mean == (0.0,) * 3
    assert convert([*flags, "--preset=raw", f"--output_file={tmp_path / 'b.tflite'}"]) == 2
    assert "--preset=raw does not fit this model: AUROC on dev" in capsys.readouterr().err
    assert not (tmp_path / "b.tflite").exists()


def test_convert_of_a_finding_taken_for_its_opposite_stops_and_force_writes_it_down(
    images: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.tflite"
    source = [f"--keras_model_file={models / 'pair.keras'}", "--preset=unit", f"--output_file={target}", *on(images)]
    wrong = [*source, "--labels=Not gray,Gray", "--positive=Gray"]
    assert convert(wrong) == 2
    assert "the original model ranks below chance on dev: AUROC of Gray 0.0" in capsys.readouterr().err
    assert not target.exists()
    assert convert([*wrong, "--force"]) == 0
    info = read_model(target).info
    assert "ranks below chance" in info.recipe["forced"]
    assert "the calibration of Gray FALLS" in info.calibration_source
    assert convert([*source, "--labels=Gray,Not gray", "--positive=Gray", "--overwrite"]) == 0  # the control


@pytest.mark.parametrize("name", ["unit", "inside", "average"])
def test_evaluate_a_foreign_file_scores_what_keras_says(
    name: str, images: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--model={models / name}.keras", "--labels=Gray", *on(images), "--bootstrap_samples=20", "--format=json"]
    assert evaluate(flags) == 0
    printed = capsys.readouterr()
    assert '"value": 1.0' in printed.out.split('"auroc"')[1][:40]
    where = "layer 'scale' inside the model: x / 255" if name == "inside" else "the clear best on dev"
    assert where in printed.err


def test_compress_refuses_what_it_cannot_build_on(
    images: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*on(images), f"--output_dir={tmp_path / 'run'}", "--input_size=16", "--target_macs=none"]
    assert compress([f"--keras_model_file={models / 'average.keras'}", "--labels=Gray", "--preset=unit", *run]) == 2
    assert "'ensemble' computes something else from the probabilities" in capsys.readouterr().err
    pair_flags = [f"--keras_model_file={models / 'pair.keras'}", "--preset=unit", *run]
    assert compress([*pair_flags, "--labels=Not gray,Gray", "--positive=Gray"]) == 2
    assert "ranks below chance on dev" in capsys.readouterr().err
    assert compress([f"--keras_model_file={models / 'unit.keras'}", "--labels=Gray", "--preset=raw", *run]) == 2
    assert "--preset=raw does not fit this model" in capsys.readouterr().err


def test_force_of_a_refuted_preset_is_written_down(
    images: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.tflite"
    flags = [f"--keras_model_file={models / 'unit.keras'}", "--labels=Gray", f"--output_file={target}", *on(images)]
    assert convert([*flags, "--preset=raw", "--force"]) == 0
    assert "does not fit this model" in capsys.readouterr().err
    assert "--preset=raw does not fit this model" in read_model(target).info.recipe["forced"]


@pytest.fixture
def doubled(models: Path, tmp_path: Path) -> Path:
    """Trained on x / 255 and divided by 255 once more inside: its first layer says pixels, which would be wrong."""
    image = keras.Input((SIZE, SIZE, 3))
    scaled = keras.Sequential([keras.Input((SIZE, SIZE, 3)), layers.Rescaling(1 / 255, name="beginner")])
    body = keras.models.load_model(models / "unit.keras")
    lifted = layers.Rescaling(255.0)(
        layers.Dropout(0.1)(layers.Conv2D(3, 1, weights=[np.eye(3)[None, None], np.zeros(3)])(scaled(image)))
    )
    save_model(keras.Model(image, body(lifted)), tmp_path / "doubled.keras")
    return tmp_path / "doubled.keras"


def test_dev_outweighs_layers_inside_that_say_something_else(
    images: Path, doubled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = [f"--keras_model_file={doubled}", "--labels=Gray", f"--output_file={tmp_path / 'out.tflite'}"]
    assert convert([*source, *on(images)]) == 2
    assert "--preset=raw does not fit this model: AUROC on dev" in capsys.readouterr().err
    assert convert([*source, "--preset=unit"]) == 2  # without labels nothing speaks for it
    assert "would normalize twice" in capsys.readouterr().err
    assert convert([*source, *on(images), "--preset=unit"]) == 0
    assert evaluate([f"--model={doubled}", "--labels=Gray", *on(images), "--bootstrap_samples=20"]) == 2
    assert "--preset=raw does not fit this model" in capsys.readouterr().err


def test_train_holds_what_is_said_of_the_model_to_start_from_against_dev(
    images: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        f"--keras_model_file={models / 'unit.keras'}",
        "--labels=Gray",
        "--input_size=16",
        "--epochs=1",
        *on(images),
    ]
    assert train([*flags, "--preset=raw", f"--output_dir={tmp_path / 'a'}"]) == 2
    assert "--preset=raw does not fit this model: AUROC on dev" in capsys.readouterr().err
    assert train([*flags, f"--output_dir={tmp_path / 'b'}"]) == 0
    assert "preprocessing unit at 16 x 16 px (the clear best on dev)" in capsys.readouterr().err


def test_a_file_of_our_own_is_not_contradicted_in_passing(
    images: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.keras"
    about = ModelAbout(findings=("Gray",), preprocess=PreprocessSpec.preset("unit", SIZE, SIZE))
    save_model(keras.models.load_model(models / "unit.keras"), own, about=about)
    source = [f"--keras_model_file={own}", f"--output_file={tmp_path / 'out.tflite'}"]
    assert convert([*source, "--preset=raw"]) == 2
    assert "the model file says that its images are prepared by unit, --preset=raw says" in capsys.readouterr().err
    assert convert([*source, "--labels=Other"]) == 2
    assert "the model file names its outputs Gray, --labels says Other" in capsys.readouterr().err
    assert evaluate([f"--model={own}", "--preset=raw", *on(images), "--bootstrap_samples=20"]) == 2
    assert "--preset=raw does not fit this model" in capsys.readouterr().err
    assert convert([*source, "--preset=unit", "--labels=gray"]) == 0


def test_logits_of_classes_that_exclude_one_another_are_asked_about(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def logits(z: Any) -> Any:
        return layers.Dense(2, weights=[np.array([[1.0, -1.0]], np.float32), np.zeros(2, np.float32)])(z)

    network(logits).save(tmp_path / "logits.keras")
    source = [f"--keras_model_file={tmp_path / 'logits.keras'}", "--labels=Gray,Not gray", "--preset=unit"]
    source.append(f"--output_file={tmp_path / 'out.tflite'}")
    both = [flag for flag in on(images) if not flag.startswith("--options")]
    assert convert([*source, *both]) == 2
    err = capsys.readouterr().err
    assert "its 2 outputs are taken as logits of findings, whose sigmoid is the probability" in err
    assert "has exactly one of Gray, Not gray" in err
