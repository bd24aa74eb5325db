from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.spec import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
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
