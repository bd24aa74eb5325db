"""Which filters reach which channel, found by poking them one by one and as the analysis tells it."""

from __future__ import annotations

import numpy as np

from cxr_compress.keras2 import keras
from cxr_compress.structured import analyze_channels


def tagged_by_hand(model: keras.Model, images: np.ndarray) -> list[set[tuple[str, int]]]:
    """Per channel that the layer "head" sums over, the filters whose bias moves it."""
    probe = keras.Model(model.input, model.get_layer("head").input)
    before = np.asarray(probe(images))
    touched: list[set[tuple[str, int]]] = [set() for _ in range(before.shape[-1])]
    for layer in model.layers:
        if layer.name.startswith("make"):
            kernel, bias = layer.get_weights()
            for number in range(len(bias)):
                # A bias of 3 moves every element-wise layer below; a pooled maximum of several positions moves too.
                moved = bias + 3.0 * np.eye(len(bias), dtype=np.float32)[number]
                layer.set_weights([kernel, moved])
                change = np.abs(np.asarray(probe(images)) - before).reshape(-1, before.shape[-1]).max(axis=0)
                for channel in np.flatnonzero(change > 1e-6):
                    touched[channel].add((layer.name, number))
            layer.set_weights([kernel, bias])
    return touched


def tagged_by_analysis(model: keras.Model) -> list[set[tuple[str, int]]]:
    """The same from the analysis: the filters of the channel set of each channel."""
    analysis = analyze_channels(model)
    made: dict[int, set[tuple[str, int]]] = {}
    for path, layer in analysis.layers.items():
        for axis in layer.axes:
            if axis.role == "produce" and axis.axis == 0 and path.startswith("make"):
                for number, channel_set in enumerate(axis.sets.tolist()):
                    made.setdefault(channel_set, set()).add((path, number))
    consumed = next(axis for axis in analysis.layers["head"].axes if axis.role == "consume")
    return [made[channel_set] for channel_set in consumed.sets.tolist()]
