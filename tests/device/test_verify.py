"""Verifying a file: what it answers here against what it answered where it was made.

The reference files were made with LiteRT; these tests also run where only tflite-runtime 2.14 is installed, on x86 and
on aarch64, so passing there is the claim itself: at most 3 codes apart, decisions equal.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.modelfile import ModelFile, ModelInfo, pack_model, read_model
from cxr_compress.device.modelinfo import ReferenceOutputs
from cxr_compress.device.runner import Runner
from cxr_compress.device.verify import MAX_STEPS, Verification, _inputs, compare, record, verify_model
from cxr_compress.errors import ModelFileError
from tests.device.reference import FLOAT_MODEL, INT8_MODEL


def reference_of(file: ModelFile) -> ReferenceOutputs:
    assert file.info.reference is not None
    return file.info.reference


def with_reference(file: ModelFile, **changes: Any) -> ModelFile:
    reference = dataclasses.replace(reference_of(file), **changes)
    return dataclasses.replace(file, info=dataclasses.replace(file.info, reference=reference))


def shifted(file: ModelFile, by: float) -> ModelFile:
    """The file with one recorded logit moved, its decision kept."""
    logits = [list(row) for row in reference_of(file).logits]
    logits[1][0] += by
    return with_reference(file, logits=tuple(map(tuple, logits)))


# --- the reference files, on whatever runs here
# --------------------------------------------------------------------------


@pytest.mark.parametrize("path", [INT8_MODEL, FLOAT_MODEL], ids=["int8", "float"])
def test_verify_reference_file_passes_on_this_runtime(path: Path) -> None:
    found = verify_model(path)
    assert found.passed, found.to_text()
    assert (found.images, found.decisions, found.logits_off, found.flipped) == (4, 8, 0, 0)
    assert found.made_with.startswith("ai-edge-litert")
    assert found.to_text().startswith("passed: 4 reference images on ")


@pytest.mark.parametrize("path", [INT8_MODEL, FLOAT_MODEL], ids=["int8", "float"])
def test_reference_record_depends_on_the_image(path: Path) -> None:
    logits = np.asarray(reference_of(read_model(path)).logits)
    # Each finding spreads over more than ten times what a machine may be off; and both decisions occur.
    found = verify_model(path)
    assert (np.ptp(logits, axis=0) > 10 * found.tolerance).all()
    assert len(set(np.asarray(reference_of(read_model(path)).positive).ravel())) == 2


def test_verify_control_the_weights_of_another_model_fail() -> None:
    """The int8 network run against the float network's record, whose logits are several tenths apart."""
    float_file = read_model(FLOAT_MODEL)
    found = verify_model(dataclasses.replace(float_file, content=read_model(INT8_MODEL).content))
    assert not found.passed
    assert found.logits_off > 0
    assert found.to_text().startswith("FAILED: 4 reference images")


def test_verify_control_images_of_another_seed_fail() -> None:
    assert not verify_model(with_reference(read_model(INT8_MODEL), seed=1)).passed


# --- tolerances -------------------------------------------------------------------------------------------------------


def test_verify_int8_allows_three_codes_and_not_four() -> None:
    file = read_model(INT8_MODEL)
    step = reference_of(file).step
    assert step is not None
    exact = with_exact_record(file)
    assert verify_model(exact).largest_difference == 0
    assert verify_model(shifted(exact, 3 * step)).passed
    assert verify_model(shifted(exact, 3 * step)).tolerance == pytest.approx(MAX_STEPS * step)
    # 3.5 and not 4: a record is in whole codes in real files, but the limit itself lies at 3.
    assert verify_model(shifted(exact, 3.5 * step)).logits_off == 1


def test_verify_float_allows_a_thousandth_of_the_spread() -> None:
    exact = with_exact_record(read_model(FLOAT_MODEL))
    spread = float(np.ptp(np.asarray(reference_of(exact).logits), axis=0).max())
    assert verify_model(exact).tolerance == pytest.approx(1e-3 * spread, rel=1e-6)
    assert verify_model(shifted(exact, 0.9e-3 * spread)).passed
    assert verify_model(shifted(exact, 1.1e-3 * spread)).logits_off == 1


def with_exact_record(file: ModelFile) -> ModelFile:
    """The file with the record of this machine's runtime, so that what is shifted is all that differs."""
    reference = record(file.content, file.info, step=reference_of(file).step)
    return dataclasses.replace(file, info=dataclasses.replace(file.info, reference=reference))


@pytest.mark.parametrize("threshold", [0.0, 1.0, 0.5])
def test_compare_judges_decisions_only_beyond_the_tolerance(threshold: float) -> None:
    """One finding with step 0.1, so the tolerance is 0.3; a threshold of 0.5 lies at logit 0."""
    reference = ReferenceOutputs(0, ((0.29,), (0.31,), (-0.31,)), ((True,), (True,), (False,)), 0.1, "some 1.0")
    info = plain_info(reference, threshold)
    flipped = ~np.asarray(reference.positive)
    found = compare(info, np.asarray(reference.logits), flipped, "other 2.0")
    # No logit lies near a threshold that no logit reaches.
    expected = (1, 2) if threshold == 0.5 else (0, 3)
    assert (found.too_close, found.flipped) == expected
    assert not found.passed
    assert compare(info, np.asarray(reference.logits), np.asarray(reference.positive), "other 2.0").passed


