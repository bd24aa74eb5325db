"""What a model means is read off the file, the user's word or its own first layers, and else asked for."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.device.spec import PRESETS, PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import ModelAbout
from cxr_compress.models.meaning import (
    Inside,
    fits_channels,
    name_outputs,
    normalizes_inside,
    possible_presets,
    preset_spec,
    read_pixels,
)

layers = keras.layers
SHAPE = (8, 8, 3)


def normalization(x):
    layer = layers.Normalization(mean=[123.0, 116.0, 103.0], variance=[58.0**2, 57.0**2, 57.0**2], name="norm")
    return layer(x)


def unit_normalization(x):
    layer = layers.Normalization(mean=[0.48, 0.45, 0.41], variance=[0.05, 0.05, 0.05], name="norm")
    return layer(x)


def normalized(mean, variance, **options):
    def front(x):
        return layers.Normalization(mean=[mean] * 3, variance=[variance] * 3, name="norm", **options)(x)

    return front


def scale(*arguments):
    def front(x):  # a layer of its own each time, whatever model it is put into
        return layers.Rescaling(*arguments, name="scale")(x)

    return front


FRONTS = {
    "rescaling": (scale(1 / 255), "raw", ("scale",), "x / 255"),
    "signed": (scale(1 / 127.5, -1), "raw", ("scale",), "x / 127.5 - 1"),
    "normalization": (normalization, "raw", ("norm",), "x / 57.33 - 1.988"),
    "of_unit": (unit_normalization, "unit", ("norm",), "4.472 x - 1.998"),
    "both": (
        lambda x: unit_normalization(layers.Rescaling(1 / 255, name="scale")(x)),
        "raw",
        ("scale", "norm"),
        "x / 57.02 - 1.998",
    ),
    "operations": (lambda x: x / 127.5 - 1.0, "raw", None, "x / 127.5 - 1"),
    "behind_augmentation": (
        lambda x: layers.Rescaling(1 / 255, name="scale")(layers.RandomFlip()(layers.ZeroPadding2D()(x))),
        "raw",
        ("scale",),
        "x / 255",
    ),
    "caffe": (lambda x: x - 116.0, "raw", None, "x - 116"),
    "caffe_reversed": (lambda x: x[..., ::-1] - 116.0, "raw", None, "x - 116"),
    "in_a_model_of_its_own": (
        lambda x: layers.Rescaling(1 / 255, name="scale")(keras.Sequential([layers.RandomFlip()])(x)),
        "raw",
        ("scale",),
        "x / 255",
    ),
    # What was not trained on 0..255 or 0..1 is not fed with either: [-1, 1] and pixels with mean 0, variance 1.
    "of_signed": (
        normalized(-0.05, 0.25),
        "",
        ("norm",),
        "2 x + 0.1",
    ),
    "of_standardized": (
        normalized(0.02, 0.9),
        "",
        ("norm",),
        "1.054 x - 0.02108",
    ),
    "halved": (scale(0.5, 0.5), "", ("scale",), "x / 2 + 0.5"),
    "inverse": (
        normalized(0.5, 0.25, invert=True),
        "",
        ("norm",),
        "x / 2 + 0.5",
    ),
    "unclear": (scale(1e6), "", ("scale",), "1e+06 x"),
}


def model_of(front, *, nested=False):
    image = keras.Input(SHAPE, name="image")
    body = layers.Conv2D(2, 3, name="body")
    if nested:
        inner = keras.Input(SHAPE)
        return keras.Model(image, keras.Model(inner, body(front(inner)), name="inner")(image))
    return keras.Model(image, body(front(image)))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", FRONTS)
def test_normalizes_inside_reads_the_layers_in_front(kind, nested):
    front, takes, names, text = FRONTS[kind]
    found = normalizes_inside(model_of(front, nested=nested))
    assert (found.takes, found.text) == (takes, text)
    if names is not None:
        assert found.layers == names
    if takes:  # what the preset makes of black and white spans what networks are trained on
        spec = preset_spec(takes, SHAPE)
        assert spec.input_shape == SHAPE


def test_normalizes_inside_is_none_where_the_first_layer_is_a_convolution_or_nothing_changes():
    assert normalizes_inside(model_of(lambda x: x)) is None
    assert normalizes_inside(model_of(scale(1.0))) is None
    image = keras.Input(SHAPE)  # two readers of the pixels: the second sees them as they are
    branch = layers.Rescaling(1 / 255)(image)
    assert normalizes_inside(keras.Model(image, layers.Concatenate()([branch, image]))) is None


def about(**changes):
    spec = PreprocessSpec.preset("tf", 8, 8)
    return ModelAbout(**{"findings": ("A", "B"), "preprocess": spec, **changes})


def test_name_outputs_takes_the_users_word_before_the_files():
    assert name_outputs(2, pair=False, about=about()).findings == ("A", "B")
    assert name_outputs(2, pair=False, labels=["a", "B"], about=about()).findings == ("a", "B")
    forced = name_outputs(2, pair=False, labels=["x", "y"], about=about(), force=True)
    assert forced.findings == ("x", "y")
    assert forced.source == "from --labels, against the model file"
    assert forced.doubt == "the model file names its outputs A, B, --labels says x, y"
    for labels in (["x", "y"], ["B", "A"]):
        with pytest.raises(CompressionError, match=r"names its outputs A, B, --labels says .*leave --labels out"):
            name_outputs(2, pair=False, labels=labels, about=about())
    assert name_outputs(2, pair=False).findings is None


@pytest.mark.parametrize(
    ("given", "findings", "positive"),
    [
        ({"labels": ["COVID", "NORMAL"], "positive": "COVID"}, ("COVID",), 0),
        ({"labels": ["NORMAL", "COVID"], "positive": "covid"}, ("COVID",), 1),
        ({"labels": ["COVID"], "positive": "0"}, ("COVID",), 0),
        ({"positive": "1"}, None, 1),
        ({"about": about(positive=1)}, ("B",), 1),
        ({"about": about(findings=("B",), positive=0)}, ("B",), 0),
        ({"about": about(), "positive": "A"}, ("A",), 0),
    ],
)
def test_name_outputs_of_a_pair_is_the_finding_alone(given, findings, positive):
    names = name_outputs(2, pair=True, **given)
    assert (names.findings, names.positive) == (findings, positive)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pair": True}, "which of them is the finding is not said"),
        ({"pair": True, "about": about()}, "give --labels=A,B --positive=B"),
        ({"pair": True, "labels": ["a", "b", "c"]}, "expected two labels, NEGATIVE,POSITIVE"),
        ({"pair": True, "labels": ["a", "b"], "positive": "c"}, "expected --positive as a or b, got 'c'"),
        ({"pair": True, "labels": ["a"], "positive": "a"}, "expected --positive as 0 or 1"),
        ({"pair": False, "labels": ["a"]}, "expected 2 labels, one for each output of the model in their order, got 1"),
        ({"pair": False, "labels": ["a", "a"]}, "got 'a' and 'a', which are compared"),
        ({"pair": False, "positive": "1"}, "this model gives 2 outputs of another kind: leave it out"),
    ],
)
def test_name_outputs_asks_or_refuses(given, message):
    with pytest.raises(CompressionError, match=message):
        name_outputs(2, **given)


def test_read_pixels_never_normalizes_twice_and_never_guesses():
    inside = Inside(("scale",), "x / 255", "raw")
    assert read_pixels(SHAPE).spec is None
    assert read_pixels(SHAPE, inside=inside).spec == preset_spec("raw", SHAPE)
    assert read_pixels(SHAPE, preset="raw", inside=inside).source == "from --preset"
    assert read_pixels(SHAPE, about=about(), inside=inside).spec == about().preprocess
    assert read_pixels(SHAPE, preset="raw", inside=inside).doubt == ""
    twice = read_pixels(SHAPE, preset="unit", inside=inside)
    assert twice.spec == preset_spec("unit", SHAPE)
    assert "(layer 'scale': x / 255) and takes --preset=raw; --preset=unit would normalize twice" in twice.doubt
    assert read_pixels(SHAPE, preset="tf", about=about()).doubt == ""
    against = read_pixels(SHAPE, preset="unit", about=about())
    assert against.doubt.startswith("the model file says that its images are prepared by tf, --preset=unit says")
    assert (against.preset, read_pixels(SHAPE, about=about(), inside=inside).preset) == ("unit", "")
    assert read_pixels(SHAPE, color="rgb", preset="unit").spec.color == "rgb"


@pytest.mark.parametrize("channels", [1, 3])
def test_possible_presets_feed_as_many_channels_as_the_model_takes(channels):
    specs = possible_presets((8, 8, channels))
    assert {spec.channels for spec in specs.values()} == {channels}
    assert set(specs) == {name for name in PRESETS if fits_channels(name, channels)}
    assert len(specs) >= 4


def test_weights_of_a_pair_are_those_of_its_difference():
    said = about(pos_weight=(2.0, 6.0))
    assert said.weights_of(1) == (3.0,)
    assert said.weights_of(0) == pytest.approx((1 / 3,))
    assert said.weights_of(None) == (2.0, 6.0)
    assert about().weights_of(1) is None
    # Why: a loss that counts two classes w0 and w1 times teaches logits that are log(w0) and log(w1) too high.
    logits = np.array([0.3, -0.2]) + np.log([2.0, 6.0])
    assert logits[1] - logits[0] - np.log(3.0) == pytest.approx(-0.5)
