"""One small network per architecture family of `keras.applications`: the same graph pattern, few and narrow layers."""

from __future__ import annotations

from tf_keras.src.applications.convnext import LayerScale  # noqa: TID251 - named nowhere else
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer  # noqa: TID251 - named nowhere else

from cxr_compress.keras2 import keras
from tests.nets import conv_bn, enliven

layers = keras.layers


def _image(size: int = 12):
    return keras.Input((size, size, 3), name="image")


def _classify(image, x, name: str) -> keras.Model:
    x = layers.GlobalAveragePooling2D()(x)
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name=name))


def _pre(x):
    return layers.Activation("relu")(layers.BatchNormalization()(x))


def resnet_v2() -> keras.Model:
    """stem(8) -> BN -+-> a(6) -> pad -> b(6) s2 -> c(8) -+-> add -> BN -> relu -> GAP -> logits(3)
    +-> max pool s2 -------------------+
    """
    image = _image()
    stem = layers.Conv2D(8, 3, padding="same", name="stem")(image)
    x = conv_bn(_pre(stem), 6, "a", 1)
    x = layers.Conv2D(6, 3, strides=2, use_bias=False, name="b")(layers.ZeroPadding2D(1)(x))
    x = layers.Conv2D(8, 1, name="c")(_pre(x))
    return _classify(image, _pre(layers.Add()([layers.MaxPooling2D(1, strides=2)(stem), x])), "resnet_v2")


def inception() -> keras.Model:
    """stem(8) -+-> a(4) ---------------+-> concat(14) -> d(6) -> GAP -> logits(3)
    +-> b(5) -> b7x1(4) ----+
    +-> average pool -> c(6)+
    """
    image = _image()
    stem = conv_bn(image, 8, "stem")
    b = conv_bn(conv_bn(stem, 5, "b", 1), 4, "b7x1", (7, 1))
    c = conv_bn(layers.AveragePooling2D(3, strides=1, padding="same")(stem), 6, "c", 1)
    x = layers.Concatenate(axis=3)([conv_bn(stem, 4, "a", 1), b, c])
    return _classify(image, conv_bn(x, 6, "d", 1), "inception")


def inception_resnet() -> keras.Model:
    """stem(8) -+-> concat(a(4), b(4)) -> up(8) -> scaled add -> relu -> d(6) -> GAP -> logits(3)
    +-------------------------------------^
    """
    image = _image()
    stem = conv_bn(image, 8, "stem")
    mixed = layers.Concatenate(axis=3)([conv_bn(stem, 4, "a", 1), conv_bn(stem, 4, "b")])
    x = CustomScaleLayer(0.5, name="scaled")([stem, layers.Conv2D(8, 1, name="up")(mixed)])
    return _classify(image, conv_bn(layers.Activation("relu")(x), 6, "d"), "inception_resnet")


def xception() -> keras.Model:
    """stem(8) -+-> sep1(10) -> relu -> sep2(12) -> max pool -+-> add -> sep3(14) -> GAP -> logits(3)
    +-> shortcut(12) s2 -------------------------+
    """
    image = _image()
    stem = conv_bn(image, 8, "stem")
    shortcut = layers.BatchNormalization()(layers.Conv2D(12, 1, strides=2, padding="same", name="shortcut")(stem))
    x = _pre(layers.SeparableConv2D(10, 3, padding="same", use_bias=False, name="sep1")(stem))
    x = layers.BatchNormalization()(layers.SeparableConv2D(12, 3, padding="same", use_bias=False, name="sep2")(x))
    x = layers.Add()([layers.MaxPooling2D(3, strides=2, padding="same")(x), shortcut])
    return _classify(image, _pre(layers.SeparableConv2D(14, 3, padding="same", name="sep3")(x)), "xception")


def mobilenet() -> keras.Model:
    """stem(8) -> dw -> pw(12) -> GAP keepdims -> dropout -> preds(3) 1x1 -> reshape(3)."""
    image = _image()
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(conv_bn(image, 8, "stem"))
    x = conv_bn(layers.ReLU(6.0)(layers.BatchNormalization()(x)), 12, "pw", 1)
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Reshape((3,))(layers.Conv2D(3, 1, name="preds")(x))
    return enliven(keras.Model(image, x, name="mobilenet"))


