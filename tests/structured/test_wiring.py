"""Whole layers go: exact against an oracle that knows no wiring, priced exactly, refused where nothing would be left.

The oracle runs the big model call by call. As for filters, consumers ignore the channels that the plan drops; and an
addition ignores every term that no longer depends on the image, which is what a vanished branch leaves behind.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import layers_by_path, unroll
from cxr_compress.structured import (
    ChannelPlan,
    analyze_channels,
    measure_cost,
    recalibrate_batch_norm,
    reconstruct_consumers,
    remove_channels,
)
from tests import nets
from tests.nets_families import FAMILIES
from tests.structured.oracle import zeroed_model

layers = keras.layers

# As in test_rebuild.py: float32 sums in another order against whole layers of the same sizes swapped.
PARITY = 1e-5
CONTROL = 1e-2
IMAGES = 8


def without(model, *groups: str, also: dict[str, tuple[int, ...]] | None = None) -> ChannelPlan:
    """The plan that leaves nothing of some groups, and of others what is listed."""
    analysis = analyze_channels(model)
    return ChannelPlan.of(analysis, analysis.keep_vector({**dict.fromkeys(groups, ()), **(also or {})}), {})


def oracle(model, plan, images) -> np.ndarray:
    """What the big model gives when consumers ignore dropped channels, and sums the terms that carry no image."""
    steps = unroll(zeroed_model(model, plan))
    known = {steps.source: tf.convert_to_tensor(images)}
    for step in steps.calls:
        arguments = [known[number] for number in step.reads]
        name = type(step.layer).__name__ + str(getattr(step.layer, "symbol", ""))
        if name == "Add" or "add" in name:
            arguments = [tf.zeros_like(term) if _constant(term) else term for term in arguments]
        known.update(zip(step.makes, step.run(arguments), strict=True))
    outputs = [np.asarray(known[number]).reshape(len(images), -1) for number in steps.results]
    return np.concatenate(outputs, axis=1)


def _constant(term) -> bool:
    """Whether a tensor is the same for all images, up to rounding."""
    values = np.asarray(term)
    return float(np.ptp(values, axis=0).max()) < 1e-6 * max(float(np.abs(values).max()), 1e-6)


def outputs(model, images) -> np.ndarray:
    values = model(images, training=False)
    return np.concatenate([np.asarray(value).reshape(len(images), -1) for value in tf.nest.flatten(values)], axis=1)


def distance(first, second) -> float:
    """The largest difference over the second's spread."""
    return float(np.abs(first - second).max() / second.std())


def in_backbone() -> keras.Model:
    """image -> backbone[stem(6), three residual blocks, t(5), GAP, Dense(3)] -> logits(3)."""
    backbone = nets.residual_blocks()
    image = keras.Input((8, 8, 3), name="image")
    return nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(backbone(image)), name="in_backbone"))


def nested_branch() -> keras.Model:
    """stem(6) -> add of itself and a Sequential branch, twice, and a nested model that is a block."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    for number in (1, 2):
        inside = [layers.Conv2D(4, 3, padding="same", name="c"), layers.ReLU(), layers.Conv2D(6, 1, name="d")]
        x = layers.Add()([x, keras.Sequential(inside, name=f"branch{number}")(x)])
    for number in (1, 2):
        inner = keras.Input((8, 8, 6))
        y = layers.Conv2D(6, 1, name="f")(layers.Conv2D(4, 3, padding="same", activation="relu", name="e")(inner))
        x = keras.Model(inner, layers.Add()([inner, y]), name=f"block{number}")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="nested_branch"))
    # Nested models would have the same weights: swapping them would change nothing.
    for seed, name in enumerate(("branch2", "block2"), start=7):
        nets.enliven(model.get_layer(name), seed)
    return model


def joined_by_operations() -> keras.Model:
    """stem(6), three layers g(4) each of which tf.concat joins to what was there, t(5) -> GAP -> logits."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    first = layers.Conv2D(4, 3, padding="same", activation="relu", name="g1")(x)
    second = layers.Conv2D(4, 3, padding="same", activation="relu", name="g2")(x)
    third = layers.Conv2D(4, 3, padding="same", activation="relu", name="g3")(x)
    x = layers.GlobalAveragePooling2D()(nets.conv_bn(tf.concat([first, second, third], -1), 5, "t"))
    return nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="joined_by_operations"))


