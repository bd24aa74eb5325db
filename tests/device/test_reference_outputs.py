"""Reference images are the same bytes everywhere and differ from one another; their record survives JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.modelinfo import ReferenceOutputs
from cxr_compress.device.preprocess import prepare
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.device.verify import REFERENCE_IMAGES, draw_reference_images
from cxr_compress.errors import ModelFileError
from tests.device.reference.drawing import fingerprint_array

GRAY, COLOR = PreprocessSpec(64, 48), PreprocessSpec(33, 40, color="rgb")
VECTORS = ReferenceOutputs(7, ((0.1, -2.0), (3.0, 1e-9)), ((True, False), (True, True)), 0.05, "some 1.0")


@pytest.mark.parametrize(
    ("spec", "seed", "expected"),
    [
        (GRAY, 0, "372f19cb7ac1e2e472ad75b22fa9457e501c64d442542c991441be56496e5515"),
        (GRAY, 1, "ec454a18f8658311aefd33bd5fd6111a4aad731a5fb3341d276fbef8fa0e1b75"),
        (COLOR, 0, "84efcc02be9b62abe907aadc3cbf8e309f2111f4071c71cc79bb642b39a6463c"),
    ],
    ids=["gray", "gray of another seed", "color"],
)
def test_draw_reference_images_gives_the_recorded_bytes_on_every_machine(
    spec: PreprocessSpec, seed: int, expected: str
) -> None:
    # Recorded with NumPy 1.26 on x86-64; run with NumPy 2 and on aarch64 too.
    assert fingerprint_array(draw_reference_images(spec, seed)) == expected


def test_draw_reference_images_have_the_size_of_the_input_and_pass_unresampled() -> None:
    for spec, shape in ((GRAY, (64, 48)), (COLOR, (33, 40, 3))):
        images = draw_reference_images(spec, 0)
        assert (images.dtype, images.shape) == (np.uint8, (REFERENCE_IMAGES, *shape))
        np.testing.assert_array_equal(prepare(images[0], spec).pixels, images[0])


def test_draw_reference_images_differ_in_more_than_noise() -> None:
    images = draw_reference_images(PreprocessSpec(240, 240), 0).astype(np.float64)
    # Noise is 32 levels flat, a standard deviation of 9 in a field; means and shapes differ by more than that.
    assert np.ptp(images.mean(axis=(1, 2))) > 30
    assert min(np.abs(a - b).mean() for k, a in enumerate(images) for b in images[:k]) > 20


@given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 2**20), count=st.integers(1, 3))
def test_draw_reference_images_any_size_and_seed_is_drawn(height: int, width: int, seed: int, count: int) -> None:
    spec = PreprocessSpec(height, width)
    images = draw_reference_images(spec, seed, count)
    assert images.shape == (count, height, width)
    # The first images of a seed do not depend on how many are drawn.
    np.testing.assert_array_equal(draw_reference_images(spec, seed, 1)[0], images[0])


def test_reference_outputs_round_trip_through_json() -> None:
    assert ReferenceOutputs.from_dict(json.loads(json.dumps(VECTORS.to_dict()))) == VECTORS
    assert VECTORS.shape == (2, 2)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seed": -1}, "a seed and a runtime, got -1"),
        ({"seed": True}, "a seed and a runtime, got True"),
        ({"runtime": 3}, "a seed and a runtime"),
        ({"step": 0.0}, "the step of the reference outputs above 0, got 0.0"),
        ({"step": "1"}, "the step of the reference outputs above 0"),
        ({"logits": [[1.0], [2.0, 3.0]]}, "logits of the reference outputs as rows of equal length"),
        ({"logits": [[1.0, float("nan")], [2.0, 3.0]]}, "logits of the reference outputs as rows"),
        ({"logits": 3}, "logits of the reference outputs as rows"),
        ({"logits": [], "positive": []}, "one decision for each logit"),
        ({"positive": [[1, 0], [1, 0]]}, "positive of the reference outputs as rows"),
        ({"positive": [[True, True]]}, "one decision for each logit"),
        ({"more": 1}, "expected reference outputs with"),
    ],
)
def test_reference_outputs_that_contradict_themselves_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelFileError, match=text):
        ReferenceOutputs.from_dict({**VECTORS.to_dict(), **changes})


def test_reference_outputs_of_another_kind_are_refused() -> None:
    with pytest.raises(ModelFileError, match=r"expected reference outputs with .*, got \[\]"):
        ReferenceOutputs.from_dict([])
