"""Learning from the teacher's last map: the term itself, who gets a gradient, what is refused, and whole trainings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models import chexnet
from cxr_compress.train import Batches, FeatureMatch, FitConfig, fit, last_feature_map, predict_logits
from cxr_compress.train.distill import FeatureTerm, check_match, with_map
from cxr_compress.train.losses import WeightedBce
from cxr_compress.train.step import Objective, make_optimizer, make_terms, make_train_step
from tests import nets
from tests.train.images import FINDINGS, SPEC, drawn_images, small_net

TRAIN, DEV = drawn_images(96, seed=30), drawn_images(40, seed=31)
CONFIG = FitConfig(epochs=3, batch_size=16, learning_rate=5e-3, distill_weight=0.3, feature_weight=0.5)
KEEP = np.array([6, 1, 4])
layers = keras.layers


def pruned(teacher: keras.Model, keep: np.ndarray) -> keras.Model:
    """small_net whose conv2 has the teacher's filters ``keep`` only, in that order."""
    student = keras.Sequential(
        [
            layers.Conv2D(8, 3, strides=2, use_bias=False, input_shape=(32, 32, 3), name="conv1"),
            layers.BatchNormalization(momentum=0.9, name="bn1"),
            layers.ReLU(name="relu1"),
            layers.Conv2D(len(keep), 3, strides=2, activation="relu", name="conv2"),
            layers.AveragePooling2D(2, name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dense(2, name="logits"),
        ],
        name="pruned",
    )
    for name in ("conv1", "bn1"):
        student.get_layer(name).set_weights(teacher.get_layer(name).get_weights())
    kernel, bias = teacher.get_layer("conv2").get_weights()
    student.get_layer("conv2").set_weights([kernel[..., keep], bias[keep]])
    return student


def run(folder, model, teacher, config=CONFIG, match=None, **options):
    match = FeatureMatch("conv2", "conv2") if match is None else match
    return fit(
        model, TRAIN, DEV, SPEC, config, folder, findings=FINDINGS, teacher=teacher, feature_match=match, **options
    )


def images(count=16):
    return Batches(*TRAIN, SPEC, count, augment=False, shuffle=False)[0]


def distance(model, teacher, keep=None):
    """The normalized distance of the conv2 maps, in float64."""
    ours = with_map(model, "conv2")(images(64)[0])[1].numpy().astype(np.float64)
    theirs = with_map(teacher, "conv2")(images(64)[0])[1].numpy().astype(np.float64)
    theirs = theirs if keep is None else theirs[..., keep]
    return np.mean((ours - theirs) ** 2) / np.mean(theirs**2)


def test_feature_term_is_the_formula_over_the_batch_and_the_kept_channels():
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(5, 3, 4, 3)).astype(np.float32)
    theirs = 40 * rng.normal(size=(5, 3, 4, 8)).astype(np.float32)
    kept = theirs[..., KEEP].astype(np.float64)
    expected = 0.7 * np.mean((ours - kept) ** 2) / np.mean(kept**2)
    term = FeatureTerm(FeatureMatch("a", "b", KEEP), 0.7)
    # Means of 180 float32 squares: a few roundings of 6e-8 relative.
    assert float(term.of(ours, theirs)) == pytest.approx(expected, rel=1e-5)
    other = FeatureTerm(FeatureMatch("a", "b", KEEP[::-1].copy()), 0.7)
    assert float(other.of(kept.astype(np.float32), theirs)) > 0.1
    assert float(term.of(kept.astype(np.float32), theirs)) == 0.0
    assert float(term.of(np.zeros_like(ours), theirs)) == pytest.approx(0.7)  # a map of zeros costs the weight


def test_feature_term_silent_teacher_keeps_value_and_gradient_finite():
    ours = tf.Variable(np.ones((2, 2, 2, 3), np.float32))
    with tf.GradientTape() as tape:
        value = FeatureTerm(FeatureMatch("a", "b"), 1.0).of(ours, np.zeros((2, 2, 2, 3), np.float32))
    assert np.isfinite(float(value))
    assert np.all(np.isfinite(tape.gradient(value, ours)))


def test_terms_teacher_gets_no_gradient_and_the_student_gets_one_from_the_map_alone():
    teacher, student = small_net(7), small_net(3)
    term = FeatureTerm(FeatureMatch("conv2", "conv2"), 2.0)
    terms = make_terms(student, Objective(WeightedBce(np.ones(2)), teacher=teacher, distill_weight=0.5, features=term))
    x, y = images()
    with tf.GradientTape(persistent=True) as tape:
        _, (soft, of_map) = terms(x, y)
    assert tape.gradient(soft + of_map, teacher.trainable_variables) == [None] * len(teacher.trainable_variables)
    gradients = dict(
        zip(
            [v.name for v in student.trainable_variables],
            tape.gradient(of_map, student.trainable_variables),
            strict=True,
        )
    )
    head = [value for name, value in gradients.items() if name.startswith("logits")]
    below = [value for name, value in gradients.items() if not name.startswith("logits")]
    assert head == [None, None]  # the head lies behind the map
    assert min(float(tf.reduce_max(tf.abs(value))) for value in below) > 0