def mobilenet_v2() -> keras.Model:
    """stem(6) -+-> expand(12) -> dw -> project(6) -> add -> head(10) -> GAP -> logits(3)
    +--------------------------------------^
    """
    image = _image()
    stem = conv_bn(image, 6, "stem")
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(conv_bn(stem, 12, "expand", 1))
    x = layers.Conv2D(6, 1, use_bias=False, name="project")(layers.ReLU(6.0)(layers.BatchNormalization()(x)))
    x = layers.Add()([stem, layers.BatchNormalization()(x)])
    return _classify(image, conv_bn(x, 10, "head", 1), "mobilenet_v2")


def _hard_sigmoid(x):
    return layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)


def mobilenet_v3() -> keras.Model:
    """rescale -> stem(8) -> x * relu6(x + 3) / 6 -+-> gate: GAP keepdims -> s1(4) -> s2(8) -+-> multiply -> p(6)
    +---------------------------------------+
    """
    image = _image()
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, name="stem")(layers.Rescaling(1 / 2, offset=-0.1)(image)))
    x = layers.Multiply()([x, _hard_sigmoid(x)])
    gate = layers.Conv2D(4, 1, activation="relu", name="s1")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply()([x, _hard_sigmoid(layers.Conv2D(8, 1, name="s2")(gate))])
    return _classify(image, conv_bn(x, 6, "p", 1), "mobilenet_v3")


def efficientnet() -> keras.Model:
    """standardize -> stem(8) -> dw -+-> gate: GAP -> reshape(1, 1, 8) -> s1(3) -> s2(8) -+-> multiply -> p(6)
    +---------------------------------------------------+
    """
    image = _image()
    x = layers.Normalization(axis=3)(layers.Rescaling(1 / 2)(image))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="stem")(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
    x = layers.Activation("swish")(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(x)
    x = layers.Activation("swish")(layers.BatchNormalization()(x))
    gate = layers.Reshape((1, 1, 8), name="squeeze")(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(3, 1, activation="swish", name="s1")(gate)
    x = layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid", name="s2")(gate)])
    x = layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(conv_bn(x, 6, "p", 1))
    return _classify(image, x, "efficientnet")


def nasnet() -> keras.Model:
    """stem(8) -> relu -+-> average pool 1 s2 -------------------> p1(4) -+-> concat(8) -> BN -+-> add -> concat
    +-> pad -> crop -> average pool 1 s2 ----> p2(4) -+                    |
    +-> sep(8) s2 -> BN -> relu -> sep again(8) ---------------------------+
    """
    image = _image()
    stem = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", name="stem")(image)))
    shifted = layers.Cropping2D(((1, 0), (1, 0)))(layers.ZeroPadding2D(((0, 1), (0, 1)))(stem))
    p1 = layers.Conv2D(4, 1, use_bias=False, name="p1")(layers.AveragePooling2D(1, strides=2)(stem))
    p2 = layers.Conv2D(4, 1, use_bias=False, name="p2")(layers.AveragePooling2D(1, strides=2)(shifted))
    adjusted = layers.BatchNormalization()(layers.Concatenate(axis=-1)([p1, p2]))
    x = _pre(layers.SeparableConv2D(8, 5, strides=2, padding="same", use_bias=False, name="sep")(stem))
    x = layers.SeparableConv2D(8, 5, padding="same", use_bias=False, name="again")(x)
    total = layers.Add()([adjusted, layers.BatchNormalization()(x)])
    return _classify(image, layers.Concatenate()([total, adjusted]), "nasnet")


def convnext() -> keras.Model:
    """stem[conv(6) -> LN] -+-> dw -> LN -> hidden(64) -> gelu -> out(6) -> scale -> + -> down[LN -> conv(8)]
    +--------------------------------------------------------^
    """
    image = _image()
    stem = keras.Sequential([layers.Conv2D(6, 4, strides=4, name="conv"), layers.LayerNormalization()], name="stem")
    x = stem(image)
    y = layers.LayerNormalization()(layers.Conv2D(6, 3, padding="same", groups=6, name="dw")(x))
    y = layers.Activation("gelu")(layers.Dense(64, name="hidden")(y))
    x = x + LayerScale(1e-6, 6, name="scale")(layers.Dense(6, name="out")(y))
    down = keras.Sequential([layers.LayerNormalization(), layers.Conv2D(8, 2, name="conv")], name="down")
    return _classify(image, down(x), "convnext")


def regnet() -> keras.Model:
    """stem(8) -+-> a(8) -> grouped(8), 2 groups -+-> gate: GAP -> s1(3) -> s2(8) -> * -> c(8) -> + -> GAP -> logits(3)
    |                                 +-----------------------------------^           ^
    +---------------------------------------------------------------------------------+
    """
    image = _image()
    stem = conv_bn(image, 8, "stem")
    x = layers.Conv2D(8, 3, padding="same", groups=2, use_bias=False, name="grouped")(conv_bn(stem, 8, "a", 1))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    gate = layers.Conv2D(3, 1, activation="relu", name="s1")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="s2")(gate)
    x = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False, name="c")(gate * x))
    return _classify(image, layers.ReLU()(stem + x), "regnet")


