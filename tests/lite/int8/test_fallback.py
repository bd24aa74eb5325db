"""Layers left in float: which, what it gains, what it costs."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite import LayerSnr, LiteModel, convert
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.int8.layer_snr import Fallback, FileFacts, choose_float_layers, shortlist
from tests.lite import nets
from tests.lite.conftest import run


def layer(name: str, index: int, curable: float, *, is_integer: bool = True) -> LayerSnr:
    return LayerSnr(name, f"model/{name}/op", "ADD", index, 30.0, 35.0, 20.0, is_integer, curable)


FOUND = [
    layer("rounded", 0, 0.0),
    layer("norm", 1, 0.03),
    layer("norm", 2, 0.03),  # MUL and ADD count together
    layer("conv", 3, 0.05),
    layer("float", 4, 0.5, is_integer=False),
    layer("late", 5, 0.01),
]


@pytest.fixture(scope="module")
def uneven() -> Any:
    """A dense block whose second batch norm has one loud channel: its gamma leaves the others no codes."""
    model = nets.dense_block()
    norm = [one for one in model.layers if isinstance(one, keras.layers.BatchNormalization)][1]
    gamma, beta, mean, variance = norm.get_weights()
    gamma[0] *= 200
    norm.set_weights([gamma, beta, mean, variance])
    head = model.get_layer("logits")
    kernel, bias = head.get_weights()
    kernel[0] /= 200  # what it adds to the logits stays
    head.set_weights([kernel, bias])
    return model


@pytest.fixture(scope="module")
def files(uneven: Any) -> dict[str, LiteModel]:
    # Folded into the next kernel, the loud channel would have steps of its own, and nothing were left to gain.
    options: dict[str, Any] = {"calibration": [nets.batch(32, seed=1)], "calibration_method": "minmax"}
    options["fold_scales"] = False
    made = convert(uneven, ["none", "int8_float_io"], auto_fallback=1, layer_report=True, **options)
    plain = convert(uneven, "int8_float_io", **options)
    return {**made, "plain": plain}


def test_shortlist_takes_those_with_most_noise_to_lose_and_no_others() -> None:
    assert shortlist(FOUND, 1) == ("norm",)
    assert shortlist(FOUND, 10) == ("norm", "conv", "late")
    assert shortlist(FOUND[::-1], 2) == ("norm", "conv")


def test_choose_float_layers_takes_those_that_gain_most_at_the_output() -> None:
    ratios = {"norm": 21.0, "conv": 19.0, "late": 30.0}
    tried: list[str] = []

    def trial(name: str) -> float:
        tried.append(name)
        return ratios[name]

    assert choose_float_layers(FOUND, 3, trial, 20.0) == ("late", "norm")  # conv loses by it
    assert tried == ["norm", "conv", "late"]
    assert choose_float_layers(FOUND, 1, trial, 20.0) == ("late",)
    assert choose_float_layers(FOUND, 2, trial, 40.0) == ()
    tried.clear()
    assert choose_float_layers(FOUND, 0, trial, 20.0) == ()
    assert tried == []


def test_convert_with_auto_fallback_gains_at_the_output_and_says_what_it_costs(
    uneven: Any, files: dict[str, LiteModel]
) -> None:
    made, plain = files["int8_float_io"], files["plain"]
    fallback = made.fallback
    assert fallback is not None
    norm = [one for one in uneven.layers if isinstance(one, keras.layers.BatchNormalization)][1]
    assert fallback.layers == (norm.name,)
    assert fallback.after.output_db > fallback.before.output_db + 3
    # The facts are those of the files.
    kinds = [[op.kind for op in read_graphs(one.content)[0].operators] for one in (plain, made)]
    fences = [names.count("QUANTIZE") + names.count("DEQUANTIZE") for names in kinds]
    assert [fallback.before.fences, fallback.after.fences] == fences
    assert fences[1] > fences[0] == 2
    growth = len(made.content) - len(plain.content)
    assert fallback.after.file_bytes - fallback.before.file_bytes == pytest.approx(growth, abs=64)
    assert min(fallback.before.milliseconds, fallback.after.milliseconds) > 0
    # And the gain is real, on images that were never seen.
    images = nets.batch(64, seed=5)
    exact = uneven(images, training=False).numpy()
    errors = [np.square(run(one.content, images) - exact).mean() for one in (plain, made)]
    assert errors[1] < 0.6 * errors[0]


def test_convert_with_auto_fallback_leaves_the_chosen_layers_in_float_and_no_others(
    files: dict[str, LiteModel],
) -> None:
    made = files["int8_float_io"]
    assert made.fallback is not None
    floats = {one.layer for one in made.layers if not one.is_integer}
    assert floats == set(made.fallback.layers)
    assert any(one.is_integer for one in made.layers)
    causes = [op for op in made.audit.float_ops if op.kind not in ("QUANTIZE", "DEQUANTIZE")]
    assert len(causes) == sum(not one.is_integer for one in made.layers)


def test_fallback_is_ready_for_json_and_one_line(files: dict[str, LiteModel]) -> None:
    fallback = files["int8_float_io"].fallback
    assert fallback is not None
    document = json.loads(json.dumps(fallback.to_dict(), allow_nan=False))
    assert document["layers"] == list(fallback.layers)
    text = fallback.to_text()
    assert text.startswith(", ".join(fallback.layers) + " left in float: ")
    assert f"{fallback.after.fences - fallback.before.fences:+d} QUANTIZE/DEQUANTIZE" in text
    facts = FileFacts(10, 2, 1.0, math.inf)
    assert "no layer tried gains by float" in Fallback((), facts, facts).to_text()
    assert Fallback((), facts, facts).to_dict()["before"]["output_db"] is None


def test_convert_with_float_layers_by_name_leaves_these(block: Any, block_files: dict[str, LiteModel]) -> None:
    images = nets.batch(32, seed=1)
    made = convert(block, "int8_float_io", calibration=[images], float_layers=["growth", "logits"], layer_report=True)
    assert {one.layer for one in made.layers if not one.is_integer} == {"growth", "logits"}
    assert {op.tensor for op in made.audit.float_ops} >= {"logits"}
    exact = block(images, training=False).numpy()
    better, plain = (run(c, images) - exact for c in (made.content, block_files["int8_float_io"].content))
    assert np.square(better).mean() < np.square(plain).mean()
    again = convert(block, "int8_float_io", calibration=[images], float_layers=["logits", "growth"])
    assert again.content == made.content


def test_convert_with_a_fallback_gives_the_same_bytes_on_any_threads(block: Any) -> None:
    images = nets.batch(16, seed=1)
    made = [convert(block, "int8_float_io", calibration=[images], auto_fallback=1, num_threads=n) for n in (1, 2)]
    assert made[0].content == made[1].content
    assert made[0].fallback is not None
    assert made[0].fallback.layers


@pytest.mark.parametrize("options", [{"float_layers": ["growth"]}, {"auto_fallback": 2}])
@pytest.mark.parametrize("quant_type", ["int8", ["int8", "int8_float_io"], "none"])
def test_convert_of_another_type_with_float_layers_asks_for_int8_float_io(quant_type: Any, options: Any) -> None:
    with pytest.raises(
        CompressionError, match=r"layers left in float need quant type int8_float_io, got .*ask for int8_f"
    ):
        convert(None, quant_type, calibration=[], **options)


def test_convert_with_a_negative_count_or_an_unknown_layer_fails(block: Any) -> None:
    with pytest.raises(CompressionError, match=r"expected auto_fallback .* to be 0 or more; got -1"):
        convert(None, "int8_float_io", calibration=[], auto_fallback=-1)
    with pytest.raises(CompressionError, match="expected layers of this network, got 'grow'"):
        convert(block, "int8_float_io", calibration=[nets.batch(16)], float_layers=["grow"])
