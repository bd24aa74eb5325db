"""Make the tiny probe pack of the device tests; needs the `train` extra.

    python -m tests.device.reference.make_probe_pack

Writes probe_pack.zip beside this file (seconds): float32 probes of the network below, a few widths of each.

    image 12x12x3 - conv 3x3, 16 - ReLU - conv 1x1, 24 - average pool 2 - BN (MUL and ADD in TFLite) - mean - dense 2
"""

from __future__ import annotations

from dataclasses import replace

from cxr_compress.files import write_bytes
from cxr_compress.keras2 import keras
from cxr_compress.pipeline.stages.price import make_probe_pack
from tests.device.reference import PROBE_PACK
from tests.nets import enliven


def build_network() -> keras.Model:
    """The network drawn above."""
    layers = keras.layers
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(image)
    x = layers.AveragePooling2D(2)(layers.Conv2D(24, 1, name="second")(x))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    return enliven(keras.Model(image, layers.Dense(2, name="logits")(x), name="probed"))


def main() -> None:
    """Make and write the pack; every other move is enough for a slope."""
    pack = make_probe_pack(build_network(), PROBE_PACK, "none")
    write_bytes(PROBE_PACK, replace(pack, moves=pack.moves[::2]).to_bytes())


if __name__ == "__main__":
    main()