def test_step_both_terms_take_one_pass_of_the_teacher_each_step():
    calls = []

    class Counting(layers.Layer):
        def call(self, inputs):
            tf.py_function(lambda: calls.append(1), [], [])
            return inputs

    image = keras.Input((32, 32, 3))
    x = Counting()(layers.Conv2D(8, 3, strides=4, name="map")(image))
    teacher = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=4, name="map")(image)
    student = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    optimizer = make_optimizer(FitConfig(epochs=1), 10)
    optimizer.build(student.trainable_variables)
    term = FeatureTerm(FeatureMatch("map", "map"), 1.0)
    step = make_train_step(
        student, Objective(WeightedBce(np.ones(2)), teacher=teacher, distill_weight=0.5, features=term), optimizer
    )
    before = [weight.copy() for weight in teacher.get_weights()]
    for _ in range(3):
        step(*images())
    assert len(calls) == 3
    for one, other in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_fit_matching_maps_pulls_the_students_map_to_the_teachers(tmp_path):
    teacher, near, far = small_net(7), small_net(3), small_net(3)
    config = FitConfig(epochs=6, batch_size=16, learning_rate=1e-2, augment=False, feature_weight=1.0)
    run(tmp_path / "near", near, teacher, config)
    fit(far, TRAIN, DEV, SPEC, FitConfig(epochs=6, batch_size=16, learning_rate=1e-2, augment=False),
        tmp_path / "far", findings=FINDINGS)  # fmt: skip
    assert distance(near, teacher) < 0.5 * distance(far, teacher)


def test_fit_following_logits_minimizes_their_distance_in_steps_and_on_dev(tmp_path):
    teacher, student = small_net(7), small_net(3)
    x, y = images()
    objective = Objective(WeightedBce(np.ones(2)), teacher=teacher, distill_weight=0.7, distill_loss="logits")
    _, (pull,) = make_terms(student, objective)(x, y)
    gaps = student(x, training=True) - teacher(x, training=False)
    assert float(pull) == pytest.approx(0.7 * float(tf.reduce_mean(gaps**2)) / 8, rel=1e-5)
    config = FitConfig(epochs=3, batch_size=16, learning_rate=1e-2, distill_weight=1.0, distill_loss="logits")
    result = fit(student, TRAIN, DEV, SPEC, config, tmp_path, findings=FINDINGS, teacher=teacher)
    gaps = predict_logits(student, DEV[0], SPEC) - predict_logits(teacher, DEV[0], SPEC)
    best = result.history[result.best_epoch - 1]["dev_objective"]
    assert best == pytest.approx(float(np.mean(gaps**2)) / 8, rel=1e-4)
    assert best == min(entry["dev_objective"] for entry in result.history) < result.history[0]["dev_objective"]


def test_fit_pruned_student_is_matched_with_the_channels_it_kept(tmp_path):
    teacher = small_net(7)
    student = pruned(teacher, KEEP)
    assert distance(student, teacher, KEEP) < 1e-10
    assert distance(student, teacher, KEEP[::-1]) > 0.1  # the control: the order matters
    config = FitConfig(epochs=2, batch_size=16, learning_rate=5e-3, feature_weight=1.0)
    run(tmp_path, student, teacher, config, FeatureMatch("conv2", "conv2", KEEP))
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["feature_weight"] == 1.0
    assert (facts["feature_match"]["student"], len(facts["feature_match"]["keep"])) == ("conv2", 64)


def test_fit_with_matched_maps_resumes_to_bit_equal_weights_and_refuses_another_match(tmp_path):
    teacher, whole, stopped, again = small_net(7), small_net(3), small_net(3), small_net(3)
    run(tmp_path / "whole", whole, teacher)
    seen = []

    def stop(epoch, batch, _batches, _loss):
        seen.append(batch)
        if (epoch, batch) == (2, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stopped, teacher, on_step=stop)
    with pytest.raises(CompressionError, match="begun with other settings: feature_match"):
        run(tmp_path / "stopped", small_net(3), teacher, match=FeatureMatch("conv1", "conv1"))
    run(tmp_path / "stopped", again, teacher)
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    plain = small_net(3)  # the control: the term does something
    fit(plain, TRAIN, DEV, SPEC, FitConfig(epochs=3, batch_size=16, learning_rate=5e-3, distill_weight=0.3),
        tmp_path / "plain", findings=FINDINGS, teacher=teacher)  # fmt: skip
    assert max(np.abs(a - b).max() for a, b in zip(plain.get_weights(), whole.get_weights(), strict=True)) > 1e-3


