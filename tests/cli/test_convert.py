"""cxr_convert from its flags to files that the device part reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.cli.convert import main
from cxr_compress.device import INTENDED_USE, Classifier, read_model
from cxr_compress.device.preprocess import PreprocessSpec, load_uint8, normalize, preprocess
from cxr_compress.device.runner import Runner
from cxr_compress.lite import convert
from cxr_compress.models import ModelAbout
from cxr_compress.models.files import save_model
from cxr_compress.structured import vary_images
from tests.cli.runner import errors_of
from tests.lite import nets

PRESET = "--preset=imagenet_torch"  # of models whose file does not say it

FINDINGS = ("Atelectasis", "Effusion", "Mass", "Nodule")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as .keras and SavedModel, and 20 gray images, one in a sub-folder."""
    folder = tmp_path_factory.mktemp("convert")
    model = nets.chain()
    save_model(model, folder / "model.keras")
    tf.saved_model.save(model, str(folder / "saved"))
    for name in ("sigmoid", "softmax"):
        save_model(nets.ends_in(name), folder / f"{name}.keras")
    tf.saved_model.save(nets.ends_in("sigmoid"), str(folder / "saved_sigmoid"))
    save_model(nets.chain(size=None), folder / "open.keras")
    for number in range(20):
        path = folder / "images" / ("more" if number == 3 else "") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 200 + number, (24, 24), np.uint8)
        assert cv2.imwrite(str(path), image)
    return folder


def call(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str, model: str = "model.keras") -> tuple[int, Any]:
    source = (
        []
        if any("_dir" in flag or "keras_model_file" in flag for flag in flags)
        else [f"--keras_model_file={folder / model}"]
    )
    code = main([PRESET, *source, *flags])
    return code, capsys.readouterr()


def test_convert_writes_a_file_that_the_device_runs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.tflite"
    flags = [f"--output_file={target}", "--quant_type=int8", f"--labels={','.join(FINDINGS)}"]
    code, _ = call(folder, capsys, *flags, f"--calibration_data={folder / 'images'}")
    assert code == 0
    info = read_model(target).info
    assert info.labels == FINDINGS
    assert (info.quant_type, info.model_name) == ("int8", "model_int8")
    assert info.threshold_source == "0.5 by default, not chosen on data"
    image = folder / "images" / "05.png"
    findings = Classifier(target).predict(image)
    expected = nets.chain()(preprocess(image, info.preprocess)[np.newaxis], training=False).numpy()[0]
    assert np.abs(findings.logits - expected).max() < 0.1 * np.ptp(expected)
    other = Classifier(target).predict(folder / "images" / "19.png")
    assert np.abs(other.logits - findings.logits).max() > 0  # the image reaches the logits


def test_convert_follows_what_the_model_file_says_of_itself_and_force_overrules_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = PreprocessSpec.preset("tf", 16, 16)
    about = ModelAbout(FINDINGS, spec, dataset="somewhere", attribution="someone", pos_weight=(1.0, 2.0, 4.0, 8.0))
    save_model(nets.chain(), tmp_path / "said.keras", about=about)
    source = f"--keras_model_file={tmp_path / 'said.keras'}"
    assert main([source, f"--output_file={tmp_path / 'a.tflite'}"]) == 0
    info = read_model(tmp_path / "a.tflite").info
    assert (info.labels, info.preprocess) == (FINDINGS, spec)
    # What the loss counted positives with is undone: sigmoid(logit - log(weight)).
    assert info.logit_offset == pytest.approx([-np.log(weight) for weight in (1, 2, 4, 8)])
    assert (info.training_data, info.attribution) == ("somewhere", "someone")
    flags = ("--preset=unit", "--labels=a,b,c,d", f"--output_file={tmp_path / 'b.tflite'}")
    code, printed = call(folder, capsys, source, *flags)
    assert (code, "--labels says a, b, c, d: leave --labels out, or add --force" in printed.err) == (2, True)
    assert call(folder, capsys, source, *flags, "--force")[0] == 0
    other = read_model(tmp_path / "b.tflite").info
    assert (other.labels, other.preprocess) == (("a", "b", "c", "d"), PreprocessSpec.preset("unit", 16, 16))
    assert "--labels says a, b, c, d; the model file says that its images are prepared by tf" in other.recipe["forced"]


