"""Small networks that tests share, each drawn, with weights that keep the signal alive.

Random weights without care let the signal die on the way, and then every parity test passes vacuously (DESIGN facts).
`enliven` gives kernels the scale that keeps variance and batch norms statistics that are not 0 and 1.
"""

from __future__ import annotations

import numpy as np

from cxr_compress.keras2 import keras

layers = keras.layers


def enliven(model: keras.Model, seed: int = 0) -> keras.Model:
    """Fill a model with seeded weights under which its output depends on its input; returns the same model."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            enliven(layer, seed + 1)
        elif layer.weights:
            layer.set_weights([_draw(rng, weight.name, tuple(weight.shape)) for weight in layer.weights])
            layer.finalize_state()
    return model


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if "variance" in name or "gamma" in name:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) == 1:
        return rng.normal(0, 0.3, shape).astype(np.float32)
    fan_in = np.prod(shape[:2]) if "depthwise" in name else np.prod(shape[:-1])
    return rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)


def batch(model: keras.Model, images: int = 4, seed: int = 1) -> np.ndarray:
    """Seeded normal images of the model's input size, float32 (n, h, w, c)."""
    shape = (images, *model.input_shape[1:])
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conv_bn(x, filters: int, name: str, size: int = 3):
    x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def chain() -> keras.Model:
    """image -> a(8) -> BN -> relu -> b(12)+bias -> pool -> flatten -> hidden(10) -> logits(3)."""
    image = keras.Input((8, 8, 3), name="image")
    x = conv_bn(image, 8, "a")
    x = layers.Conv2D(12, 3, activation="relu", name="b")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Dense(10, activation="relu", name="hidden")(layers.Flatten()(x))
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="chain"))


def residual() -> keras.Model:
    """stem(8) -+-> a(16) -> b(8) -+-> add -+-> c(6) -> GAP -> logits(3)
    +-------------------+        +-> the same add feeds a second add with d(8)
    """
    image = keras.Input((8, 8, 3), name="image")
    stem = conv_bn(image, 8, "stem")
    x = layers.Conv2D(8, 3, padding="same", name="b")(conv_bn(stem, 16, "a"))
    first = layers.ReLU()(layers.Add(name="first_add")([stem, x]))
    second = layers.Add(name="second_add")([first, layers.Conv2D(8, 1, name="d")(first)])
    x = layers.GlobalAveragePooling2D()(conv_bn(second, 6, "c"))
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="residual"))


def dense_block() -> keras.Model:
    """stem(6) -+-> g1(4) -+-> concat(10) -+-> g2(4) -> concat(14) -> BN -> relu -> t(8) -> GAP -> logits(3)
    +----------+               +------------^
    """
    image = keras.Input((8, 8, 3), name="image")
    stem = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(image)
    first = layers.Concatenate(name="concat1")(
        [stem, layers.Conv2D(4, 3, padding="same", use_bias=False, name="g1")(_pre(stem))]
    )
    second = layers.Concatenate(name="concat2", axis=3)(
        [first, layers.Conv2D(4, 3, padding="same", use_bias=False, name="g2")(_pre(first))]
    )
    x = layers.Conv2D(8, 1, use_bias=False, name="t")(_pre(second))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="dense_block"))


def _pre(x):
    return layers.ReLU()(layers.BatchNormalization()(x))


def dense_layers() -> keras.Model:
    """stem(6) -> [BN -> relu -> squeeze1(8) -> BN -> relu -> grow1(4) -> concat], three times -> t(5) -> GAP."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(image)
    for number in (1, 2, 3):
        y = layers.ReLU()(layers.BatchNormalization(name=f"norm{number}")(x))
        y = conv_bn(y, 8, f"squeeze{number}", size=1)
        x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same", name=f"grow{number}")(y)])
    x = layers.GlobalAveragePooling2D()(conv_bn(x, 5, "t"))
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="dense_layers"))


def residual_blocks(add=None) -> keras.Model:
    """stem(6) -> three blocks [BN -> relu -> down(4) -> BN -> relu -> up(6)+bias -> add] -> BN -> t(5) -> GAP."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(image)
    for number in (1, 2, 3):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        y = conv_bn(y, 4, f"down{number}")
        y = layers.Conv2D(6, 3, padding="same", name=f"up{number}")(y)
        x = layers.Add()([x, y]) if add is None else add(x, y)
    x = layers.GlobalAveragePooling2D()(conv_bn(x, 5, "t"))
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="residual_blocks"))