# By net: three sets of groups, of the same sizes, each of which may go.
SWAPS = {
    "dense": (nets.dense_layers, ["grow1"], ["grow2"], ["grow3"]),
    "dense_by_bottleneck": (nets.dense_layers, ["squeeze1"], ["squeeze2"], ["squeeze3"]),
    "dense_two": (nets.dense_layers, ["grow1", "grow2"], ["grow2", "grow3"], ["grow1", "grow3"]),
    "residual": (nets.residual_blocks, ["down1"], ["down2"], ["down3"]),
    "residual_two": (nets.residual_blocks, ["down1", "down3"], ["down2", "down3"], ["down1", "down2"]),
    "operator": (lambda: nets.residual_blocks(lambda x, y: x + y), ["down1"], ["down2"], ["down3"]),
    "operator_reversed": (lambda: nets.residual_blocks(lambda x, y: y + x), ["down1"], ["down2"], ["down3"]),
    "concat": (joined_by_operations, ["g1"], ["g2"], ["g3"]),
    "backbone": (in_backbone, *([f"residual_blocks/down{number}"] for number in (1, 2, 3))),
    "sequential_branch": (nested_branch, ["branch1/c"], ["branch2/c"], ["branch1/c"]),
    "nested_block": (nested_branch, ["block1/e"], ["block2/e"], ["block1/e"]),
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
def test_whole_layers_gone_equals_the_oracle_and_other_layers_of_their_sizes_do_not(swap):
    build, *choices = swap
    model = build()
    images = nets.batch(model, images=IMAGES)
    plans = [without(model, *groups) for groups in choices[:2]]
    pruned = [remove_channels(model, plan) for plan in plans]
    truths = [oracle(model, plan, images) for plan in plans]
    for place in (0, 1):
        assert distance(outputs(pruned[place], images), truths[place]) < PARITY
        assert distance(outputs(pruned[place], images), truths[1 - place]) > CONTROL
        assert distance(outputs(model, images), truths[place]) > CONTROL
        assert measure_cost(pruned[place]) == plans[place].after
    assert pruned[0].count_params() < model.count_params()


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
def test_whole_layers_and_single_filters_go_together(swap):
    build, groups, *_ = swap
    model = build()
    images = nets.batch(model, images=IMAGES)
    analysis = analyze_channels(model)
    rng = np.random.default_rng(3)
    thinner = {
        name: tuple(sorted(rng.permutation(group.channels)[: max(1, group.channels // 2)].tolist()))
        for name, group in analysis.groups.items()
        if name not in groups
    }
    plan = without(model, *groups, also=thinner)
    pruned = remove_channels(model, plan)
    other = without(model, *groups, also={name: _shifted(kept, analysis, name) for name, kept in thinner.items()})
    assert distance(outputs(pruned, images), oracle(model, plan, images)) < PARITY
    assert distance(outputs(pruned, images), oracle(model, other, images)) > CONTROL
    assert measure_cost(pruned) == plan.after


def _shifted(kept, analysis, name):
    return tuple(sorted((index + 1) % analysis.groups[name].channels for index in kept))


BLOCKS = {
    "residual": ["a"],
    "resnet_v2": ["a"],
    "inception": ["b", "c", "a"],
    "xception": ["sep1"],
    "mobilenet_v2": ["expand"],
    "nasnet": ["sep"],
    "regnet": ["a"],
    "unet": ["up"],
    # Nothing but a straight line, or one that everything hangs on.
    **dict.fromkeys(("chain", "sequential", "two_outputs", "mobilenet"), ()),
}


@pytest.mark.parametrize("family", BLOCKS)
def test_every_block_of_a_family_goes_exactly(family):
    model = {**nets.SMALL_NETS, **FAMILIES}[family]()
    images = nets.batch(model, images=IMAGES)
    blocks = analyze_channels(model).blocks
    assert list(blocks) == list(BLOCKS[family])
    for name, block in blocks.items():
        plan = without(model, name)
        pruned = remove_channels(model, plan)
        assert distance(outputs(pruned, images), oracle(model, plan, images)) < PARITY
        assert distance(outputs(pruned, images), outputs(model, images)) > CONTROL
        assert measure_cost(pruned) == plan.after
        assert not set(block.layers) & set(layers_by_path(pruned))


def test_a_dense_layer_goes_with_its_bottleneck_and_its_place_in_every_concatenation():
    model = nets.dense_layers()
    pruned = remove_channels(model, without(model, "grow2"))
    assert {"squeeze2", "grow2", "norm2"} & {layer.name for layer in pruned.layers} == set()
    assert sum(isinstance(layer, layers.Concatenate) for layer in pruned.layers) == 2
    assert pruned.get_layer("norm3").input_shape[-1] == 6 + 4
    assert pruned.get_layer("t").input_shape[-1] == 6 + 4 + 4
    by_bottleneck = remove_channels(model, without(model, "squeeze2"))
    assert json.dumps(by_bottleneck.get_config()) == json.dumps(pruned.get_config())


def test_a_residual_block_becomes_its_shortcut():
    model = nets.residual_blocks()
    pruned = remove_channels(model, without(model, "down2"))
    assert sum(isinstance(layer, layers.Add) for layer in pruned.layers) == 2
    assert {"down2", "up2"} & {layer.name for layer in pruned.layers} == set()
    assert pruned.get_layer("stem").filters == 6


def test_a_model_without_layers_loads_without_this_package(tmp_path):
    model = nets.residual_blocks()
    pruned = remove_channels(model, without(model, "down1", "down3"))
    pruned.save(tmp_path / "pruned.keras")
    again = keras.models.load_model(tmp_path / "pruned.keras", compile=False)
    images = nets.batch(model)
    assert np.array_equal(again(images), pruned(images))


def test_a_plan_without_layers_is_json_and_applies_twice():
    model = nets.dense_layers()
    plan = without(model, "grow2", also={"stem": (0, 2)})
    again = ChannelPlan.from_json(plan.to_json())
    assert again == plan
    assert again.kept == {"stem": (0, 2), "squeeze2": (), "grow2": ()}
    assert not again.was_edited(analyze_channels(model))
    # By hand: the dense layer alone is named, its bottleneck follows.
    document = json.loads(plan.to_json())
    document["groups"]["squeeze2"]["kept"] = [1, 5]
    assert ChannelPlan.from_json(json.dumps(document)).with_costs(analyze_channels(model)).after == plan.after


def test_a_model_without_layers_can_be_pruned_again_and_the_plans_compose():
    """The group of all three blocks is named after `up1` only while that is there."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.ReLU()(image)
    stem = layers.Conv2D(6, 3, padding="same", name="z_stem")(x)
    first = layers.Conv2D(6, 3, padding="same", name="up")(nets.conv_bn(x, 4, "down"))
    x = layers.GlobalAveragePooling2D()(layers.Add()([first, stem]))
    model = nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(x)))
    analysis = analyze_channels(model)
    plan = without(model, "down")
    pruned = remove_channels(model, plan)
    now = analyze_channels(pruned)
    assert set(now.groups) == {"z_stem"}
    later = ChannelPlan.of(now, now.keep_vector({"z_stem": (1, 4, 5)}), {}).named_as(analysis)
    whole = plan.then(later)
    images = nets.batch(model)
    assert whole.after == measure_cost(remove_channels(model, whole))
    assert np.array_equal(
        remove_channels(model, whole)(images),
        remove_channels(pruned, ChannelPlan.of(now, now.keep_vector({"z_stem": (1, 4, 5)}), {}))(images),
    )


@pytest.mark.parametrize(
    ("build", "groups", "message"),
    [
        (nets.chain, ["a"], "group 'a' would keep none of its 8 channels, but no path from the model's input to its"),
        (nets.dense_block, ["stem"], "group 'stem' would keep none of its 6 channels, but no path"),
        (nets.two_outputs, ["stem"], "group 'stem' would keep none of its 8 channels, but no path"),
        (nets.chain, ["logits"], "'logits' is protected: reaches the output of the model"),
        (nets.chain, ["image"], "'image' is protected: is an input of the model"),
    ],
)
def test_a_plan_that_cuts_the_network_is_refused_with_the_name_of_the_group(build, groups, message):
    with pytest.raises(CompressionError, match=message):
        without(build(), *groups)


def test_each_may_go_and_not_all():
    image = keras.Input((8, 8, 3), name="image")
    branches = [layers.Conv2D(4, 3, name=f"g{number}")(image) for number in (1, 2)]
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()(branches))
    model = nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(x)))
    assert set(analyze_channels(model).blocks) == {"g1", "g2"}
    with pytest.raises(CompressionError, match="group 'g2' would keep none of its 4 channels, but no path"):
        without(model, "g1", "g2")


def test_an_excluded_layer_is_not_taken_along():
    model = nets.dense_layers()
    analysis = analyze_channels(model, exclude=["squeeze2"])
    assert set(analysis.blocks) == {"squeeze1", "squeeze3"}
    with pytest.raises(
        CompressionError,
        match="group 'grow2' would keep none of its 4 channels, but the protected group 'squeeze2' would go with it "
        r"\(excluded by 'squeeze2'\)",
    ):
        analysis.keep_vector({"grow2": ()})


def test_a_model_called_twice_loses_a_layer_in_both_places():
    """left(6) -> block, right(6) -> block: the block's branch is one set of layers, called twice."""
    inner = keras.Input((6, 6, 6))
    y = layers.Conv2D(6, 1, name="f")(layers.Conv2D(4, 3, padding="same", activation="relu", name="e")(inner))
    block = keras.Model(inner, layers.Add()([inner, y]), name="block")
    image = keras.Input((6, 6, 3), name="image")
    sides = [block(layers.Conv2D(6, 1, name=side)(image)) for side in ("left", "right")]
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()(sides))
    model = nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(x)))
    images = nets.batch(model, images=IMAGES)
    plan = without(model, "block/e")
    pruned = remove_channels(model, plan)
    assert distance(outputs(pruned, images), oracle(model, plan, images)) < PARITY
    assert distance(outputs(pruned, images), outputs(model, images)) > CONTROL
    assert measure_cost(pruned) == plan.after


@pytest.mark.parametrize("build", [nets.dense_layers, nets.residual_blocks, in_backbone])
def test_repairs_work_on_a_model_without_layers(build):
    model = build()
    images = nets.batch(model, images=32)
    block = list(analyze_channels(model).blocks)[1]
    plan = without(model, block)
    pruned = remove_channels(model, plan)
    before = distance(outputs(pruned, images), outputs(model, images))
    assert recalibrate_batch_norm(pruned, [images], original=model, plan=plan) == 32
    reconstruct_consumers(pruned, model, plan, [images])
    held_out = nets.batch(model, images=32, seed=9)
    assert np.isfinite(outputs(pruned, held_out)).all()
    if build is nets.dense_layers:
        # What reads the lost part is refitted; a block that became its shortcut leaves nothing to refit.
        assert distance(outputs(pruned, images), outputs(model, images)) < before


APPLICATIONS = {
    "densenet121": (
        "DenseNet121",
        58,
        ("conv4_block5_1_conv", "conv4_block20_2_conv"),
        ("conv4_block6_1_conv", "conv4_block21_2_conv"),
    ),
    "resnet50v2": ("ResNet50V2", 16, ("conv4_block3_1_conv",), ("conv4_block4_1_conv",)),
    "mobilenet_v2": ("MobileNetV2", 10, ("block_8_expand",), ("block_9_expand",)),
}


@pytest.mark.densenet
@pytest.mark.parametrize("row", APPLICATIONS.values(), ids=APPLICATIONS)
def test_whole_layers_of_a_real_network_go_exactly(row):
    name, count, groups, others = row
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), classes=3, classifier_activation=None
    )
    nets.enliven(model)
    analysis = analyze_channels(model)
    assert len(analysis.blocks) == count
    images = nets.batch(model, images=4)
    plan, other = without(model, *groups), without(model, *others)
    pruned = remove_channels(model, plan)
    assert distance(outputs(pruned, images), oracle(model, plan, images)) < 10 * PARITY
    assert distance(outputs(pruned, images), oracle(model, other, images)) > CONTROL
    assert measure_cost(pruned) == plan.after
    assert measure_cost(remove_channels(model, other)) == other.after