def test_convert_calibrates_on_a_table_of_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "images.csv"
    paths = sorted((folder / "images").rglob("*.png"))
    # 16 images to train on, the fewest that calibrate, and both classes in each split.
    split = dict.fromkeys(range(16, 18), "dev") | dict.fromkeys(range(18, 20), "test")
    rows = [f"{path},{n % 2},{n},{split.get(n, 'train')}" for n, path in enumerate(paths)]
    table.write_text("\n".join(["path,Mass,patient_id,split", *rows]) + "\n")
    flags = ("--quant_type=int8", "--dataset=csv", f"--data_dir={folder / 'images'}", f"--options=table={table}")
    source = f"--keras_model_file={folder / 'model.keras'}"
    code, printed = call(folder, capsys, source, *flags, f"--output_file={tmp_path / 'c.tflite'}")
    assert code == 0, printed.err
    assert read_model(tmp_path / "c.tflite").info.quant_type == "int8"


def test_convert_to_several_types_names_the_files_after_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--output_file={tmp_path / 'out.tflite'}", "--quant_type=none,int8_float_io", "--format=json"]
    code, printed = call(folder, capsys, *flags, f"--calibration_data={folder / 'images'}", "--calibration_steps=16")
    assert code == 0
    document = json.loads(printed.out)
    assert document["intended_use"] == INTENDED_USE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out_int8_float_io.tflite", "out_none.tflite"]
    for entry, name in zip(document["files"], ["none", "int8_float_io"], strict=True):
        whole = read_model(entry["file"])
        assert (entry["quant_type"], entry["sha256"], entry["bytes"]) == (name, whole.sha256, whole.file_bytes)
        assert entry["audit"]["inputs"][0]["dtype"] == "float32"


def test_convert_of_a_saved_model_equals_the_keras_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = folder / "images" / "07.png"
    scores = []
    for name, source in {
        "keras": f"--keras_model_file={folder / 'model.keras'}",
        "saved": f"--saved_model_dir={folder / 'saved'}",
    }.items():
        assert main([PRESET, source, f"--output_file={tmp_path / name}"]) == 0
        scores.append(Classifier(tmp_path / name).predict(image).logits)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    capsys.readouterr()