def test_fit_leaves_the_graph_of_the_model_as_it_was(tmp_path):
    model = small_net(3)
    config = FitConfig(epochs=1, batch_size=16, feature_weight=0.5)
    before = json.dumps(model.get_config()), [len(layer.inbound_nodes) for layer in model.layers]
    run(tmp_path, model, small_net(7), config)
    assert (json.dumps(model.get_config()), [len(layer.inbound_nodes) for layer in model.layers]) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_weight": 0.5}, r"needs a teacher, a feature_match .* above 0, got no feature_match and 0\.5"),
        ({"match": FeatureMatch("conv2", "conv2")}, r"above 0, got a feature_match and 0\.0"),
        ({"match": FeatureMatch("conv2", "conv2"), "feature_weight": 1.0}, r"got no teacher, 0\.0 and 1\.0"),
    ],
)
def test_fit_teacher_match_and_weight_that_do_not_go_together_are_an_error(tmp_path, options, message):
    config = FitConfig(epochs=1, feature_weight=options.get("feature_weight", 0.0))
    with pytest.raises(CompressionError, match=message):
        fit(small_net(), TRAIN, DEV, SPEC, config, tmp_path, findings=FINDINGS, feature_match=options.get("match"))


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (FeatureMatch("conv2", "conv1"), r"as many rows and columns, got the student's 'conv2' \(7, 7, 8\) and the"),
        (FeatureMatch("conv2", "flatten"), r"as many rows and columns, .*'flatten' \(72,\): name other layers"),
        (FeatureMatch("conv2", "conv2", KEEP), r"one of the teacher's channels for each .* got 3 \(int64\) for"),
        (FeatureMatch("conv2", "conv2", np.ones(8, bool)), r"got 8 \(bool\) for"),
        (FeatureMatch("conv2", "conv2", np.arange(1, 9)), "must be indices from 0 to 7, got 1 to 8"),
    ],
)
def test_check_match_maps_that_cannot_be_compared_are_an_error(match, message):
    with pytest.raises(CompressionError, match=message):
        check_match(match, small_net(), small_net(7), (32, 32, 3))


def test_check_match_knows_the_maps_of_networks_of_open_size():
    teacher = chexnet(2, (None, None, 3), width=0.1, blocks=(1, 1))
    student = chexnet(2, (32, 32, 3), width=0.1, blocks=(1, 1))
    check_match(FeatureMatch("relu", "relu"), student, teacher, (32, 32, 3))
    with pytest.raises(CompressionError, match=r"rows and columns, got the student's 'relu' \(4, 4, 10\) and the"):
        check_match(FeatureMatch("relu", "conv1/relu"), student, teacher, (32, 32, 3))


def test_with_map_layer_that_is_none_or_called_twice_is_an_error():
    with pytest.raises(UnsupportedLayerError, match=r"one layer of small_net .*, got 'convolution' \(called 0 times\)"):
        with_map(small_net(), "convolution")
    with pytest.raises(UnsupportedLayerError, match=r"got 'both' \(called 2 times\)"):
        with_map(nets.shared_layer(), "both")


def test_with_map_gives_the_models_own_logits_to_the_bit():
    model = nets.dense_block()
    x = nets.batch(model)
    logits, seen = with_map(model, "concat2")(x)
    np.testing.assert_array_equal(logits, model(x))
    assert seen.shape == (4, 8, 8, 14)


def body(top):
    """image -> conv(4) -> `top`"""
    image = keras.Input((16, 16, 3))
    return keras.Model(image, top(layers.Conv2D(4, 3, name="map")(image)))


def pooled_both_ways(x):
    pools = [layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)]
    return layers.Dense(2)(layers.Concatenate()(pools))


def convolutional_head(x):
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Conv2D(8, 1)(x)
    return layers.Flatten()(layers.Conv2D(2, 1)(x * tf.nn.relu6(x)))


def test_last_feature_map_is_what_the_head_reads():
    assert last_feature_map(chexnet(2, (32, 32, 3), width=0.1, blocks=(1, 1))) == "relu"
    assert last_feature_map(small_net()) == "pool"
    for top in (
        lambda x: layers.Dense(2)(layers.GlobalAveragePooling2D()(x)),
        lambda x: layers.Dense(2)(tf.reduce_mean(x, (1, 2))),
        pooled_both_ways,
        convolutional_head,
    ):
        assert last_feature_map(body(top)) == "map"


def test_last_feature_map_of_a_net_around_a_backbone_is_the_backbones_output():
    inner = body(layers.ReLU())
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(inner(image))))
    assert last_feature_map(model) == inner.name
    assert with_map(model, inner.name)(np.zeros((2, 16, 16, 3), np.float32))[1].shape == (2, 14, 14, 4)


def test_last_feature_map_that_is_none_or_hidden_is_an_error():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(UnsupportedLayerError, match=r"that of nested reads none \(maps inside of a model within it"):
        last_feature_map(nets.nested())
    with pytest.raises(UnsupportedLayerError, match="one output, two_outputs has 2"):
        last_feature_map(nets.two_outputs())
    with pytest.raises(UnsupportedLayerError, match="reads none"):
        last_feature_map(keras.Sequential([layers.Flatten(input_shape=(4, 4, 3)), layers.Dense(2)]))
    with pytest.raises(UnsupportedLayerError, match="built Sequential Keras model, got Own 'own', whose wiring"):
        last_feature_map(Own(name="own"))
