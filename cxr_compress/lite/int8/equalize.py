"""Cross-layer equalization: gives the channels that share an int8 scale ranges of like size, and changes no output.

int8 has one scale for a whole activation. Where one channel reaches 20 and another 0.2, the latter is left with two or
three codes. Between a source and a consumer of `equalize_pairs` each channel may be divided by a factor and the
consumer's weights for it multiplied by the same: what the model computes stays, what int8 makes of it gets better.

The factor of channel i is sqrt(r_i / w_i): r_i is what the activation reaches, w_i the largest share that a weight for
this channel has in the range of its filter (weights have one scale per filter). A depthwise consumer has a scale for
each channel, so that its weights lose nothing: there it is r_i. Factors are rounded to powers of two: products and sums
are then the same floating-point numbers but for their exponents, and the outputs do not differ in a single bit.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1, for weights with one scale a layer; the rule for activations
is that of Xiao et al. 2022 (SmoothQuant), arXiv:2211.10438, with strength one half.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.lite.int8.equalize_pairs import Pair, find_pairs
from cxr_compress.lite.int8.equalize_weights import Floats, divide_outputs, input_shares, multiply_inputs, output_reach

# No channel is scaled by more: one that is nearly dead would only have its rounding noise blown up.
_LARGEST_EXPONENT = 6
_BUILT_IN = ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty")


@dataclass(frozen=True)
class EqualizedPair:
    """What was done to one pair.

    Attributes:
        source: layer whose output channels were divided.
        consumer: layer whose weights were multiplied.
        channels: how many they have in common.
        spread_before: largest channel range by the median one, of channels that are alive.
        spread_after: likewise.
    """

    source: str
    consumer: str
    channels: int
    spread_before: float
    spread_after: float


@dataclass(frozen=True)
class EqualizeReport:
    """What was equalized and what was left alone.

    Attributes:
        pairs: in the order they run.
        left: layer with a kernel -> why nothing before it could be rescaled.
        measured: ranges came from images; else from batch norms and weights.
    """

    pairs: tuple[EqualizedPair, ...]
    left: dict[str, str] = field(default_factory=dict)
    measured: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def equalize(model: Any, images: Iterable[np.ndarray] | None = None) -> tuple[Any, EqualizeReport]:
    """A new plain model with equalized channels and bit-equal outputs; `model` is left untouched.

    The gain is int8's alone and differs by network: large where a network has a few loud channels (MobileNets), small
    where a batch norm has kept them alike. Compare `layer_snr` or the scores with and without.

    Args:
        model: functional or Sequential tf_keras model.
        images: batches float32 (n, height, width, channels), preprocessed; what the channels reach on them is better
            knowledge than what weights and batch norms (beta + 3 gamma) let expect. Inside nested models the latter is
            used in any case.

    Returns:
        The model, and what was done to which layers and why not to others.

    Raises:
        UnsupportedLayerError: a subclassed model, whose wiring cannot be read.
    """
    if not getattr(model, "_is_graph_network", False):
        raise UnsupportedLayerError(
            f"expected a functional or built Sequential Keras model, got {type(model).__name__}: rebuild it with "
            "keras.Model(inputs, outputs)"
        )
    result = _copy(model)
    pairs, left = find_pairs(result)
    reached = _measure(result, [pair for pair in pairs if not pair.nested], images) if images is not None else {}
    ranges = [reached.get(id(pair.read), output_reach(pair.source)) for pair in pairs]
    done = [_apply(pair, reach) for pair, reach in zip(pairs, ranges, strict=True)]
    return result, EqualizeReport(tuple(done), left, images is not None)


def _apply(pair: Pair, reach: Floats) -> EqualizedPair:
    """Rescale one pair in place; `reach` is what its channels reach, up to a common factor."""
    factors = channel_factors(reach, input_shares(pair.consumer, len(reach)), level=_keeps_channels(pair.consumer))
    divide_outputs(pair.source, factors)
    multiply_inputs(pair.consumer, factors)
    return EqualizedPair(pair.source.name, pair.consumer.name, len(reach), _spread(reach), _spread(reach / factors))


def channel_factors(reach: Floats, shares: Floats, *, level: bool = False) -> Floats:
    """By what each channel is divided: powers of two around 1.

    Args:
        reach: (channels,) what the activation reaches, up to a common factor.
        shares: (channels,) what part of a filter's range the weights for the channel take.
        level: the weights lose nothing; make all channels reach alike.
    """
    alive = (reach > 0) & (shares > 0)
    exponents = np.zeros(len(reach))
    if alive.any():
        wanted = (np.log2(reach[alive]) - np.log2(shares[alive])) * (1.0 if level else 0.5)
        exponents[alive] = np.clip(np.rint(wanted - np.median(wanted)), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return np.exp2(exponents)


def _keeps_channels(layer: Any) -> bool:
    return type(layer).__name__ in ("DepthwiseConv2D", "SeparableConv2D")


def _spread(reach: Floats) -> float:
    alive = reach[reach > 0]
    return float(alive.max() / np.median(alive)) if alive.size else 1.0


def _copy(model: Any) -> Any:
    """The same model, built anew from its config, with the same weights."""
    from cxr_compress.keras2 import keras

    classes = {type(layer).__name__: type(layer) for layer in model.submodules if isinstance(layer, keras.layers.Layer)}
    own = {n: c for n, c in classes.items() if getattr(keras.layers, n, None) is not c and n not in _BUILT_IN}
    with keras.utils.custom_object_scope(own):
        result = type(model).from_config(model.get_config())
    result.set_weights(model.get_weights())
    return result


def _measure(model: Any, pairs: list[Pair], images: Iterable[np.ndarray]) -> dict[int, Floats]:
    """Largest absolute value per channel that each consumer reads on the images."""
    if not pairs:
        return {}
    from cxr_compress.keras2 import keras

    probe = keras.Model(model.inputs, [pair.read for pair in pairs])
    largest: list[Any] = [0.0] * len(pairs)
    for batch in images:
        found = probe(batch, training=False)
        for number, values in enumerate(found if isinstance(found, list) else [found]):
            channels = np.abs(values.numpy()).reshape(-1, len(output_reach(pairs[number].source))).max(axis=0)
            largest[number] = np.maximum(largest[number], channels)
    return {id(pair.read): np.asarray(top, np.float64) for pair, top in zip(pairs, largest, strict=True)}