def test_convert_is_deterministic(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        flags = [f"--output_file={tmp_path / name}", "--quant_type=int8", f"--calibration_data={folder / 'images'}"]
        assert call(folder, capsys, *flags)[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_convert_takes_ranges_from_varied_copies_where_images_have_no_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = f"--calibration_data={folder / 'images'}"
    code, printed = call(folder, capsys, f"--output_file={tmp_path / 'copies'}", "--quant_type=int8", images)
    assert (code, "on 20 images and varied copies of them, 260 in all" in printed.err) == (0, True)
    flags = [f"--output_file={tmp_path / 'plain'}", "--quant_type=int8", images, "--novary_images"]
    code, printed = call(folder, capsys, *flags)
    assert (code, "varied" in printed.err) == (0, False)
    recipes = {name: read_model(tmp_path / name).info.recipe for name in ("copies", "plain")}
    assert [recipes[name].get("vary_images") for name in recipes] == [True, None]
    spec = read_model(tmp_path / "plain").info.preprocess
    pixels = np.stack([load_uint8(path, spec) for path in sorted((folder / "images").rglob("*.png"))])
    answers = {name: Runner(read_model(tmp_path / name).content)(normalize(pixels, spec)) for name in recipes}
    # Equal to the same by hand, bit for bit; each is the control of the other.
    for name, given in {"copies": vary_images(pixels), "plain": pixels}.items():
        options: dict[str, Any] = {"calibration": [normalize(given, spec)], "calibration_steps": 300}
        content = convert(nets.chain(), "int8", **options).content
        np.testing.assert_array_equal(answers[name], Runner(content)(normalize(pixels, spec)))
    assert np.abs(answers["copies"] - answers["plain"]).max() > 0


def test_convert_without_labels_numbers_the_findings(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, capsys, f"--output_file={tmp_path / 'x'}")[0] == 0
    assert read_model(tmp_path / "x").info.labels == ("finding_1", "finding_2", "finding_3", "finding_4")


def test_convert_of_an_open_size_takes_the_flag(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--output_file={tmp_path / 'x'}", "--preset=tf", "--color=rgb"]
    code, printed = call(folder, capsys, *flags, model="open.keras")
    assert (code, "input_size" in printed.err) == (2, True)
    assert call(folder, capsys, *flags, "--input_size=20", model="open.keras")[0] == 0
    spec = read_model(tmp_path / "x").info.preprocess
    assert (spec.height, spec.width, spec.color, spec.mean, spec.std) == (20, 20, "rgb", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("quant_type", ["none", "int8"])
def test_convert_to_uint8_input_gives_the_findings_of_the_float_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quant_type: str
) -> None:
    made = {}
    for kind in ("float32", "uint8"):
        flags = [f"--output_file={tmp_path / kind}", f"--quant_type={quant_type}", f"--input={kind}", "--format=json"]
        code, printed = call(folder, capsys, *flags, f"--calibration_data={folder / 'images'}")
        assert code == 0, printed.err
        made[kind] = Classifier(tmp_path / kind)
        assert made[kind].spec.input == kind
        dtype = json.loads(printed.out)["files"][0]["audit"]["inputs"][0]["dtype"]
        assert dtype == ("uint8" if kind == "uint8" else "float32" if quant_type == "none" else "int8")
    images = sorted((folder / "images").glob("*.png"))
    floats, pixels = (np.stack([one.predict(image).logits for image in images]) for one in made.values())
    # float32 rounding in another order; int8: as derived in tests/lite/test_uint8_input.py, two steps.
    step = made["uint8"].output_scale
    assert np.abs(floats - pixels).max() <= (1e-4 * np.ptp(floats) if step is None else 2 * step + 1e-6)
    assert np.abs(floats - pixels[::-1]).max() > 0.1 * np.ptp(floats)  # control: images are told apart


def test_convert_preset_for_another_number_of_channels_is_refused_or_fitted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, capsys, f"--output_file={tmp_path / 'x'}", "--preset=xrv")[0] == 0
    spec = read_model(tmp_path / "x").info.preprocess
    assert (spec.channels, spec.mean) == (3, (0.5,) * 3)  # its channels are alike, so that any number will do
    assert call(folder, capsys, f"--output_file={tmp_path / 'x'}", "--preset=caffe", "--color=rgb")[0] == 0
    assert read_model(tmp_path / "x").info.preprocess.order == "bgr"


def test_convert_calibrates_on_a_data_set(cxr_data: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    flags = [f"--output_file={tmp_path / 'x'}", "--quant_type=int8", "--calibration_steps=16"]
    code, printed = call(
        folder,
        capsys,
        *flags,
        "--dataset=kermany",
        f"--data_dir={cxr_data / 'kermany224'}",
        f"--keras_model_file={folder / 'model.keras'}",
    )
    assert code == 0
    assert read_model(tmp_path / "x").info.recipe["calibration_set"] == "kermany"
    assert "calibration on 16 images" in printed.err
    assert ".jpeg" not in printed.err


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_convert_takes_an_activation_off_and_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], activation: str
) -> None:
    target = tmp_path / "out.tflite"
    code, printed = call(folder, capsys, f"--output_file={target}", model=f"{activation}.keras")
    assert code == 0
    file = read_model(target)
    assert activation in file.info.recipe["head"]
    assert file.info.recipe["head"] in printed.err
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    logits = Runner(file.content)(image)[0]
    probabilities = nets.ends_in(activation)(image).numpy()[0]
    rebuilt = 1 / (1 + np.exp(-logits)) if activation == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
    # A few roundings of float32; the control: the logits themselves are no probabilities.
    np.testing.assert_allclose(rebuilt, probabilities, atol=1e-6)
    assert np.abs(logits - probabilities).max() > 0.1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quant_type=int8"], "int8: value ranges come from calibration images, got none"),
        (["--quant_type=int4"], "expected quant types among none, fp16, dynamic, int8, int8_float_io"),
        (["--quant_type=int8", "--calibration_data=FOLDER/nowhere"], "nowhere is no folder"),
        (
            ["--quant_type=int8", "--calibration_data=FOLDER/empty"],
            "empty holds no image (.png, .jpg, .jpeg, ",
        ),
        (["--quant_type=int8", "--calibration_data=FOLDER/images/more"], "at least 16 calibration images, got 1"),
        (["--quant_type=int8", "--calibration_data=FOLDER/broken"], "broken"),
        (["--labels=one,two"], "expected 4 labels, one for each output of the model in their order, got 2"),
        (["--keras_model_file=FOLDER/nothing.keras"], "nothing.keras does not exist"),
        (["--keras_model_file=FOLDER/images/00.png"], "expected a Keras file"),
        (["--saved_model_dir=FOLDER/images"], "expected a SavedModel folder"),
        (["--saved_model_dir=FOLDER/saved", "--keras_model_file=FOLDER/model.keras"], "expected one of --keras_model"),
        (["--output_file=FOLDER/nowhere/x.tflite"], "nowhere, does not exist: create it first"),
        (["--output_file=FOLDER"], "is a folder: give the name of a file"),
        (["--output_file="], "expected --output_file=FILE"),
        (["--dataset=kermany"], "--dataset and --data_dir belong together"),
        (["--dataset=kermany", "--data_dir=FOLDER", "--calibration_data=FOLDER"], "got both"),
        (["stray"], "expected flags only, got 'stray'"),
        (["--no_such_flag"], "no_such_flag"),
    ],
)
def test_convert_of_bad_input_ends_with_one_line_and_code_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "broken").mkdir(exist_ok=True)
    (folder / "broken" / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    given = [flag.replace("FOLDER", str(folder)) for flag in flags]
    target = [] if any("output_file" in flag for flag in flags) else [f"--output_file={tmp_path / 'x.tflite'}"]
    code, printed = call(folder, capsys, *target, *given)
    assert code == 2
    assert printed.out == ""
    errors = errors_of(printed.err)
    assert len(errors) == 1
    assert errors[0].startswith("cxr_convert: ")
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_convert_as_a_process_keeps_native_noise_off_stderr(folder: Path, tmp_path: Path) -> None:
    flags = [PRESET, f"--keras_model_file={folder / 'model.keras'}", f"--output_file={tmp_path / 'x'}"]
    flags.append("--quant_type=int8")
    code = "import sys; from cxr_compress.cli.convert import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *flags, f"--calibration_data={folder / 'images'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(line.startswith("cxr_convert: ") for line in done.stderr.splitlines())
    assert "cxr_convert: freeze " in done.stderr
    assert done.stdout.rstrip().endswith(INTENDED_USE)
    loud = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=True)
    assert "inference_type" in loud.stderr  # control: the converter does write there


def test_convert_help_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.count("\n") <= 40
    assert main(["--helpfull"]) == 0
    assert "--saved_model_signature_key" in capsys.readouterr().out


def test_convert_with_the_int8_flags_reports_layers_pairs_and_fallback_as_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--output_file={tmp_path / 'x'}", "--quant_type=int8_float_io", f"--calibration_data={folder / 'images'}"]
    code, plain = call(folder, capsys, *flags, "--format=json")
    assert code == 0
    flags += ["--calibration_method=minmax", "--auto_fallback=1", "--layer_report"]
    code, printed = call(folder, capsys, *flags, "--format=json")
    assert code == 0, printed.err
    document = json.loads(printed.out)
    (entry,) = document["files"]
    assert {"local_db", "cumulative_db", "in_float_db", "layer"} <= set(entry["layers"][0])
    floats = {layer["layer"] for layer in entry["layers"] if not layer["is_integer"]}
    assert floats == set(entry["fallback"]["layers"])
    assert read_model(tmp_path / "x").info.recipe == {
        "command": "cxr_convert",
        "calibration_set": "folder",
        "calibration_method": "minmax",
        "auto_fallback": 1,
        "layer_report": True,
        "vary_images": True,
    }
    (before,) = json.loads(plain.out)["files"]
    assert before["sha256"] != entry["sha256"]
    assert not {"layers", "fallback"} & set(before)  # nobody asked


def test_convert_with_a_layer_report_prints_the_layers_above_the_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--output_file={tmp_path / 'x'}", "--quant_type=none,int8_float_io", "--layer_report"]
    flags += [f"--calibration_data={folder / 'images'}", "--float_layers=second"]
    code, printed = call(folder, capsys, *flags)
    assert code == 0, printed.err
    lines = printed.out.splitlines()
    (head,) = [line for line in lines if line.startswith("quant_type")]
    assert [name for name in ("layer", "local dB", "in float dB", "cumulative dB") if name not in head] == []
    rows = [line.split() for line in lines if line.startswith("int8_float_io ")]
    assert {row[1]: row[-1] for row in rows}["second"] == "float"
    assert {row[1]: row[-1] for row in rows}["first"] == "int"
    assert lines[-1] == INTENDED_USE
    code, printed = call(folder, capsys, *flags, "--format=csv")
    assert code == 0
    assert printed.out.splitlines()[0] == "quant_type,layer,operator,local dB,in float dB,cumulative dB,arithmetic"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quant_type=int8", "--auto_fallback=2"], "layers left in float need quant type int8_float_io, got int8"),
        (["--quant_type=int8_float_io", "--float_layers=nothing"], "expected layers of this network, got 'nothing'"),
        (["--quant_type=none", "--layer_report"], "layer_report is for int8, int8_float_io, int16x8, got none"),
        (
            ["--quant_type=int8", "--percentile=0.5"],
            "expected percentile (--percentile) to be above 50 and up to 100; got 0.5",
        ),
        (["--quant_type=int8", "--calibration_method=entropy"], "entropy"),
    ],
)
def test_convert_of_contradicting_int8_flags_ends_with_one_line_and_code_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    given = [flag.replace("FOLDER", str(folder)) for flag in flags]
    target = [f"--output_file={tmp_path / 'x.tflite'}", f"--calibration_data={folder / 'images'}", "--novary_images"]
    code, printed = call(folder, capsys, *target, *given)
    assert (code, printed.out) == (2, "")
    errors = errors_of(printed.err)
    assert len(errors) == 1
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []
