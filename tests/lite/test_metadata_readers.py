"""Files as others read them: tflite-support's own reader and Task library, and MediaPipe.

They live in an environment of their own, whose Python CXR_METADATA_PYTHON names (mediapipe, tflite-support 0.4.4, which
needs libusb-1.0 and Python 3.11 or older); without it, or without one of the two, these tests skip by name.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelInfo, read_model
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.lite import convert, pack_file
from tests.device.reference import CAM_MODEL, FLOAT_MODEL, INT8_MODEL
from tests.lite import nets

READER = Path(__file__).resolve().parents[1] / "metadata_env" / "read_metadata.py"
# Flat gray of the middle: readers that convert colors and resize leave it as it is.
LEVELS = (40, 90, 128, 200)


def read_with(kind: str, path: Path, size: int = 32) -> Any:
    python = os.environ.get("CXR_METADATA_PYTHON")
    if not python:
        pytest.skip("no readers of TFLite metadata: set CXR_METADATA_PYTHON to a Python with mediapipe, tflite-support")
    images = path.with_suffix(".npy")
    np.save(images, np.stack([np.full((size, size, 3), level, np.uint8) for level in LEVELS]))
    done = subprocess.run(
        [python, str(READER), kind, str(path), str(images)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    if isinstance(said, dict) and "missing" in said:
        pytest.skip(f"{kind} cannot be imported by CXR_METADATA_PYTHON: {said['missing']}")
    return said


def packed(folder: Path, source: Path, **fields: Any) -> Path:
    file = read_model(source)
    path = folder / "model.tflite"
    path.write_bytes(pack_file(file.content, dataclasses.replace(file.info, model_card="", **fields)))
    return path


def own_scores(path: Path, size: int = 32) -> list[dict[str, float]]:
    classifier = Classifier(path, gate="off")
    found = [classifier.predict(np.full((size, size), level, np.uint8)) for level in LEVELS]
    return [dict(zip(one.labels, map(float, one.probabilities), strict=True)) for one in found]


def assert_same_scores(theirs: list[dict[str, float]], ours: list[dict[str, float]]) -> None:
    """Their float32 sigmoid and ours, after float32 kernels: 1e-5, where the scores spread over tenths."""
    assert [set(one) for one in theirs] == [set(one) for one in ours]
    for label in ours[0]:
        assert np.ptp([one[label] for one in ours]) > 0.05  # so that equal scores mean something
        np.testing.assert_allclose([one[label] for one in theirs], [one[label] for one in ours], atol=1e-5)


# --- tflite-support ---------------------------------------------------------------------------------------------------


def test_displayer_reads_all_that_the_standard_knows(tmp_path: Path) -> None:
    said = read_with("displayer", packed(tmp_path, INT8_MODEL))
    assert said["files"] == ["cxr_compress.json", "labels.txt", "score_calibration.txt", "model_card.md"]
    assert said["labels"] == "opacity\nlarge heart\n"
    found = said["metadata"]
    # What is written is what a parser of that version understands, by the standard's own rule.
    assert found["min_parser_version"] == said["min_version"] == "1.0.0"
    assert found["name"] == "reference_int8"
    assert "not a diagnosis" in found["description"]
    assert "not a medical device" in found["license"]
    assert {one["name"] for one in found["associated_files"]} == {"model_card.md"}
    (graph,) = found["subgraph_metadata"]
    (image,) = graph["input_tensor_metadata"]
    assert image["content"]["content_properties"] == {
        "color_space": "RGB", "default_size": {"width": 32, "height": 32},
    }  # fmt: skip
    (unit,) = image["process_units"]
    np.testing.assert_allclose(unit["options"]["mean"], [123.675, 116.28, 103.53], rtol=1e-6)
    np.testing.assert_allclose(unit["options"]["std"], [58.395, 57.12, 57.375], rtol=1e-6)
    # The ends of the pixels, normalized: (0 - 123.675) / 58.395 and (255 - 123.675) / 58.395 in red.
    np.testing.assert_allclose([image["stats"][end][0] for end in ("min", "max")], [-2.1179, 2.2489], atol=1e-4)
    (logits,) = graph["output_tensor_metadata"]
    assert [unit["options_type"] for unit in logits["process_units"]] == ["ScoreCalibrationOptions"]
    assert {one["name"]: one["type"] for one in logits["associated_files"]} == {
        "labels.txt": "TENSOR_AXIS_LABELS", "score_calibration.txt": "TENSOR_AXIS_SCORE_CALIBRATION",
    }  # fmt: skip


def test_displayer_reads_both_outputs_of_a_file_with_a_map(tmp_path: Path) -> None:
    said = read_with("displayer", packed(tmp_path, CAM_MODEL))
    outputs = {one["name"]: one for one in said["metadata"]["subgraph_metadata"][0]["output_tensor_metadata"]}
    assert set(outputs) == {"logits", "cam"}
    assert "associated_files" in outputs["logits"]
    assert "associated_files" not in outputs["cam"]


def test_displayer_names_color_gray_or_nothing_where_the_standard_has_no_word(tmp_path: Path) -> None:
    file = read_model(FLOAT_MODEL)
    said = read_with("displayer", packed(tmp_path, FLOAT_MODEL, preprocess=PreprocessSpec.preset("caffe", 32, 32)))
    (image,) = said["metadata"]["subgraph_metadata"][0]["input_tensor_metadata"]
    assert "color_space" not in image["content"]["content_properties"]  # UNKNOWN is the default and is left out
    assert file.info.preprocess.order == "rgb"


def test_task_library_gives_our_probabilities(tmp_path: Path) -> None:
    path = packed(tmp_path, FLOAT_MODEL)
    assert_same_scores(read_with("task", path), own_scores(path))


# --- MediaPipe --------------------------------------------------------------------------------------------------------


def test_mediapipe_gives_our_probabilities(tmp_path: Path) -> None:
    path = packed(tmp_path, FLOAT_MODEL, preprocess=PreprocessSpec.preset("tf", 32, 32))
    assert_same_scores(read_with("mediapipe", path), own_scores(path))


def test_mediapipe_control_another_calibration_gives_other_probabilities(tmp_path: Path) -> None:
    path = packed(tmp_path, FLOAT_MODEL, preprocess=PreprocessSpec.preset("tf", 32, 32))
    ours = own_scores(path)
    theirs = read_with("mediapipe", packed(tmp_path, FLOAT_MODEL, logit_slope=(0.3, 0.3),
                                           preprocess=PreprocessSpec.preset("tf", 32, 32)))  # fmt: skip
    assert max(abs(a["opacity"] - b["opacity"]) for a, b in zip(theirs, ours, strict=True)) > 0.05


def test_mediapipe_runs_imagenet_normalization_from_a_file_that_takes_pixels(tmp_path: Path) -> None:
    """MediaPipe refuses a mean for each channel; a file that normalizes by itself is the way around."""
    refused = read_with("mediapipe", packed(tmp_path, FLOAT_MODEL))
    assert "Per-channel image normalization is not available" in refused["refused"]
    model = nets.chain()
    size, count = model.input_shape[1], model.output_shape[1]
    spec = PreprocessSpec(size, size, color="rgb", input="uint8")
    images = np.random.default_rng(0).integers(0, 256, (32, size, size, 3), np.uint8)
    lite = convert(model, "int8_float_io", calibration=[images], calibration_steps=32, pixels=spec)
    one = (1.0,) * count
    info = ModelInfo("m", tuple("abcdefgh"[:count]), spec, one, (0.0,) * count, (0.5,) * count, "none", lite.quant_type)
    path = tmp_path / "pixels.tflite"
    path.write_bytes(pack_file(lite.content, info))
    theirs, ours = read_with("mediapipe", path, size), own_scores(path, size)
    for label in info.labels:
        np.testing.assert_allclose([a[label] for a in theirs], [b[label] for b in ours], atol=1e-5)
    assert np.ptp([b["a"] for b in ours]) > 0.01