def depthwise() -> keras.Model:
    """stem(8) -> depthwise x2 (16) -> BN -> relu6 -> p(10) -> separable(12) -> flatten -> logits(3)."""
    image = keras.Input((8, 8, 3), name="image")
    x = conv_bn(image, 8, "stem")
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="dw")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.Conv2D(10, 1, name="p")(layers.ZeroPadding2D(1)(x))
    x = layers.SeparableConv2D(12, 3, strides=2, activation="relu", name="sep")(x)
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(layers.Flatten()(x)), name="depthwise"))


def knot() -> keras.Model:
    """What concat code gets wrong: a concat of a tensor with itself, one tensor in two concats, concat then add.

    a(4) -+-> cat(a, a)(8) -----+-> add -> d(6) -> GAP -> logits(3)
          +-> cat(a, b(4))(8) --+
    """
    image = keras.Input((6, 6, 3), name="image")
    a = conv_bn(image, 4, "a")
    b = conv_bn(image, 4, "b")
    twice = layers.Concatenate(name="twice")([a, a])
    both = layers.Concatenate(name="both", axis=-1)([a, b])
    x = conv_bn(layers.Add(name="add")([twice, both]), 6, "d")
    x = layers.GlobalAveragePooling2D()(x)
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="knot"))


def shared_layer() -> keras.Model:
    """left(6) -> both -+-> concat -> logits(3); `both` (5) is one layer called on two tensors.
    right(6) -> both ---+
    """
    image = keras.Input((6, 6, 3), name="image")
    both = layers.Conv2D(5, 3, activation="relu", name="both")
    joined = layers.Concatenate()([both(conv_bn(image, 6, "left")), both(conv_bn(image, 6, "right"))])
    x = layers.GlobalAveragePooling2D()(joined)
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="shared_layer"))


def nested() -> keras.Model:
    """image -> backbone[stem(8) -> body(10) -> GAP] -> hidden(6) -> logits(3): the usual shape of a CheXNet."""
    inner = keras.Input((8, 8, 3), name="pixels")
    features = layers.GlobalAveragePooling2D()(conv_bn(conv_bn(inner, 8, "stem"), 10, "body"))
    backbone = keras.Model(inner, features, name="backbone")
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Dense(6, activation="relu", name="hidden")(backbone(image))
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="nested"))


def two_outputs() -> keras.Model:
    """stem(8) -+-> a(6) -> GAP -> logits(3)
    +-> map(2), an output itself
    """
    image = keras.Input((6, 6, 3), name="image")
    stem = conv_bn(image, 8, "stem")
    x = layers.GlobalAveragePooling2D()(conv_bn(stem, 6, "a"))
    outputs = [layers.Dense(3, name="logits")(x), layers.Conv2D(2, 1, name="map")(stem)]
    return enliven(keras.Model(image, outputs, name="two_outputs"))


def sequential() -> keras.Model:
    """image -> a(8) -> relu -> b(6) -> GAP -> logits(3), as keras.Sequential."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, name="a"),
            layers.PReLU(shared_axes=[1, 2]),
            layers.Conv2D(6, 3, name="b"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(3, name="logits"),
        ],
        name="sequential",
    )
    return enliven(model)


SMALL_NETS = {
    build.__name__: build
    for build in (chain, residual, dense_block, depthwise, knot, shared_layer, nested, two_outputs, sequential)
}
