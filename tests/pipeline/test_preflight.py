"""What cannot work is known before anything slow: real networks, one layer each that a later stage refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_compress.data import PHANTOM_FINDINGS, write_phantom
from cxr_compress.errors import BudgetError, CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.pipeline import run_recipe
from cxr_compress.pipeline.preflight import check_network
from cxr_compress.pipeline.run import tell_threads, use_threads
from cxr_compress.pipeline.store import StageStore
from cxr_compress.recipe import DEFAULT_THREADS, Recipe, make_recipe

layers = keras.layers
SHAPE = (16, 16, 3)
KINDS = {
    "plain": lambda: [],
    "group": lambda: [layers.GroupNormalization(4, name="odd")],
    "layer": lambda: [layers.LayerNormalization(name="odd")],
    "transpose": lambda: [layers.Conv2DTranspose(8, 3, strides=2, name="odd")],
    "prelu": lambda: [layers.PReLU(shared_axes=[1, 2], name="odd")],
    "rescaling": lambda: [layers.Rescaling(0.5, name="odd")],
    "augmentation": lambda: [
        layers.RandomFlip(),
        layers.RandomRotation(0.1),
        layers.RandomZoom(0.1),
        layers.RandomTranslation(0.1, 0.1),
        layers.RandomContrast(0.1),
        layers.RandomBrightness(0.1, value_range=(-3.0, 3.0)),
    ],
}
QUICK = {
    "dataset": "phantom",
    "input_size": 16,
    **{"match": "position", "preset": "unit", "force": True},  # random weights, in files that say nothing
    "target_macs": None,
    "weight_sparsity": 0.0,
    "calibration_images": 16,
    "bootstrap_samples": 20,
}


def network(kind: str) -> keras.Model:
    """Augmentation and rescaling stand in front, other layers behind the first convolution."""
    image = tensor = keras.Input(SHAPE, name="image")
    in_front = kind in ("rescaling", "augmentation")
    for layer in KINDS[kind]() if in_front else ():
        tensor = layer(tensor)
    tensor = layers.Conv2D(8, 3, padding="same", name="stem")(tensor)
    for layer in () if in_front else KINDS[kind]():
        tensor = layer(tensor)
    tensor = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu", name="second")(tensor))
    return keras.Model(image, layers.Dense(len(PHANTOM_FINDINGS), name="logits", dtype="float32")(tensor))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    for kind in KINDS:
        network(kind).save(folder / f"{kind}.keras")
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        network("plain").save(folder / "mixed.keras")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    return folder


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, n_train=60, n_test=20, size=32)
    return folder


def check(file: Path | None, folder: Path, log=lambda line: None, **changes):
    recipe = make_recipe("tiny_chexnet", {**QUICK, **changes})
    return check_network(recipe, SHAPE, len(PHANTOM_FINDINGS), file, StageStore(folder, log))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("group", {}, r"int8 fails for this network: .*SQUARE .*'model\w*/odd/.*export fp16 or dynamic"),
        ("group", {"quant_type": "int16x8"}, r"int16x8 fails for this network: .* no kernel for SQUARE \(layer odd"),
        (
            "layer",
            {"quant_type": "int16x8"},
            r"int16x8 .*crashes with SIGABRT in operator \d+ of \d+, \w+ 'model\w*/odd/",
        ),
        ("prelu", {"qat": "always"}, r"cannot take odd \(PReLU: no int8 rule.*--qat=auto or --qat=never"),
        ("transpose", {"qat": "always"}, r"cannot take odd \(Conv2DTranspose: no int8 rule.*--qat=auto"),
        ("layer", {"qat": "always"}, r"cannot take odd \(LayerNormalization: no int8 rule.*--qat=auto"),
    ],
)
def test_network_that_will_fail_is_refused_before_training(files, tmp_path, kind, changes, message):
    with pytest.raises(CompressionError, match=f"^nothing was trained: .*{message}"):
        check(files / f"{kind}.keras", tmp_path, **changes)
    assert list(tmp_path.glob("manifests/*.json")) == []


@pytest.mark.parametrize("kind", ["plain", "rescaling", "augmentation"])
def test_network_that_will_work_passes_with_training_in_int8(files, tmp_path, kind):
    log: list[str] = []
    found = check(files / f"{kind}.keras", tmp_path, log.append, qat="always")
    assert found == dataclasses.replace(found, qat="", int8="")
    check(files / f"{kind}.keras", tmp_path, log.append, qat="always")
    assert log[-1] == "preflight: done before, kept"
    check(files / f"{kind}.keras", tmp_path, log.append, quant_type="int8_float_io")
    assert log[-1].startswith("preflight: finished")


def test_mixed_precision_passes_or_is_refused_with_its_layers(files, tmp_path):
    try:
        said = check(files / "mixed.keras", tmp_path, qat="auto").qat
    except CompressionError as error:
        said = str(error)
    assert "stem" in said or not said


def test_auto_says_why_training_in_int8_is_left_out(files, tmp_path):
    found = check(files / "transpose.keras", tmp_path)
    assert "cannot take odd (Conv2DTranspose: no int8 rule for this type)" in found.qat
    assert check(files / "transpose.keras", tmp_path, qat="never").qat == ""


def test_float_file_of_a_network_without_int8_form_goes_on_without_the_reference(files, tmp_path):
    assert "SQUARE" in check(files / "group.keras", tmp_path, quant_type="fp16").int8
    assert check(files / "plain.keras", tmp_path, quant_type="fp16").int8 == ""


def test_budget_that_cannot_be_reached_is_known_first(files, tmp_path):
    with pytest.raises(BudgetError, match="cannot be reached"):
        check(files / "plain.keras", tmp_path, target_macs=0.001)


def test_run_with_auto_goes_on_without_training_in_int8_and_reports_why(files, phantom, tmp_path):
    log: list[str] = []
    # No drop at all: int8 misses it wherever one pair of images changes places, so that training would be wanted.
    recipe = make_recipe("given", {**QUICK, "max_auroc_drop": 0.0, "calibration_method": "minmax"})
    where = {"data_dir": phantom, "keras_model_file": files / "transpose.keras"}
    report = run_recipe(recipe, output_dir=tmp_path, log=log.append, **where)
    told = [line for line in log if line.startswith("qat=auto: ")]
    assert len(told) == 1
    assert "Conv2DTranspose" in told[0]
    facts = report["facts"]["quantization"]
    assert facts["used"] == "after training"
    assert ("Conv2DTranspose" in facts.get("qat_not_taken", "")) == bool(facts["broken"])
    assert log.index(next(line for line in log if "preflight" in line)) < log.index("base: started")
    manifest = json.loads((tmp_path / "manifests" / "base.json").read_text())
    assert manifest["threads"] >= 1


def test_run_of_a_float_type_without_int8_form_ends_with_two_files(files, phantom, tmp_path):
    recipe = make_recipe("given", {**QUICK, "quant_type": "fp16"})
    report = run_recipe(recipe, data_dir=phantom, output_dir=tmp_path, keras_model_file=files / "group.keras")
    assert [row["name"] for row in report["rows"]] == ["given_fp32", "given_fp16"]


def test_command_catches_a_crash_in_a_process_of_its_own(phantom, tmp_path):
    flags = ["--model=tiny_chexnet", "--input_size=32", "--dataset=phantom"]
    flags += [f"--data_dir={phantom}", f"--output_dir={tmp_path}", "--target_macs=none"]
    # The quantizer and the runtime have processes of their own anyway; here TensorFlow itself aborts.
    code = (
        "import os, sys\nfrom cxr_compress.cli.compress import main\n"
        "import cxr_compress.pipeline.preflight as preflight\n"
        "preflight.build = lambda *_: os.abort()\nsys.exit(main())"
    )
    command = [sys.executable, "-c", code, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    lines = [line for line in done.stderr.splitlines() if line.startswith("cxr_compress: ")]
    assert (done.returncode, done.stdout) == (2, "")
    assert "way: training in base" in lines[0]
    assert "preflight: started" in lines[1]
    assert lines[2].startswith("cxr_compress: nothing was trained: ")
    assert "ended its process with SIGABRT" in lines[2]
    assert len(lines) == 3


def test_threads_are_part_of_the_recipe_and_of_what_stages_depend_on(tmp_path):
    assert Recipe().run.num_threads == DEFAULT_THREADS == 2
    kept = {"format": 1, "seed": 0}
    assert Recipe.from_json(json.dumps(kept)) == Recipe()  # a recipe from before the field
    with pytest.raises(CompressionError, match=r"run.num_threads \(--num_threads\) to be 1 or more; got 0"):
        Recipe().with_values(num_threads=0)
    log: list[str] = []
    tell_threads(tmp_path / "recipe.json", Recipe(), log.append)
    (tmp_path / "recipe.json").write_text(json.dumps(kept))
    tell_threads(tmp_path / "recipe.json", Recipe(), log.append)
    assert log == []
    tell_threads(tmp_path / "recipe.json", Recipe().with_values(num_threads=3), log.append)
    assert log == [
        "threads: this folder's run had 2, this one has 3, which gives other bytes: stages are done again "
        "(--num_threads=2 keeps them)"
    ]


def test_use_threads_says_where_tensorflow_has_others_already():
    import tensorflow as tf

    tf.constant(1.0) + 1.0  # it computes, so that its threads are there
    log: list[str] = []
    had = use_threads(1234, log.append)
    assert had != 1234
    assert len(log) == 1
    assert f"with {had} threads; the recipe's 1234 does not hold" in log[0]
    assert use_threads(had, log.append) == had
    assert len(log) == 1


def test_use_threads_limits_the_products_of_numpy_too():
    """They refit layers, and one core summed otherwise than two before: another `repaired.keras`."""
    import ctypes

    import numpy as np

    (file,) = (Path(np.__file__).parent.parent / "numpy.libs").glob("*openblas*")
    library = ctypes.CDLL(str(file))
    before = library.scipy_openblas_get_num_threads64_()
    try:
        for count in (1, 3):
            use_threads(count, lambda line: None)
            assert library.scipy_openblas_get_num_threads64_() == 1
    finally:
        library.scipy_openblas_set_num_threads64_(ctypes.c_int(before))
