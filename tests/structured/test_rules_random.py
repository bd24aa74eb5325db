"""Random nets of the rules' layers: propagation against brute force, and the pruned model against the oracle."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_compress.keras2 import keras
from cxr_compress.structured import Budget, analyze_channels, score_channels, select_channels
from tests import nets
from tests.structured.oracle import parity
from tests.structured.tagging import tagged_by_analysis, tagged_by_hand

layers = keras.layers

KINDS = ("make", "depthwise", "norm", "concat", "add", "gate", "twice", "operation", "grouped")
# What to do, on which of the tensors so far, with which other one, and how large.
programs = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 20), st.integers(0, 20), st.integers(1, 2)), min_size=1, max_size=6
)


def random_net(program) -> keras.Model:
    """A net of linear steps, so that a poked filter moves exactly what it reaches, ending flat in the layer "head"."""
    image = keras.Input((4, 4, 2))
    tensors = [layers.Conv2D(3, 1, name="make")(image)]
    for number, (kind, first, second, size) in enumerate(program):
        x = tensors[first % len(tensors)]
        same = [tensor for tensor in tensors if tensor.shape == x.shape]
        steps = {
            "make": lambda: layers.Conv2D(1 + size, 1, name=f"make{number}")(image),  # noqa: B023 - called at once
            "grouped": lambda: layers.Conv2D(2 * x.shape[-1], 1, groups=x.shape[-1])(x),  # noqa: B023
            "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=size)(x),  # noqa: B023
            "norm": lambda: layers.BatchNormalization()(x),  # noqa: B023
            "concat": lambda: layers.Concatenate(axis=(-1, 3)[size - 1])([x, tensors[second % len(tensors)]]),  # noqa: B023
            "add": lambda: layers.Add()([x, same[second % len(same)]]),  # noqa: B023
            "gate": lambda: x + layers.Reshape((1, 1, x.shape[-1]))(layers.GlobalAveragePooling2D()(x)),  # noqa: B023
            "twice": lambda: layers.Concatenate()([x, x]),  # noqa: B023
            "operation": lambda: 0.3 * x - 1.0,  # noqa: B023
        }
        tensors.append(steps[kind]())
    x = layers.Flatten()(layers.AveragePooling2D(2)(tensors[-1]))
    return nets.enliven(keras.Model(image, layers.Dense(2, name="head")(x)))


@settings(max_examples=25)
@given(programs)
def test_rules_random_net_tags_channels_as_brute_force_does(program):
    """Pitfalls 1, 3, 5: running offsets of concats, ties of adds, the index map of a flatten.

    A channel set may hold more filters than reach one channel (an Add elsewhere ties them), never fewer, and two
    channels that share a filter share the channel set.
    """
    keras.backend.clear_session()
    model = random_net(program)
    seen, told = tagged_by_hand(model, nets.batch(model, images=2)), tagged_by_analysis(model)
    for channel_set, touched in zip(told, seen, strict=True):
        assert touched
        assert touched <= channel_set
    if not any(kind == "add" for kind, *_ in program):
        assert told == seen


@settings(max_examples=15)
@given(programs, st.integers(0, 9))
def test_rules_random_net_equals_the_oracle_and_other_channels_do_not(program, seed):
    keras.backend.clear_session()
    model = random_net(program)
    analysis = analyze_channels(model)
    scores = score_channels(model, analysis, criterion="random", seed=seed)
    plan = select_channels(analysis, scores, Budget(params=0.9), round_to=1)
    found = parity(model, plan, nets.batch(model, images=4))
    # As in test_rebuild.py, with room for a linear net whose constant part is larger than its spread.
    assert found.error < 1e-4
    assert found.control > 100 * 1e-4
