"""Folding a batch norm's scale into the next kernel changes no output, whatever the signs of the scale."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.runner import Runner
from cxr_compress.keras2 import keras
from cxr_compress.lite import audit, convert, freeze
from cxr_compress.lite.graph.flatbuffer import read_graphs, to_bytes, to_object
from cxr_compress.lite.int8.fold import _Editor, _norms, fold_like, fold_scales
from cxr_compress.lite.int8.ranges import joined_ranges, measure_ranges, write_ranges
from cxr_compress.lite.lowering import lower, quantize
from cxr_compress.models.ends import with_cam
from tests.lite import nets

layers = keras.layers
# Sums of up to 9 * 12 products, each rounded at 2^-24 of values of up to about 30.
TOLERANCE = 2e-5


def block_with(kernel: int, padding: str = "same", *, signs: str = "positive") -> Any:
    """image - conv 3x3, 8 -+- BN - ReLU - conv, 6 - ReLU - conv 3x3, 4 -+- concat - BN - ReLU - mean - logits (4)

    The first BN reads what the concatenation reads too, so it cannot fold backwards. `signs`: of its gamma.
    """
    image = keras.Input((16, 16, 3))
    stem = layers.Conv2D(8, 3, padding="same", name="stem")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(stem))
    x = layers.ReLU()(layers.Conv2D(6, kernel, padding=padding, name="reader")(x))
    x = layers.Conv2D(4, 3, padding="same", name="growth")(x)
    if padding == "valid":
        x = layers.ZeroPadding2D((kernel - 1) // 2)(x)
    x = layers.Concatenate()([stem, x])
    x = layers.ReLU()(layers.BatchNormalization(name="last")(x))
    model = nets.settle(
        keras.Model(image, layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x)), name="block")
    )
    gamma, beta, *rest = model.get_layer("norm").get_weights()
    rng = np.random.default_rng(3)
    gamma, beta = rng.uniform(0.5, 2.0, gamma.shape), rng.normal(size=beta.shape) * 0.5
    if signs == "mixed":
        gamma[1::3] *= -1
        gamma[2::3] = 0
    model.get_layer("norm").set_weights([gamma, beta, *rest])
    return model


def kinds(content: bytes) -> Counter[str]:
    return Counter({op.kind: op.count for op in audit(content).ops})


def outputs(content: bytes) -> np.ndarray:
    return Runner(content)(nets.batch(16, seed=2))


@pytest.mark.parametrize("kernel", [1, 3])
def test_fold_scales_gives_the_same_outputs_with_half_the_operators(kernel: int) -> None:
    content = lower(freeze(block_with(kernel)), "none")
    folded, done = fold_scales(content)
    before, after = outputs(content), outputs(folded)
    assert np.abs(after - before).max() < TOLERANCE
    assert before.std(axis=0).min() > 1000 * TOLERANCE  # the output follows the input
    assert kinds(content)["MUL"] == kinds(content)["ADD"] == 2
    assert len(done.scaled) == 2
    assert kinds(folded) == kinds(content) - Counter({"MUL": 2})
    assert done.left == {}


def test_fold_scales_into_the_kernels_of_other_channels_does_change_the_outputs() -> None:
    """The control: the same edit with the scales one channel further."""
    content = lower(freeze(block_with(1)), "none")
    model = to_object(content)
    editor = _Editor(model)
    norm = _norms(model, editor.graph)[0]
    takers = editor.takers(norm.add.outputs[0])
    editor.shift(replace(norm, scale=np.roll(norm.scale, 1)), takers)
    editor.finish()
    assert np.abs(outputs(to_bytes(model)) - outputs(content)).max() > 100 * TOLERANCE


@pytest.mark.parametrize("kernel", [1, 3])
def test_fold_scales_that_are_negative_stay_with_a_reason(kernel: int) -> None:
    content = lower(freeze(block_with(kernel, signs="mixed")), "none")
    folded, done = fold_scales(content)
    assert np.abs(outputs(folded) - outputs(content)).max() < TOLERANCE
    assert list(done.left.values()) == ["some of its scales are not positive"]
    assert len(done.scaled) == 1  # the other


@pytest.mark.parametrize("signs", ["positive", "mixed"])
def test_fold_scales_in_front_of_int8_stays_int8_and_errs_no_more(signs: str) -> None:
    content = lower(freeze(block_with(1, signs=signs)), "none")
    exact, errors = outputs(content), []
    for graph in (content, fold_scales(content)[0]):
        ranges = joined_ranges(graph, measure_ranges(graph, nets.batch(32, seed=1)))
        made = quantize(write_ranges(graph, ranges))
        assert not audit(made).float_ops
        errors.append(np.sqrt(np.square(outputs(made) - exact).mean()))
    # Not more but for chance: the roundings are others, and these networks are small.
    assert errors[1] < 1.5 * errors[0]
    assert errors[0] < 0.15 * exact.std()


@pytest.mark.parametrize("quant_type", ["int8", "int8_float_io", "int16x8"])
def test_convert_with_folded_scales_has_fewer_operators_and_the_same_answers(block: Any, quant_type: str) -> None:
    options: dict[str, Any] = {"calibration": [nets.batch(32, seed=1)], "calibration_steps": 32}
    plain, folded = (convert(block, quant_type, fold_scales=fold, **options) for fold in (False, True))
    assert kinds(plain.content)["MUL"] == 2
    assert kinds(folded.content)["MUL"] == 0
    images = nets.batch(32, seed=1)  # those it was calibrated on: no logit of theirs is clipped
    exact = block(images, training=False).numpy()
    assert np.sqrt(np.square(Runner(folded.content)(images) - exact).mean()) < 0.05 * exact.std()
    assert convert(block, "none", fold_scales=True).content == convert(block, "none").content  # integer types alone


def test_fold_like_folds_a_float_file_as_its_int8_file_is(block: Any) -> None:
    made = convert(block, ["none", "int8"], calibration=[nets.batch(32, seed=1)])
    floats = fold_like(made["none"].content, made["int8"].content)
    assert (kinds(made["none"].content)["MUL"], kinds(floats)["MUL"]) == (2, 0)
    assert np.abs(outputs(floats) - outputs(made["none"].content)).max() < TOLERANCE
    plain = convert(block, "int8", calibration=[nets.batch(32, seed=1)], fold_scales=False).content
    assert fold_like(made["none"].content, plain) is made["none"].content


def test_fold_scales_needs_no_bias() -> None:
    image = keras.Input((16, 16, 3))
    stem = layers.Conv2D(8, 3, padding="same")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(layers.Concatenate()([stem, layers.ReLU()(stem)])))
    x = layers.Dense(4, use_bias=False)(layers.GlobalAveragePooling2D()(x))
    model = nets.settle(keras.Model(image, x))
    gamma, beta, *rest = model.get_layer("norm").get_weights()
    model.get_layer("norm").set_weights([np.abs(gamma), beta + 0.3, *rest])
    content = lower(freeze(model), "none")
    folded, done = fold_scales(content)
    assert (len(done.scaled), len(done.left)) == (1, 0)
    assert np.abs(outputs(folded) - outputs(content)).max() < TOLERANCE


def test_fold_scales_reaches_the_head_and_the_map_through_the_mean(block: Any) -> None:
    content = lower(freeze(with_cam(block)), "none")
    folded, done = fold_scales(content)
    assert len(done.scaled) == 2
    images = nets.batch(4, seed=2)
    one, other = Runner(content), Runner(folded)
    for image in images:
        for before, after in zip(one.both(image), other.both(image), strict=True):
            assert before is not None
            assert after is not None
            assert np.abs(after - before).max() < TOLERANCE


def test_fold_scales_leaves_what_something_else_reads_with_a_reason() -> None:
    image = keras.Input((16, 16, 3))
    stem = layers.Conv2D(8, 3, padding="same")(image)
    x = layers.ReLU(name="both")(layers.BatchNormalization()(stem))
    x = layers.Add()([layers.Conv2D(8, 1)(x), x])
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()([x, stem]))
    model = nets.settle(keras.Model(image, layers.Dense(4)(x)))
    content = lower(freeze(model), "none")
    folded, done = fold_scales(content)
    assert folded == content
    assert list(done.left.values()) == ["ADD reads it"]


def test_fold_scales_keeps_zero_weights_zero() -> None:
    model = block_with(1)
    kernel, bias = model.get_layer("reader").get_weights()
    kernel[..., ::2] = 0
    model.get_layer("reader").set_weights([kernel, bias])
    content = lower(freeze(model), "none")
    assert audit(fold_scales(content)[0]).sparsity.zeros == audit(content).sparsity.zeros > 20


def test_fold_scales_of_a_graph_without_such_norms_gives_it_back(chain: Any) -> None:
    content = lower(freeze(chain), "none")
    assert fold_scales(content)[0] is content


def test_joined_ranges_give_a_concatenation_and_what_it_joins_one_range() -> None:
    content = lower(freeze(block_with(1)), "none")
    ranges = measure_ranges(content, nets.batch(32, seed=1))
    joined = joined_ranges(content, ranges)
    (concat,) = (op for op in read_graphs(content)[0].operators if op.kind == "CONCATENATION")
    own = {ranges[index] for index in (*concat.inputs, *concat.outputs)}
    assert len(own) > 1
    assert {joined[index] for index in (*concat.inputs, *concat.outputs)} == {
        (min(low for low, _ in own), max(high for _, high in own))
    }


@pytest.mark.densenet
def test_fold_scales_finds_all_that_are_left_in_densenet121(densenet121: Any) -> None:
    content = lower(freeze(densenet121), "none")
    folded, done = fold_scales(content)
    # In front of each of 58 bottlenecks, of three transitions and of the head.
    assert len(done.scaled) + len(done.left) == 62
    assert kinds(folded)["MUL"] == 62 - len(done.scaled)
    images = nets.batch(2, 224, seed=1)
    before, after = Runner(content, num_threads=2)(images), Runner(folded, num_threads=2)(images)
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()
    assert np.abs(before[0] - before[1]).max() > 0.01 * np.abs(before).max()
