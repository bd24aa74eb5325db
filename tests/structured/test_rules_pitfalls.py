"""The classic mistakes of channel surgery, each with the sliced weights written out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cxr_compress.keras2 import keras
from cxr_compress.structured import Budget, analyze_channels, remove_channels, score_channels, select_channels
from tests import nets


def keeping(model: keras.Model, **kept: tuple[int, ...]):
    """A plan that keeps these channels of these groups and all of the others."""
    analysis = analyze_channels(model)
    empty = select_channels(analysis, score_channels(model, analysis), Budget(macs=1.0))
    return replace(empty, kept=kept, channels={name: analysis.groups[name].channels for name in kept})


def weights_of(model: keras.Model, name: str) -> list[np.ndarray]:
    return model.get_layer(name).get_weights()


def test_pitfall_1_concats_keep_order_and_offsets_of_their_branches():
    """concat2 is stem(6), g1(4), g2(4): offsets 0, 6 and 10; the branches stay groups of their own."""
    model = nets.dense_block()
    pruned = remove_channels(model, keeping(model, stem=(1, 4), g1=(0, 3), g2=(2,)))
    expected = weights_of(model, "t")[0][:, :, [1, 4, 6 + 0, 6 + 3, 10 + 2]]
    assert np.array_equal(weights_of(pruned, "t")[0], expected)


def test_pitfall_1_concat_of_a_tensor_with_itself_then_add():
    """a[i] stands at i and 4 + i of `twice`, which is added to b[i] at 4 + i: one decision for a[i] and b[i]."""
    model = nets.knot()
    pruned = remove_channels(model, keeping(model, b=(0, 3)))
    assert np.array_equal(weights_of(pruned, "a")[0], weights_of(model, "a")[0][..., [0, 3]])
    assert np.array_equal(weights_of(pruned, "b")[0], weights_of(model, "b")[0][..., [0, 3]])
    assert np.array_equal(weights_of(pruned, "d")[0], weights_of(model, "d")[0][:, :, [0, 3, 4, 7]])


def test_pitfall_2_batch_norm_behind_a_concat_is_cut_by_the_mask_of_the_concat():
    model = nets.dense_block()
    pruned = remove_channels(model, keeping(model, stem=(0, 5), g1=(1,), g2=(0, 1, 3)))
    wide = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)][2]
    assert wide.input_shape[-1] == 6 + 4 + 4
    for got, before in zip(weights_of(pruned, wide.name), wide.get_weights(), strict=True):
        assert np.array_equal(got, before[[0, 5, 6 + 1, 10 + 0, 10 + 1, 10 + 3]])


def test_pitfall_3_add_removes_the_same_channels_of_everything_it_ties():
    model = nets.residual()
    pruned = remove_channels(model, keeping(model, stem=(2, 3, 7)))
    for name in ("stem", "b"):
        assert np.array_equal(weights_of(pruned, name)[0], weights_of(model, name)[0][..., [2, 3, 7]])
    # d also sums over the tied channels.
    assert np.array_equal(weights_of(pruned, "d")[0], weights_of(model, "d")[0][:, :, [2, 3, 7]][..., [2, 3, 7]])


def test_pitfall_4_depthwise_multiplier_maps_one_channel_to_several():
    """stem(8) -> depthwise x2: channel k becomes 2k and 2k + 1."""
    model = nets.depthwise()
    pruned = remove_channels(model, keeping(model, stem=(1, 6)))
    assert np.array_equal(weights_of(pruned, "dw")[0], weights_of(model, "dw")[0][:, :, [1, 6]])
    assert np.array_equal(weights_of(pruned, "dw")[1], weights_of(model, "dw")[1][[2, 3, 12, 13]])
    assert np.array_equal(weights_of(pruned, "p")[0], weights_of(model, "p")[0][:, :, [2, 3, 12, 13]])


def test_pitfall_5_flatten_repeats_the_channels_at_every_position():
    """b(12) is pooled to 3x3: channel c stands at 12 * position + c of the flattened map."""
    model = nets.chain()
    pruned = remove_channels(model, keeping(model, b=(0, 5, 11)))
    rows = [12 * position + channel for position in range(3 * 3) for channel in (0, 5, 11)]
    assert np.array_equal(weights_of(pruned, "hidden")[0], weights_of(model, "hidden")[0][rows])


@pytest.mark.parametrize("build", [nets.nested, nets.shared_layer, nets.two_outputs])
def test_pitfall_5_inputs_and_outputs_keep_their_shapes(build):
    model = build()
    analysis = analyze_channels(model)
    kept = {name: (0,) for name in analysis.groups}
    plan = replace(
        keeping(model), kept=kept, channels={name: group.channels for name, group in analysis.groups.items()}
    )
    pruned = remove_channels(model, plan)
    assert pruned.input_shape == model.input_shape
    assert pruned.output_shape == model.output_shape
