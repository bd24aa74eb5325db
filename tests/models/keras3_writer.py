"""Writes files with Keras 3, which cannot share a process with tf_keras: python -m tests.models.keras3_writer FOLDER.

For every model NAME there are NAME.keras and, in outputs.npz, its images and what it makes of them.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

SIZE = (8, 8, 4)
RGB = (8, 8, 3)
# Layer -> arguments; every layer that files may hold, InputLayer being in all of them.
ARGUMENTS: dict[str, tuple[tuple, dict]] = {
    "Dense": ((5,), {"activation": "gelu"}),
    "Conv2D": ((6, 3), {"strides": 2, "padding": "same", "use_bias": False}),
    "DepthwiseConv2D": ((3,), {"depth_multiplier": 2, "activation": "relu"}),
    "SeparableConv2D": ((6, 3), {"depth_multiplier": 2}),
    "Conv2DTranspose": ((3, 3), {"strides": 2, "padding": "same"}),
    "BatchNormalization": ((), {"epsilon": 0.05}),
    "LayerNormalization": ((), {}),
    "GroupNormalization": ((2,), {}),
    "Activation": (("tanh",), {}),
    "ReLU": ((1.5, 0.1, 0.2), {}),
    "LeakyReLU": ((0.17,), {}),
    "ELU": ((0.7,), {}),
    "PReLU": ((), {"shared_axes": [1, 2]}),
    "Softmax": ((), {}),
    "MaxPooling2D": ((3,), {"strides": 2, "padding": "same"}),
    "AveragePooling2D": ((3,), {"strides": 2, "padding": "same"}),
    "GlobalAveragePooling2D": ((), {"keepdims": True}),
    "GlobalMaxPooling2D": ((), {}),
    "Flatten": ((), {}),
    "Reshape": (((4, 16, 4),), {}),
    "Permute": (((3, 1, 2),), {}),
    "Dropout": ((0.5,), {}),
    "SpatialDropout2D": ((0.5,), {}),
    "SpatialDropout1D": ((0.5,), {}),
    "SpatialDropout3D": ((0.5,), {}),
    "AlphaDropout": ((0.5,), {}),
    "Identity": ((), {}),
    "CenterCrop": ((5, 6), {}),
    "Resizing": ((5, 12), {"interpolation": "bilinear"}),
    "GaussianNoise": ((0.5,), {}),
    "GaussianDropout": ((0.5,), {}),
    "Add": ((), {}),
    "Subtract": ((), {}),
    "Multiply": ((), {}),
    "Average": ((), {}),
    "Maximum": ((), {}),
    "Minimum": ((), {}),
    "Concatenate": ((2,), {}),
    "ZeroPadding2D": ((((1, 2), (0, 3)),), {}),
    "Cropping2D": ((((1, 2), (0, 3)),), {}),
    "UpSampling2D": ((2,), {"interpolation": "bilinear"}),
    "Rescaling": ((0.5, 2.0), {}),
    "Normalization": ((), {}),
}
# What changes images in training only.
AUGMENTATIONS: dict[str, tuple] = {
    "RandomBrightness": (0.3,),
    "RandomColorDegeneration": (0.5,),
    "RandomColorJitter": (),
    "RandomContrast": (0.3,),
    "RandomElasticTransform": (),
    "RandomErasing": (),
    "RandomFlip": (),
    "RandomGaussianBlur": (),
    "RandomGrayscale": (),
    "RandomHue": (0.3,),
    "RandomInvert": (),
    "RandomPerspective": (),
    "RandomPosterization": (4,),
    "RandomRotation": (0.3,),
    "RandomSaturation": (0.3,),
    "RandomSharpness": (0.5,),
    "RandomShear": (0.3, 0.3),
    "RandomTranslation": (0.2, 0.2),
    "RandomZoom": (0.3,),
    "AugMix": (),
    "RandAugment": (),
    "MixUp": (),
    "CutMix": (),
}
_TWO = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")


def one_layer(keras, kind):
    """A model of one layer; where that takes two tensors, of the image and its mirror image as pooling gives it."""
    image = keras.Input(SIZE)
    arguments, options = ARGUMENTS[kind]
    layer = getattr(keras.layers, kind)(*arguments, **options)
    if kind in ("SpatialDropout1D", "SpatialDropout3D"):
        image = keras.Input(SIZE)
        shape = (64, 4) if kind.endswith("1D") else (2, 4, 8, 4)
        return keras.Model(image, layer(keras.layers.Reshape(shape)(image)))
    if kind == "Normalization":
        layer.adapt(np.random.default_rng(1).normal(3, 2, (16, *SIZE)).astype(np.float32))
    if kind in _TWO:
        other = keras.layers.MaxPooling2D(3, strides=1, padding="same")(image)
        return keras.Model(image, layer([image, other]))
    return keras.Model(image, layer(image))


def branches(keras):
    """Three branches of equal shapes, joined in another order than they were made in."""
    layers = keras.layers
    image = keras.Input(SIZE)
    long = layers.Conv2D(4, 3, padding="same", name="long_2")(layers.Conv2D(4, 3, padding="same", name="long_1")(image))
    short = layers.Conv2D(4, 3, padding="same", name="short")(image)
    other = layers.LeakyReLU()(layers.Conv2D(4, 3, padding="same", name="other")(image))
    return keras.Model(image, layers.Concatenate()([other, long, short]))


def nested(keras):
    """A Sequential model and a functional one that is called twice, a batch norm that always infers, two precisions."""
    layers = keras.layers
    image = keras.Input(SIZE)
    stem = keras.Sequential([keras.Input(SIZE), layers.Conv2D(5, 1), layers.BatchNormalization()], name="stem")
    inner = keras.Input((8, 8, 5))
    body = keras.Model(inner, layers.Conv2D(5, 3, padding="same", kernel_regularizer="l2")(inner), name="body")
    x = body(body(stem(image)))
    x = layers.BatchNormalization(trainable=False)(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(4, dtype="mixed_bfloat16")(x)
    return keras.Model(image, layers.Activation("sigmoid", dtype="float32")(x))


def sequential(keras):
    layers = keras.layers
    return keras.Sequential(
        [keras.Input(SIZE), layers.Conv2D(4, 3), layers.ReLU(), layers.Flatten(), layers.Dropout(0.5), layers.Dense(2)]
    )  # fmt: skip


def augmented(keras):
    """Every layer of augmentation in front of a convolution, some of them in models and pipelines of their own."""
    layers = keras.layers
    image = x = keras.Input(RGB)
    for kind, arguments in AUGMENTATIONS.items():
        x = getattr(layers, kind)(*arguments)(x)
    x = layers.GaussianNoise(0.5)(layers.Dropout(0.5)(x, training=True), training=True)  # off all the same in Keras 3
    x = layers.Pipeline([layers.RandomFlip(), layers.RandomZoom(0.2)])(x)
    x = keras.Sequential([keras.Input(RGB), layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)], name="both")(
        x
    )
    return keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(x)))


def draw(model):
    """Give every weight a value, none at its start: a file without a layer's weights would otherwise pass."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.dtype == "float32":
            low, high = (-0.3, 0.3) if "kernel" in weight.path else (0.2, 1.2)
            weight.assign(rng.uniform(low, high, weight.shape))


