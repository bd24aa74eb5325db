"""The answers of a file are compared with the model's, and a file that only ever says one thing is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.runner import Runner
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite import LiteModel, Parity, convert, freeze
from cxr_compress.lite.parity import Reference, answer, measure_parity, require_answers, seeded_images, spearman
from tests.lite import nets

VALUES = st.lists(st.sampled_from([-1.5, 0.0, 0.25, 2.0, 7.0]), min_size=4, max_size=20)


def flat(*, spread: float) -> Any:
    """image - mean - dense (2) with logits around -100 and 60, which differ by about `spread` between images."""
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, keras.layers.Dense(2, name="logits")(x))
    model.layers[-1].set_weights([np.full((3, 2), spread / 3, np.float32), np.array([-100, 60], np.float32)])
    return model


def test_parity_holds_what_is_computed_by_hand(chain: Any, chain_files: dict[str, LiteModel]) -> None:
    images = nets.batch(32, seed=1)  # as the files were calibrated on: all 32 are compared
    exact = chain(images, training=False).numpy().astype(np.float64)
    made = chain_files["int8"]
    runner = Runner(made.content)
    codes = runner.stored(images)
    logits = runner.output.decode(codes).astype(np.float64)
    found = made.parity
    assert found is not None
    assert (found.images, found.source, found.runtime) == (32, "calibration images", runner.runtime)
    # TensorFlow sums the model in another order than here, in batches: a few float32 roundings of logits around 3.
    close = {"rel": 1e-3}
    assert found.mse == pytest.approx(np.mean((logits - exact) ** 2), **close)
    assert found.snr_db == pytest.approx(10 * np.log10((exact**2).sum() / ((logits - exact) ** 2).sum()), **close)
    unit = [side.ravel() / np.linalg.norm(side) for side in (logits, exact)]
    assert found.cosine == pytest.approx(unit[0] @ unit[1], abs=1e-6)
    assert found.variance == pytest.approx(logits.var(axis=0), **close)
    assert found.model_variance == pytest.approx(exact.var(axis=0), **close)
    assert found.codes == made.audit.output_codes == tuple(len(set(column.tolist())) for column in codes.T)


def test_parity_of_a_finer_type_is_better_and_of_another_models_file_is_bad(
    chain: Any, chain_files: dict[str, LiteModel]
) -> None:
    ratios = {name: made.parity.snr_db for name, made in chain_files.items() if made.parity is not None}
    assert ratios["none"] > 100 > ratios["int8"] > 20
    assert ratios["none"] > ratios["fp16"] > ratios["int16x8"] > ratios["int8"]
    other = convert(nets.depthwise(), "int8", calibration=[nets.batch(32, seed=1)])
    reference = answer(freeze(chain), nets.batch(32, seed=1))
    swapped = measure_parity(other.content, reference)
    assert swapped.snr_db < 5
    assert swapped.lowest_spearman is not None
    assert swapped.lowest_spearman < 0.7


def test_parity_takes_32_images_of_many_and_8_where_kernels_are_slow() -> None:
    made = convert(nets.linear(), ["none", "int8", "int16x8"], calibration=[nets.batch(48, 8)])
    counts = {name: one.parity.images for name, one in made.items() if one.parity is not None}
    assert counts == {"none": 32, "int8": 32, "int16x8": 8}


def test_parity_of_fewer_images_than_ranges_need_is_taken_for_float_types() -> None:
    found = convert(nets.linear(), "none", calibration=[nets.batch(3, 8)]).parity
    assert found is not None
    assert (found.images, found.source) == (3, "calibration images")


def test_parity_without_calibration_images_is_on_seeded_noise_and_says_so() -> None:
    found = convert(nets.linear(), "fp16").parity
    assert found is not None
    assert (found.images, found.source) == (8, "seeded noise")
    assert min(found.codes) == 8
    assert "against the model on 8 of the seeded noise: " in found.to_text()
    assert json.loads(json.dumps(found.to_dict()))["source"] == "seeded noise"


def test_convert_refuses_a_file_that_answers_the_same_to_everything() -> None:
    # Both findings share a step of 160/255; on the images each varies by less than a tenth of it.
    images, model = [nets.batch(32)], flat(spread=0.01)
    with pytest.raises(CompressionError, match=r"int8 is not written: it answers the same to everything, 32 images on"):
        convert(model, "int8", calibration=images)
    fine = convert(model, "none", calibration=images).parity
    assert fine is not None
    assert min(fine.codes) > 16
    # Where it is only to be measured it is made all the same.
    measured = convert(model, "int8", calibration=images, compare=False)
    assert measured.parity is None
    assert measured.audit.output_codes == ()
    # 16 bits tell them apart, and so do 8 where the model does.
    assert convert(model, "int16x8", calibration=images).parity is not None
    assert convert(flat(spread=10.0), "int8", calibration=images).parity is not None


def test_convert_of_a_model_that_answers_the_same_itself_says_that_it_is_the_model() -> None:
    with pytest.raises(CompressionError, match="int8 is not written: the model itself answers the same to all 16 cali"):
        convert(flat(spread=0.0), "int8", calibration=[nets.batch(16)])
    found = convert(flat(spread=0.0), "int8", calibration=[nets.batch(16)], force=True).parity
    assert found is not None
    assert found.codes == (1, 1)
    assert found.spearman == (None, None)
    assert found.lowest_spearman is None
    assert "finding 1, 2 has one answer to all" in found.to_text()


def test_require_answers_of_one_finding_that_stands_still_passes_but_is_named() -> None:
    logits = np.array([[0.0, 1.0], [0.1, 3.0], [0.2, 5.0]])
    found = Parity(3, "calibration images", 0.1, 20.0, 0.9, (None, 1.0), (0.0, 2.0), (0.01, 2.7), (1, 3), "any")
    reference = Reference(np.zeros((3, 1, 1, 1)), logits, "calibration images")
    require_answers(found, reference, "int8")
    assert "finding 1 has one answer to all" in found.to_text()
    with pytest.raises(CompressionError, match="not written"):
        require_answers(replace(found, codes=(1, 1)), reference, "int8")


def test_parity_of_equal_answers_is_json_without_infinity(chain_files: dict[str, LiteModel]) -> None:
    found = chain_files["none"].parity
    assert found is not None
    document = json.loads(json.dumps(replace(found, snr_db=math.inf).to_dict(), allow_nan=False))
    assert document["snr_db"] is None


def test_answer_takes_pixels_as_the_files_do() -> None:
    frozen = freeze(nets.linear())
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    ours, floats = answer(frozen, images, pixels=True), answer(frozen, images.astype(np.float32))
    assert ours.images.dtype == np.uint8
    assert np.array_equal(ours.logits, floats.logits)


def test_seeded_images_are_the_same_again_and_differ_from_each_other() -> None:
    images, again = seeded_images((20, 12, 3)), seeded_images((20, 12, 3))
    assert np.array_equal(images, again)
    assert (images.shape, images.dtype) == ((8, 20, 12, 3), np.float32)
    assert len({image.tobytes() for image in images}) == 8
    pixels = seeded_images((20, 12, 1), pixels=True)
    assert pixels.dtype == np.uint8
    assert all(np.ptp(image) > 10 for image in pixels)


@given(first=VALUES, seed=st.integers(0, 9))
def test_spearman_equals_scipys_with_ties(first: list[float], seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    ours = np.array(first)
    theirs = np.random.default_rng(seed).choice([0.0, 1.0, 2.0], len(first))
    found = spearman(ours, theirs)
    if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(ours, theirs).statistic, abs=1e-12)


def test_spearman_sees_order_only() -> None:
    values = np.array([0.1, 5.0, -2.0, 3.0, 3.5])
    assert spearman(values, np.exp(values)) == pytest.approx(1.0)
    assert spearman(values, -(values**3)) == pytest.approx(-1.0)
    # Ranks 1 2 3 4 and 1 2 4 3: 1 - 6 * 2 / (4 * 15).
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3])) == pytest.approx(0.8)


def parity_with(**changes: Any) -> Parity:
    """A good file on sixteen images, but for what is changed."""
    whole = {"images": 16, "source": "calibration images", "mse": 0.1, "snr_db": 20.0, "cosine": 0.99}
    whole |= {"spearman": (0.9, 0.8), "variance": (1.0, 1.0), "model_variance": (1.0, 1.0), "codes": (9, 9)}
    return Parity(**{**whole, "runtime": "any", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snr_db": -1.5}, r"differ from the model's by as much as they are worth \(-1\.5 dB on 16 images\)"),
        ({"snr_db": float("nan")}, "by as much as they are worth"),
        ({"spearman": (0.9, -0.5)}, r"rank correlation of output 2 \(-0\.50\), 0 or less"),
        ({"spearman": (0.0, None)}, r"rank correlation of output 1 \(0\.00\)"),
        ({"spearman": (0.9, -0.5), "model_variance": (1.0, 1e-12)}, ""),  # it hardly varies: that rank is rounding
        ({"spearman": (0.9, -0.5), "images": 4}, ""),
        ({}, ""),
    ],
)
def test_require_answers_refuses_what_no_rounding_explains(changes: dict[str, Any], message: str) -> None:
    found = parity_with(**changes)
    images = found.images
    logits = np.random.default_rng(0).normal(size=(images, 2))
    reference = Reference(np.zeros((images, 4, 4, 3), np.float32), logits, found.source)
    if message:
        with pytest.raises(CompressionError, match=message):
            require_answers(found, reference, "int16x8")
    require_answers(found, reference, "int16x8", force=bool(message))


def test_require_answers_refuses_a_model_that_tells_no_images_apart_but_not_on_noise() -> None:
    found = parity_with(codes=(1, 1), spearman=(None, None))
    same = Reference(np.zeros((16, 4, 4, 3), np.float32), np.ones((16, 2)), found.source)
    with pytest.raises(CompressionError, match="the model itself answers the same to all 16 calibration images"):
        require_answers(found, same, "none")
    require_answers(found, same, "none", force=True)
    require_answers(parity_with(codes=(1, 1), source="seeded noise"), same, "none")
