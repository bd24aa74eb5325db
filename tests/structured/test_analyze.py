"""What the analysis finds in small networks; expected numbers are written-out products."""

from __future__ import annotations

import gc
import time
from weakref import ref

import numpy as np
import pytest

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.structured import LayerFlow, WeightAxis, analyze_channels, measure_cost, register_rule
from cxr_compress.structured.analyze import survey_kernels
from cxr_compress.structured.rules.base import _RULES
from cxr_compress.structured.walk import Walk
from tests import nets

layers = keras.layers


def sizes(model, **options):
    return {name: group.channels for name, group in analyze_channels(model, **options).groups.items()}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (nets.chain, {"a": 8, "b": 12, "hidden": 10}),
        # stem, b and d meet in adds (pitfall 3); a and c are their own.
        (nets.residual, {"stem": 8, "a": 16, "c": 6}),
        (nets.dense_block, {"stem": 6, "g1": 4, "g2": 4, "t": 8}),
        # A depthwise follows its producer, multiplier or not (pitfall 4).
        (nets.depthwise, {"stem": 8, "p": 10, "sep": 12}),
        # a[i] is added to a[i] and b[i] to a[i]: one group of 4 channel sets, named by the layer that Keras runs first.
        (nets.knot, {"b": 4, "d": 6}),
        # `both` sums over left and right with the same kernel, so these two are tied; Keras runs right first.
        (nets.shared_layer, {"right": 6, "both": 5}),
        (nets.nested, {"backbone/stem": 8, "backbone/body": 10, "hidden": 6}),
        (nets.two_outputs, {"stem": 8, "a": 6}),
        (nets.sequential, {"a": 8, "b": 6}),
    ],
)
def test_analyze_small_net_finds_its_groups(build, expected):
    assert sizes(build()) == expected


def test_analyze_residual_names_members_and_consumers_of_a_tied_group():
    group = analyze_channels(nets.residual()).groups["stem"]
    assert group.members == ("stem", "b", "d")
    assert group.consumers == ("a", "d", "c")


def test_analyze_inputs_and_outputs_are_protected_with_a_reason():
    protected = analyze_channels(nets.two_outputs()).protected
    assert protected == {
        "image": "is an input of the model",
        "logits": "reaches the output of the model",
        "map": "reaches the output of the model",
    }


def test_analyze_unknown_layer_protects_what_it_touches_and_nothing_else():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="before")(image)
    x = layers.Conv2D(5, 3, name="touched")(x)
    x = layers.UnitNormalization(name="unknown")(x)
    x = layers.Conv2D(6, 3, name="after")(x)
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    analysis = analyze_channels(model)
    assert set(analysis.groups) == {"before", "after"}
    assert analysis.protected["touched"] == "unknown (UnitNormalization) has no rule for its channels"
    assert analysis.protected["unknown"] == "unknown (UnitNormalization) has no rule for its channels"


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.Activation("softmax", name="x"), "x (Activation) has an activation that mixes channels"),
        (layers.BatchNormalization(axis=1, name="x"), "x (BatchNormalization) normalizes axis 1, not the channels"),
    ],
)
def test_analyze_layer_beyond_its_rule_is_protected_with_the_reason(layer, reason):
    image = keras.Input((8, 8, 3))
    x = layer(layers.Conv2D(4, 3, name="before")(image))
    analysis = analyze_channels(keras.Model(image, layers.Conv2D(2, 1)(x)))
    assert analysis.protected["before"] == reason


def test_analyze_softmax_of_a_dense_layer_protects_its_outputs_but_not_what_it_sums_over():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="before")(image)
    x = layers.Dense(4, activation="softmax", name="mixed")(x)
    analysis = analyze_channels(keras.Model(image, layers.Conv2D(2, 1)(x)))
    assert set(analysis.groups) == {"before"}
    assert analysis.protected["mixed"] == "mixed (Dense) has an activation that mixes channels"


def test_analyze_channels_first_is_protected_and_its_macs_still_count():
    image = keras.Input((3, 8, 8))
    conv = layers.Conv2D(4, 3, data_format="channels_first", use_bias=False, name="first")
    model = keras.Model(image, layers.Dense(2, name="head")(layers.Flatten()(conv(image))))
    analysis = analyze_channels(model)
    assert "channels_first" in analysis.protected["first"]
    assert analysis.baseline.macs == 6 * 6 * 3 * 3 * 3 * 4 + 4 * 6 * 6 * 2


def test_analyze_add_of_different_widths_raises():
    """Pitfall 3: a mismatch is an error, never a silent pairing of the wrong channels."""
    node_error = "first_add|expected inputs of one width"
    from cxr_compress.structured.layout import ChannelSpace
    from cxr_compress.structured.rules.base import LayerNode, apply_rule

    space = ChannelSpace()
    node = LayerNode("first_add", "Add", dict, ((4, 4, 3), (4, 4, 5)), (4, 4, 5), ())
    with pytest.raises(UnsupportedLayerError, match=node_error):
        apply_rule(node, [space.allocate("a", 3), space.allocate("b", 5)], space)