def main(folder: Path) -> None:
    """Write the files."""
    keras = importlib.import_module("keras")
    images = np.random.default_rng(2).normal(size=(3, *SIZE)).astype(np.float32)
    models = {kind: one_layer(keras, kind) for kind in ARGUMENTS}
    models |= {"branches": branches(keras), "nested": nested(keras), "sequential": sequential(keras)}
    models["augmented"] = augmented(keras)
    outputs = {"images": images}
    for name, model in models.items():
        if name != "Normalization":
            draw(model)
        outputs[name] = np.asarray(model(images[..., : model.input_shape[-1]], training=False))
        model.save(folder / f"{name}.keras")
    models["sequential"].save(folder / "sequential.h5")
    image = keras.Input(SIZE)
    refused = {
        "operation": image * 2,
        "activation": keras.layers.Dense(2, activation="hard_sigmoid")(image),
        "kind": keras.layers.RandomCrop(4, 4)(image),
        "constant": keras.layers.AutoContrast()(image),
        "aspect": keras.layers.Resizing(5, 12, crop_to_aspect_ratio=True)(image),
        "crop": keras.layers.CenterCrop(9, 9)(image),
        "option": keras.layers.LayerNormalization(rms_scaling=True)(image),
        "tensors": keras.layers.MultiHeadAttention(1, 2)(image, image),
    }
    for name, output in refused.items():
        keras.Model(image, output).save(folder / f"refused_{name}.keras")
    for name in _activations(keras):
        outputs[f"activation_{name}"] = np.asarray(keras.activations.get(name)(images))
    np.savez(folder / "outputs.npz", **outputs)


def _activations(keras):
    names = "linear relu relu6 sigmoid softmax tanh softplus softsign elu selu gelu silu swish exponential mish"
    return [*names.split(), "leaky_relu", "log_softmax"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