def test_compare_allows_half_more_than_what_kernels_differed_by_where_it_was_made() -> None:
    logits, positive = ((1.0,), (2.0,)), ((True,), (True,))
    for kernels, allowed in ((0.0, 0.3), (0.1, 0.3), (0.8, 1.2)):
        info = plain_info(ReferenceOutputs(0, logits, positive, 0.1, "some 1.0", kernels), 0.5)
        inside, outside = (np.asarray(logits) + allowed * share for share in (0.99, 1.01))
        assert compare(info, inside, np.asarray(positive), "other 2.0").passed
        assert not compare(info, outside, np.asarray(positive), "other 2.0").passed


def test_record_notes_what_the_other_kernels_of_the_runtime_answer() -> None:
    file = read_model(INT8_MODEL)
    inputs = _inputs(file.info, 0, 4)
    ours, others = (Runner(file.content, xnnpack=xnnpack)(inputs) for xnnpack in (True, False))
    assert record(file.content, file.info).kernels == pytest.approx(np.abs(ours - others).max())


def test_compare_margin_is_that_of_the_calibrated_probability() -> None:
    """slope 2, offset -1: probability 0.5 lies at logit 0.5; a negative slope turns the order, not the margin."""
    reference = ReferenceOutputs(0, ((0.6,), (1.0,)), ((True,), (True,)), 0.1, "some 1.0")
    for slope, offset in ((2.0, -1.0), (-2.0, 1.0)):
        info = dataclasses.replace(plain_info(reference, 0.5), logit_slope=(slope,), logit_offset=(offset,))
        found = compare(info, np.asarray(reference.logits), np.asarray([[False], [True]]), "other 2.0")
        assert (found.too_close, found.flipped) == (1, 0)


def test_compare_slope_zero_never_has_a_close_decision() -> None:
    reference = ReferenceOutputs(0, ((0.6,), (1.0,)), ((True,), (True,)), 0.1, "some 1.0")
    info = dataclasses.replace(plain_info(reference, 0.5), logit_slope=(0.0,))
    assert compare(info, np.asarray(reference.logits), np.asarray(reference.positive), "other 2.0").passed


def test_compare_not_a_number_fails() -> None:
    reference = ReferenceOutputs(0, ((1.0,), (2.0,)), ((True,), (True,)), None, "some 1.0")
    logits = np.array([[1.0], [np.nan]])
    found = compare(plain_info(reference, 0.5), logits, np.asarray([[True], [True]]), "other 2.0")
    assert not found.passed
    assert found.logits_off == 1
    assert found.to_dict()["largest_difference"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_compare_record_that_does_not_depend_on_the_image_proves_nothing() -> None:
    reference = ReferenceOutputs(0, ((1.0,), (1.0,)), ((True,), (True,)), 0.1, "some 1.0")
    found = compare(
        plain_info(reference, 0.5), np.asarray(reference.logits), np.asarray(reference.positive), "other 2.0"
    )
    assert (found.varied, found.passed) == (False, False)
    assert found.to_text().startswith("FAILED: the recorded logits are the same for every image")


def plain_info(reference: ReferenceOutputs, threshold: float) -> ModelInfo:
    """One finding, calibrated as its logits are."""
    info = read_model(INT8_MODEL).info
    one: dict[str, Any] = {"logit_slope": (1.0,), "logit_offset": (0.0,), "thresholds": (threshold,)}
    return dataclasses.replace(info, labels=("opacity",), **one, reference=reference)


# --- recording --------------------------------------------------------------------------------------------------------


def test_record_reads_back_exactly_from_a_file(tmp_path: Path) -> None:
    file = read_model(INT8_MODEL)
    reference = record(file.content, file.info)
    path = tmp_path / "model.tflite"
    path.write_bytes(pack_model(file.content, dataclasses.replace(file.info, reference=reference)))
    assert read_model(path).info.reference == reference
    found = verify_model(path)
    assert isinstance(found, Verification)
    # Not "nearly": what is stored reads back as the float32 that was computed.
    assert found.largest_difference == 0


def test_record_names_the_step_of_the_output_or_the_one_given() -> None:
    int8, flt = read_model(INT8_MODEL), read_model(FLOAT_MODEL)
    expected = json.loads((INT8_MODEL.parent / "expected.json").read_text())[INT8_MODEL.name]["output_scale"]
    assert record(int8.content, int8.info).step == pytest.approx(expected)
    assert record(flt.content, flt.info).step is None
    assert record(flt.content, flt.info, step=0.5).step == 0.5


def test_verify_damaged_file_is_refused_before_it_runs(tmp_path: Path) -> None:
    data = bytearray(INT8_MODEL.read_bytes())
    data[3000] ^= 1
    path = tmp_path / "model.tflite"
    path.write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match="does not match its recorded sha256"):
        verify_model(path)
