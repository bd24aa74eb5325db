"""A model's config without some of its calls: what is left is wired as Keras itself would wire it."""

from __future__ import annotations

import copy

import tensorflow as tf

from cxr_compress.keras2 import keras
from cxr_compress.models.call_removal import without_calls

layers = keras.layers


def wires(config) -> dict[str, list]:
    """By layer, the layers that each of its calls reads, with the numbers of their calls."""
    return {
        layer["config"]["name"]: [
            [tuple(reference[:2]) for reference in call] if isinstance(call[0], list) else tuple(call[:2])
            for call in layer["inbound_nodes"]
        ]
        for layer in config["layers"]
    }


def test_without_calls_changes_nothing_where_nothing_goes():
    image = keras.Input((4, 4, 2), name="image")
    config = keras.Model(image, layers.Conv2D(2, 1, name="a")(image)).get_config()
    before = copy.deepcopy(config)
    assert without_calls(config, {}) == before


def test_without_calls_a_sum_of_two_is_read_through_and_one_of_three_stays_a_sum():
    image = keras.Input((4, 4, 2), name="image")
    a, b = (layers.Conv2D(2, 1, name=name)(image) for name in "ab")
    two = layers.Add(name="two")([image, a])
    three = layers.Add(name="three")([two, b, image])
    config = keras.Model(image, layers.ReLU(name="end")(three)).get_config()
    fates = {("a", 0): (), ("two", 0): (0,), ("b", 0): (), ("three", 0): (0, 2)}
    assert wires(without_calls(config, fates)) == {
        "image": [],
        "three": [[("image", 0), ("image", 0)]],
        "end": [[("three", 0)]],
    }
    assert keras.Model.from_config(config).count_params() == 0


def test_without_calls_later_calls_of_a_layer_are_numbered_anew():
    image = keras.Input((4, 4, 2), name="image")
    again = layers.Conv2D(2, 1, name="again")
    first, second = again(image), again(layers.ReLU(name="between")(image))
    config = keras.Model(image, layers.Concatenate(name="both")([first, second])).get_config()
    without_calls(config, {("again", 0): (), ("both", 0): (1,)})
    assert wires(config) == {"image": [], "between": [[("image", 0)]], "again": [[("between", 0)]]}
    assert config["output_layers"] == [["again", 0, 0]]
    assert [layer.name for layer in keras.Model.from_config(config).layers] == ["image", "between", "again"]


def test_without_calls_an_operator_is_read_through_on_either_side():
    for kept, left in ((0, "a"), (1, "tf.nn.relu")):
        image = keras.Input((4, 4, 2), name="image")
        a, b = (layers.Conv2D(2, 1, name=name)(image) for name in "ab")
        config = keras.Model(image, layers.ReLU(name="end")(a + tf.nn.relu(b))).get_config()
        operations = [layer["config"]["name"] for layer in config["layers"] if "add" in layer["config"]["name"]]
        without_calls(config, {(operations[0], 0): (kept,)})
        read = wires(config)["end"][0][0]
        # Keras numbers operations over a process: the second model's is tf.nn.relu_1.
        assert read[0].startswith(left)


def test_without_calls_a_nested_model_that_hands_its_input_on_goes():
    inner = keras.Input((4, 4, 2), name="pixels")
    block = keras.Model(inner, layers.Add(name="sum")([inner, layers.Conv2D(2, 1, name="c")(inner)]), name="block")
    image = keras.Input((4, 4, 2), name="image")
    config = keras.Model(image, layers.ReLU(name="end")(block(image))).get_config()
    without_calls(config, {("block/c", 0): (), ("block/sum", 0): (0,)})
    assert wires(config) == {"image": [], "end": [[("image", 0)]]}
    assert [layer.name for layer in keras.Model.from_config(config).layers] == ["image", "end"]
