"""cxr_evaluate from its flags to its table, its JSON and its predictions, for a .tflite and for Keras files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cxr_compress.cli.evaluate import main
from cxr_compress.device import INTENDED_USE, Classifier, PreprocessSpec
from cxr_compress.device.preprocess import load_uint8, preprocess
from cxr_compress.metrics import bootstrap_auroc, stratified_auroc
from tests.cli.runner import BLOCK_TENSORFLOW, run_module
from tests.device.images import draw_image
from tests.device.reference import INT8_MODEL

IMAGES, TEST = 130, 90
FINDINGS = ("large heart", "opacity")  # the model has them the other way round


def write_set(folder: Path, findings: tuple[str, ...] = FINDINGS) -> Path:
    """A table of drawn images whose labels follow the reference model, with a fifth of them turned."""
    classifier, rng = Classifier(INT8_MODEL), np.random.default_rng(0)
    images = [draw_image(seed) for seed in range(IMAGES)]
    logits = np.stack([classifier.predict(image).logits for image in images])[:, ::-1]
    labels = (logits > np.median(logits, axis=0)) ^ (rng.uniform(size=logits.shape) < 0.2)
    rows = []
    for number, image in enumerate(images):
        assert cv2.imwrite(str(folder / f"secret{number}.png"), image)
        part = "test" if number < TEST else "train"
        about = [f"secret{number}.png", f"Jane{number // 2}", "FM"[number // 2 % 2], 30 + number // 2, part]
        known = ["" if number < 5 else int(labels[number, 0]), int(labels[number, 1])]
        rows.append([*about, ["clinic", "ward"][number % 2], *known[: len(findings)]])
    text = io.StringIO()
    header = ["path", "patient_id", "sex", "age", "split", "source", *findings]
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    (folder / "table.csv").write_text(text.getvalue())
    return folder / "table.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("images"))


def read_test(table: Path) -> tuple[list[Path], np.ndarray, list[str], list[str]]:
    """Paths, labels, patients and sources of the test images, read without the package."""
    with table.open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    labels = np.array([[float(row[finding] or "nan") for finding in FINDINGS] for row in rows])
    paths = [table.parent / row["path"] for row in rows]
    return paths, labels, [row["patient_id"] for row in rows], [row["source"] for row in rows]


def call(capsys: pytest.CaptureFixture[str], table: Path, *flags: str, model: Any = INT8_MODEL) -> tuple[int, str, str]:
    arguments = [f"--model={model}", "--dataset=csv", f"--data_dir={table}", "--bootstrap_samples=50", *flags]
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_evaluate_tflite_gives_the_numbers_of_the_device(table, tmp_path, capsys) -> None:
    code, out, err = call(capsys, table, "--format=json", f"--output_file={tmp_path / 'eval.json'}")
    assert code == 0
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written == json.loads(out)
    assert written["intended_use"] == INTENDED_USE
    assert written["model"]["sha256"] == hashlib.sha256(INT8_MODEL.read_bytes()).hexdigest()
    assert written["dataset"]["images"] == TEST
    assert written["versions"]["numpy"] == np.__version__
    paths, labels, patients, sources = read_test(table)
    classifier = Classifier(INT8_MODEL)
    logits = np.stack([classifier.predict(path).logits for path in paths])
    assert tuple(written["evaluation"]["findings"]) == FINDINGS
    for k, finding in enumerate(FINDINGS):
        column = classifier.labels.index(finding)
        found = written["evaluation"]["findings"][finding]
        expected = bootstrap_auroc(labels[:, k], logits[:, column], patients, samples=50)
        assert found["auroc"] == {"value": expected.value, "low": expected.low, "high": expected.high}
        assert found["threshold"] == classifier.info.thresholds[column]
        called = classifier.probabilities(logits)[:, column] >= np.float32(found["threshold"])
        assert found["sensitivity"] == called[labels[:, k] == 1].mean()
        within = written["groups"]["source"]["within_source"]["findings"][finding]
        assert within["auroc"]["value"] == stratified_auroc(labels[:, k], logits[:, column], sources)[0]
    assert written["evaluation"]["findings"]["large heart"]["unknown"] == 5
    assert set(written["groups"]) == {"source", "sex", "age"}
    # The control: the columns in the model's order would give other numbers.
    swapped = bootstrap_auroc(labels[:, 0], logits[:, 0], patients, samples=50).value
    assert abs(swapped - written["evaluation"]["findings"][FINDINGS[0]]["auroc"]["value"]) > 0.05
    assert "secret" not in out + err
    assert "Jane" not in out + err


def test_evaluate_table_has_findings_means_groups_and_the_sentence(table, capsys) -> None:
    code, out, err = call(capsys, table)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("tiny_int8.tflite on csv test: 90 images of 45 patients, 32 x 32 px")
    assert "AUROC [95 % CI]" in lines[2]
    assert "sensitivity" in lines[2]
    assert "Brier" in lines[2]
    assert "mean AUROC over findings with enough data (2): 0." in out
    assert any(line.startswith("by source") and line.endswith("within source") for line in lines)
    assert "- (" in out  # some group is too small
    assert lines[-1] == INTENDED_USE
    assert "running the model: 90 images" in err


def test_evaluate_csv_has_a_row_per_finding_and_group(table, capsys) -> None:
    _, out, _ = call(capsys, table, "--format=csv", "--by=sex")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["by"], row["group"]) for row in rows[::2]] == [
        ("all", "all"),
        ("sex", "F"),
        ("sex", "M"),
        ("sex", "within sex"),
    ]
    assert all(0 < float(row["auroc"]) < 1 for row in rows[:2])


def test_evaluate_predictions_file_holds_no_names(table, tmp_path, capsys) -> None:
    target = tmp_path / "preds.csv"
    assert call(capsys, table, f"--predictions_file={target}", "--by=")[0] == 0
    text = target.read_text()
    assert len(text.splitlines()) == TEST + 1
    assert "secret" not in text
    assert "Jane" not in text


def test_evaluate_all_splits_says_that_images_may_have_been_seen(table, capsys) -> None:
    code, out, err = call(capsys, table, "--split=all", "--by=")
    assert code == 0
    assert "130 images of 65 patients" in out
    assert "--split=all holds images that a model trained on csv has seen" in err


def test_evaluate_tflite_needs_no_tensorflow(table) -> None:
    arguments = [f"--model={INT8_MODEL}", "--dataset=csv", f"--data_dir={table}", "--bootstrap_samples=5"]
    done = run_module("evaluate", *arguments, prelude=BLOCK_TENSORFLOW)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, INTENDED_USE)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model="], "expected --model, got none"),
        (["--model=gone.tflite"], "expected --model to be a file, got 'gone.tflite'"),
        (["--model=model.onnx"], "expected --model as a file that ends in .tflite, .keras, .h5, .hdf5"),
        (["--dataset=mimic"], "expected a --dataset of chexpert, csv"),
        (["--data_dir=gone"], "expected --data_dir to exist, got 'gone'"),
        (["--by=machine"], "expected --by as some of source, sex, age, view, or auto; got 'machine'"),
        (["--by=view"], "csv does not say the view of its test images (it says: source, sex, age); correct --by"),
        (["--input_size=64"], "takes images of 32 px only: leave --input_size out"),
        (["--output_file=gone/eval.json"], "the folder of --output_file, gone, does not exist"),
        (["--options=findings"], "expected --options as name=value, got 'findings'"),
        (["--options=hue=gray"], "hue"),
        (["extra"], "expected flags only, got 'extra'"),
    ],
)
def test_evaluate_wrong_call_is_one_line_and_exit_code_2(table, capsys, flags, line) -> None:
    code, out, err = call(capsys, table, *flags)
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.splitlines()) == 1


def test_evaluate_set_of_other_findings_is_refused(tmp_path, capsys) -> None:
    table = write_set(tmp_path, ("Hernia", "Edema"))
    code, _, err = call(capsys, table)
    assert code == 2
    assert "no finding in common: the model has opacity, large heart, the data set has Hernia, Edema" in err


def test_evaluate_finding_that_the_model_lacks_is_named_and_left_out(tmp_path, capsys) -> None:
    table = write_set(tmp_path, ("Hernia", "opacity"))
    code, out, err = call(capsys, table, "--format=json")
    assert code == 0
    assert list(json.loads(out)["evaluation"]["findings"]) == ["opacity"]
    assert json.loads(out)["matching"]["only_in_dataset"] == ["Hernia"]
    assert "not scored, only the data set has Hernia" in err


def make_model(*, flat: bool = False) -> Any:
    """image 32x32x3 -> conv 3x3/2 (6) -> BN -> ReLU -> mean over the image (or flatten) -> logits (2)."""
    from cxr_compress.keras2 import keras
    from tests.nets import enliven

    layers = keras.layers
    image = keras.Input((32, 32, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, strides=2)(image)))
    x = layers.Flatten()(x) if flat else layers.GlobalAveragePooling2D()(x)
    return enliven(keras.Model(image, layers.Dense(2, name="logits")(x)))


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """said.keras carries findings and preprocessing, plain.keras and flat.keras carry nothing."""
    from cxr_compress.models import ModelAbout, save_model

    folder = tmp_path_factory.mktemp("models")
    spec = PreprocessSpec.preset("unit", 32, 32)
    about = ModelAbout(("opacity", "large heart"), spec, dataset="drawn", pos_weight=(3.0, 0.5))
    save_model(make_model(), folder / "said.keras", about=about)
    save_model(make_model(), folder / "plain.keras")
    save_model(make_model(flat=True), folder / "flat.keras")
    return folder


def keras_logits(table: Path, spec: PreprocessSpec, model: Any) -> np.ndarray:
    images = np.stack([preprocess(path, spec) for path in read_test(table)[0]])
    return model(images, training=False).numpy()


def test_evaluate_keras_file_that_says_what_it_is(table, keras_files, tmp_path, capsys) -> None:
    target = tmp_path / "preds.csv"
    flags = ["--format=json", f"--predictions_file={target}", "--by="]
    code, out, err = call(capsys, table, *flags, model=keras_files / "said.keras")
    assert (code, "does not say" in err) == (0, False)
    found = json.loads(out)
    expected = keras_logits(table, PreprocessSpec.preset("unit", 32, 32), make_model())[:, ::-1]
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    logits = np.array([[float(row[f"logit_{finding}"]) for finding in FINDINGS] for row in rows])
    # The same float32 arithmetic in batches of another size: below 1e-5 of logits of about 1.
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.ptp(expected[:, 0]) > 0.01  # the output depends on the image
    heart = found["evaluation"]["findings"]["large heart"]
    assert heart["sensitivity"] is None  # a Keras file has no threshold
    truth = read_test(table)[1][:, 0]
    chance = 1 / (1 + np.exp(-(expected[:, 0] - np.log(0.5))))
    assert heart["brier"]["value"] == pytest.approx(np.nanmean((chance - truth) ** 2), abs=1e-5)
    assert found["model"]["trained_on"] == "drawn"
    assert found["groups"] == {}


def test_evaluate_plain_keras_file_is_asked_about_and_never_guessed(table, keras_files, capsys) -> None:
    code, _, err = call(capsys, table, model=keras_files / "plain.keras")
    assert (code, "does not name its 2 outputs" in err, "--match=position" in err) == (2, True, True)
    # Its random weights fit no preset: dev cannot tell, and the user has to.
    code, _, err = call(capsys, table, "--match=position", model=keras_files / "plain.keras")
    assert (code, "give --preset, as it was trained: imagenet_torch" in err) == (2, True)
    flags = ["--match=position", "--preset=imagenet_torch", "--force", "--format=json", "--by="]
    code, out, err = call(capsys, table, *flags, model=keras_files / "plain.keras")
    assert code == 0
    assert "preprocessing imagenet_torch at 32 x 32 px (from --preset)" in err
    assert "findings are matched by position" in err
    found = json.loads(out)
    assert found["matching"]["by_position"]
    _, labels, patients, _ = read_test(table)
    expected = keras_logits(table, PreprocessSpec(32, 32), make_model())
    # One pair of about 2000 ranked otherwise by rounding is 5e-4.
    auroc = bootstrap_auroc(labels[:, 1], expected[:, 1], patients, samples=5).value
    assert found["evaluation"]["findings"]["opacity"]["auroc"]["value"] == pytest.approx(auroc, abs=1e-3)
    assert found["evaluation"]["findings"]["opacity"]["brier"]["value"] is None


@pytest.mark.filterwarnings("ignore:.* images read of test have fewer pixels")
def test_evaluate_keras_at_another_size_keeps_the_weights(table, keras_files, tmp_path, capsys) -> None:
    target = tmp_path / "preds.csv"
    flags = ["--input_size=48", "--by=", f"--predictions_file={target}"]
    assert call(capsys, table, *flags, model=keras_files / "said.keras")[0] == 0
    spec = PreprocessSpec.preset("unit", 48, 48)
    own = make_model()
    images = (
        np.stack([load_uint8(path, spec) for path in read_test(table)[0]]).astype(np.float32)[..., np.newaxis] / 255
    )
    tail = np.repeat(images, 3, axis=-1)
    for layer in own.layers[1:]:
        tail = layer(tail)
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    logits = np.array([[float(row[f"logit_{finding}"]) for finding in FINDINGS] for row in rows])
    np.testing.assert_allclose(logits, tail.numpy()[:, ::-1], atol=1e-5)
    assert np.abs(logits - keras_logits(table, PreprocessSpec.preset("unit", 32, 32), own)[:, ::-1]).max() > 1e-3


def test_evaluate_keras_with_a_flatten_has_one_size(table, keras_files, capsys) -> None:
    code, _, err = call(capsys, table, "--input_size=48", model=keras_files / "flat.keras")
    assert code == 2
    assert "is made for images of 32 x 32 px and its layers do not fit 48 x 48: use it at its own size" in err
