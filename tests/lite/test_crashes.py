"""Graphs on which the runtime or the quantizer aborts: an error that names the operator, in this very process."""

from __future__ import annotations

import os

import pytest

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelInfo, pack_model, read_model
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import ModelFileError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert
from cxr_compress.lite.exporter import Exporter
from cxr_compress.lite.lowering import _guarded, lower
from cxr_compress.lite.parity import require_runs
from tests.lite import nets

layers = keras.layers


@pytest.fixture(scope="module")
def normalized():
    """LayerNormalization in int16x8 aborts in the runtime (LiteRT#4383); in other types it runs."""
    image = keras.Input((16, 16, 3))
    tensor = layers.LayerNormalization(name="norm")(layers.Conv2D(8, 3, name="conv")(image))
    return nets.settle(keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(tensor))))


def test_file_that_crashes_the_runtime_is_not_written_and_the_operator_is_named(normalized):
    calibration = [nets.batch(16)]
    with pytest.raises(UnsupportedLayerError) as caught:
        convert(normalized, "int16x8", calibration=calibration, calibration_method="minmax")
    message = str(caught.value)
    assert message.startswith("int16x8 is not written: the TFLite runtime crashes with SIGABRT in operator ")
    assert "/norm/" in message
    assert "another --quant_type" in message
    assert convert(normalized, "int8", calibration=calibration, calibration_method="minmax").quant_type == "int8"


def test_classifier_refuses_a_foreign_file_that_crashes_the_runtime(normalized, tmp_path, monkeypatch):
    with monkeypatch.context() as unguarded:  # a file from elsewhere was not tried
        unguarded.setattr("cxr_compress.lite.exporter.require_runs", lambda content, quant_type: None)
        made = convert(normalized, "int16x8", calibration=[nets.batch(16)], calibration_method="minmax", compare=False)
    assert Exporter.make.__globals__["require_runs"] is require_runs
    info = ModelInfo(
        model_name="bad",
        labels=("a", "b"),
        preprocess=PreprocessSpec(16, 16),
        logit_slope=(1.0, 1.0),
        logit_offset=(0.0, 0.0),
        thresholds=(0.5, 0.5),
        threshold_source="none",
        quant_type="int16x8",
    )
    path = tmp_path / "bad.tflite"
    path.write_bytes(pack_model(made.content, info))
    with pytest.raises(ModelFileError, match=r"the TFLite runtime crashes with SIGABRT in operator \d+ of \d+, \w+ '"):
        Classifier(read_model(path))


def test_crash_of_the_quantizer_names_the_operator():
    from cxr_compress.lite.freeze import freeze

    content = lower(freeze(nets.chain()), "none")

    def abort(part):
        if part == content:
            os.abort()

    with pytest.raises(
        UnsupportedLayerError, match=r"the converter crashes with SIGABRT in operator \d+ of \d+, \w+ '"
    ):
        _guarded(content, "int8", abort)
    assert _guarded(content, "int8", lambda part: part[:4]) == content[:4]