def test_analyze_subclassed_model_raises():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(UnsupportedLayerError, match=r"expected a functional or built Sequential .* got Own"):
        analyze_channels(Own())


def test_analyze_open_input_size_raises():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))))
    with pytest.raises(UnsupportedLayerError, match="expected a model with a fixed input size"):
        analyze_channels(model)


def test_analyze_exclude_protects_and_a_pattern_without_match_raises():
    model = nets.dense_block()
    analysis = analyze_channels(model, exclude=("g.*",))
    assert set(analysis.groups) == {"stem", "t"}
    assert analysis.protected["g1"] == "excluded by 'g.*'"
    with pytest.raises(CompressionError, match="exclude 'nothing' matches no layer"):
        analyze_channels(model, exclude=("nothing",))


def test_analyze_exclude_that_is_no_regular_expression_raises():
    with pytest.raises(CompressionError, match=r"^exclude: expected regular expressions .* got '\(': .*unterminated"):
        analyze_channels(nets.chain(), exclude=("a", "("))


def test_register_rule_third_party_layer_is_followed():
    class ChannelScale(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="gamma", shape=(shape[-1],))

        def call(self, inputs):
            return inputs * self.scale

    image = keras.Input((8, 8, 3))
    x = ChannelScale(name="scale")(layers.Conv2D(4, 3, name="a")(image))
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    assert sizes(model) == {}

    @register_rule("ChannelScale")
    def channel_scale(node, inputs, space):
        return LayerFlow(inputs[0], axes=(WeightAxis(0, 0, inputs[0], "follow"),))

    try:
        assert sizes(model) == {"a": 4}
    finally:
        del _RULES["ChannelScale"]


def test_measure_cost_chain_equals_written_out_products():
    cost = measure_cost(nets.chain())
    # kernels + BN's four vectors + biases
    assert cost.params == 3 * 3 * 3 * 8 + 4 * 8 + (3 * 3 * 8 * 12 + 12) + (3 * 3 * 12 * 10 + 10) + (10 * 3 + 3)
    # positions x kernel; b is unpadded: 8 - 3 + 1 = 6, pooled to 3
    assert cost.macs == 8 * 8 * (3 * 3 * 3 * 8) + 6 * 6 * (3 * 3 * 8 * 12) + 3 * 3 * 12 * 10 + 10 * 3
    # BN's input and output, or ReLU's: two maps of 8x8x8 floats are alive at once
    assert cost.peak_activation_bytes == 4 * 2 * (8 * 8 * 8)


def test_measure_cost_shared_layer_counts_its_macs_per_call_and_params_once():
    cost = measure_cost(nets.shared_layer())
    assert cost.params == 2 * (3 * 3 * 3 * 6 + 4 * 6) + (3 * 3 * 6 * 5 + 5) + (10 * 3 + 3)
    assert cost.macs == 2 * 6 * 6 * (3 * 3 * 3 * 6) + 2 * 4 * 4 * (3 * 3 * 6 * 5) + 10 * 3


@pytest.mark.parametrize("build", nets.SMALL_NETS.values(), ids=nets.SMALL_NETS)
def test_measure_cost_small_net_counts_params_as_keras_does(build):
    model = build()
    assert measure_cost(model).params == model.count_params()


def test_analyze_leaves_the_model_untouched():
    model = nets.dense_block()
    config, weights = model.get_config(), model.get_weights()
    analyze_channels(model)
    assert model.get_config() == config
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))


@pytest.fixture
def no_collection():
    """Memory comes free by reference counts alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
def test_walk_and_analysis_leave_nothing_to_the_garbage_collector():
    model = nets.dense_block()
    walk = Walk(False)
    walk.run(model)
    analysis = analyze_channels(model)
    kept = [ref(walk), ref(walk.calls[3].layer.flow), ref(walk.tensors[3]), ref(analysis), ref(analysis.cost_model)]
    assert all(item() is not None for item in kept)
    del walk, analysis
    assert [item() for item in kept] == [None] * len(kept)


def test_analysis_survives_its_model_and_does_not_keep_it():
    model = nets.depthwise()
    analysis, expected = analyze_channels(model), survey_kernels(analyze_channels(model))
    alive = ref(model.get_layer("stem"))
    del model
    keras.backend.clear_session()
    gc.collect()
    assert alive() is None
    # What measured costs are multiplied with is worked out only now.
    assert survey_kernels(analysis) == expected


@pytest.mark.densenet
def test_analyze_densenet121_finds_120_groups_and_its_known_cost(densenet121):
    started = time.perf_counter()
    analysis = analyze_channels(densenet121)
    seconds = time.perf_counter() - started
    assert len(analysis.groups) == 120
    assert analysis.baseline.params == 7_051_854
    assert analysis.baseline.macs == 2_833_152_000
    # The bar is 0.2 s (bench_structured.py measures it); this only catches a change of order, on a busy machine too.
    assert seconds < 2