def unet() -> keras.Model:
    """stem(6) -+-> down(10) s2 -> up(6) transposed x2 -+-> concat(12) -> mask(2), the output; both also give logits(3)
    +--------------------------------------+
    """
    image = _image()
    stem = conv_bn(image, 6, "stem")
    down = layers.Conv2D(10, 3, strides=2, padding="same", activation="elu", name="down")(stem)
    up = layers.Conv2DTranspose(6, 2, strides=2, activation="relu", name="up")(down)
    x = layers.Concatenate()([layers.UpSampling2D(2)(layers.MaxPooling2D(2)(stem)), up])
    logits = layers.Dense(3, name="logits")(layers.GlobalMaxPooling2D()(down))
    return enliven(keras.Model(image, [layers.Conv2D(2, 1, name="mask")(x), logits], name="unet"))


def volume() -> keras.Model:
    """a(6) conv3d -> group norm, 3 groups -> up(6) conv3d transposed -> pool -> flatten -> logits(3)."""
    image = keras.Input((4, 4, 4, 2), name="image")
    x = layers.GroupNormalization(3, name="norm")(layers.Conv3D(6, 2, name="a")(image))
    x = layers.Conv3DTranspose(6, 2, activation="relu", name="up")(layers.PReLU()(x))
    x = layers.Flatten()(layers.AveragePooling3D(2)(layers.SpatialDropout3D(0.1)(x)))
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="volume"))


def signal() -> keras.Model:
    """a(6) conv1d -> depthwise x2 (12) -> sep(8) -> up(6) transposed -> mean over time -> logits(3)."""
    image = keras.Input((16, 2), name="image")
    x = layers.ZeroPadding1D(1)(layers.Conv1D(6, 3, activation="relu", name="a")(image))
    x = layers.DepthwiseConv1D(3, depth_multiplier=2, name="dw")(x)
    x = layers.SeparableConv1D(8, 3, depth_multiplier=2, activation="tanh", name="sep")(x)
    x = layers.Conv1DTranspose(6, 2, name="up")(layers.Cropping1D(1)(layers.UpSampling1D(2)(x)))
    x = layers.Dense(3, name="logits")(layers.GlobalAveragePooling1D()(layers.ReLU()(x)))
    return enliven(keras.Model(image, x, name="signal"))


def nested_head() -> keras.Model:
    """image -> body(8) -> head[Sequential: Input(.., 8) -> h(6) -> GAP -> logits(3)]: its input gets thinner too."""
    image = _image(8)
    x = conv_bn(image, 8, "body")
    inner = [keras.Input((8, 8, 8), name="features"), layers.Conv2D(6, 3, activation="relu", name="h")]
    head = keras.Sequential([*inner, layers.GlobalAveragePooling2D(), layers.Dense(3, name="logits")], name="head")
    return enliven(keras.Model(image, head(x), name="nested_head"))


def siamese() -> keras.Model:
    """left(6)  -> tower[t(5) -> GAP] -+-> concat -> logits(3); one nested model on two tensors, of one image
    right(6) -> the same tower --------+
    """
    features = keras.Input((6, 6, 6), name="features")
    inner = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3, activation="relu", name="t")(features))
    tower = keras.Model(features, inner, name="tower")
    image = _image(6)
    x = layers.Concatenate()([tower(conv_bn(image, 6, "left")), tower(conv_bn(image, 6, "right"))])
    return enliven(keras.Model(image, layers.Dense(3, name="logits")(x), name="siamese"))


FAMILIES = {
    build.__name__: build
    for build in (
        *(resnet_v2, inception, inception_resnet, xception, mobilenet, mobilenet_v2, mobilenet_v3, efficientnet),
        *(nasnet, convnext, regnet, unet, volume, signal, nested_head, siamese),
    )
}
