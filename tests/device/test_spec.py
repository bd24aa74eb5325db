from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.spec import IMAGENET_MEAN, IMAGENET_STD, PRESETS, PreprocessSpec
from cxr_compress.errors import DataError


def test_spec_defaults_are_chexnets() -> None:
    spec = PreprocessSpec(224, 224)
    assert spec.input_shape == (224, 224, 3)
    assert (spec.mean, spec.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    "spec",
    [
        PreprocessSpec(224, 160),
        PreprocessSpec(64, 64, color="rgb", bit_depth=12),
        PreprocessSpec(64, 64, channels=1, mean=(0.5,), std=(0.25,)),
        PreprocessSpec(64, 64, order="bgr", input="uint8"),
        *(PreprocessSpec.preset(name, 32, 48) for name in PRESETS),
    ],
)
def test_spec_survives_json(spec: PreprocessSpec) -> None:
    assert PreprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_spec_numpy_numbers_become_plain_ones() -> None:
    spec = PreprocessSpec(np.int64(8), np.int32(8), mean=np.zeros(3, np.float32), std=np.ones(3, np.float32))  # type: ignore[arg-type]
    assert json.dumps(spec.to_dict())
    assert hash(spec) == hash(PreprocessSpec(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"height": 0}, "height as a whole number above 0, got 0"),
        ({"width": 8.0}, r"width as a whole number above 0, got 8\.0"),
        ({"height": True}, "height as a whole number above 0, got True"),
        ({"color": "grey"}, "expected color 'gray' or 'rgb', got 'grey'"),
        ({"color": "rgb", "channels": 1, "mean": [0], "std": [1]}, "color 'rgb' needs channels=3, got 1"),
        ({"channels": 1}, r"expected mean as 1 finite numbers \(one a channel\)"),
        ({"resize": "bilinear"}, "expected resize 'area', got 'bilinear'"),
        ({"order": "grb"}, "expected order 'rgb' or 'bgr' and input 'float32' or 'uint8', got 'grb'"),
        ({"input": "int8"}, "got 'rgb' and 'int8'"),
        ({"order": "bgr", "channels": 1, "mean": [0], "std": [1]}, "order 'bgr' needs channels=3, got 1"),
        ({"bit_depth": 7}, "expected a bit_depth from 8 to 16, got 7"),
        ({"bit_depth": 17}, "expected a bit_depth from 8 to 16, got 17"),
        ({"std": [1, 0, 1]}, "expected every std above 0"),
        ({"mean": [0, float("nan"), 0]}, "expected mean as 3 finite numbers"),
        ({"mean": "abc"}, "expected mean as 3 numbers"),
        ({"mean": None}, "expected mean as 3 numbers"),
        ({"colour": "gray"}, r"unknown keys \['colour'\]; known are \['bit_depth'"),
    ],
)
def test_spec_wrong_field_is_named_with_what_arrived(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        PreprocessSpec.from_dict({"height": 8, "width": 8, **fields})


def test_spec_missing_size_is_named() -> None:
    with pytest.raises(DataError, match=r"missing keys \['height', 'width'\]"):
        PreprocessSpec.from_dict({})


def test_spec_dict_of_a_file_made_before_loads_and_stays_what_it_was() -> None:
    old = {
        "height": 224,
        "width": 160,
        "channels": 3,
        "color": "gray",
        "bit_depth": 16,
        "resize": "area",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    spec = PreprocessSpec.from_dict(old)
    assert spec == PreprocessSpec(224, 160)
    assert spec.to_dict() == old  # so an old file that is packed again keeps its bytes
    assert "input" in replace(spec, input="uint8").to_dict()  # control: what says something is written


def test_spec_input_shape_of_pixels_is_one_channel_for_gray_and_three_for_rgb() -> None:
    assert PreprocessSpec(8, 9, input="uint8").input_shape == (8, 9, 1)
    assert PreprocessSpec(8, 9, color="rgb", input="uint8").input_shape == (8, 9, 3)
    assert PreprocessSpec(8, 9).input_shape == (8, 9, 3)


def test_spec_unknown_preset_lists_them() -> None:
    with pytest.raises(DataError, match="a preset of imagenet_torch, unit, tf, caffe, xrv, raw; got 'torch'"):
        PreprocessSpec.preset("torch", 8, 8)
