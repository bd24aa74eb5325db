"""Zeros that stay: through training, its average, a resume and a file; and the word when one was lost."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.zeros import check_zeros, hold_zeros, kernel_of, prunable_layers, zero_masks
from cxr_compress.train import FitConfig, fit
from tests.nets import nested
from tests.train.images import FINDINGS, SPEC, drawn_images, small_net

layers = keras.layers
TRAIN, DEV = drawn_images(64, seed=20), drawn_images(24, seed=21)
# Weight decay and Adam's moments both move a weight whose gradient is 0.
CONFIG = FitConfig(epochs=3, batch_size=16, learning_rate=5e-3, weight_decay=0.1)
CONFIGS = {"plain": CONFIG, "averaged": FitConfig(**{**CONFIG.__dict__, "ema_decay": 0.9})}


def sparse_net() -> keras.Model:
    """`small_net` with every second weight of conv1 and conv2 zero, none of their filters whole: those never learn."""
    model = small_net()
    for name in ("conv1", "conv2"):
        kernel = model.get_layer(name).kernel
        kernel.assign(np.where(np.indices(kernel.shape).sum(axis=0) % 2, kernel.numpy(), 0))
    return model


def pairs(model, masks):
    return [(kernel_of(layer), masks[name]) for name, layer in prunable_layers(model).items() if name in masks]


def train(model, folder, config=CONFIG, **options):
    return fit(model, TRAIN, DEV, SPEC, config, folder, findings=FINDINGS, **options)


def test_zero_masks_has_the_kernels_with_zeros_and_not_the_head():
    model = sparse_net()
    head = model.get_layer("logits").kernel
    head.assign(np.zeros(head.shape))
    masks = zero_masks(model)
    assert list(masks) == ["conv1", "conv2"]
    for name, mask in masks.items():
        assert mask.dtype == np.float32
        np.testing.assert_array_equal(mask, model.get_layer(name).kernel.numpy() != 0)
    assert masks["conv1"].sum() == 3 * 3 * 3 * 8 // 2
    assert zero_masks(small_net()) == {}


def test_zero_masks_layers_of_a_nested_model_carry_its_name():
    model = nested()
    kernel = model.get_layer("backbone").get_layer("body").kernel
    kernel.assign(kernel.numpy() * (np.arange(10) > 4))
    assert list(zero_masks(model)) == ["backbone/body"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_hold_zeros_a_real_training_keeps_every_zero_and_trains_the_rest(tmp_path, kind):
    model, start = sparse_net(), sparse_net()
    masks = zero_masks(model)
    hold_zeros(pairs(model, masks))
    train(model, tmp_path, CONFIGS[kind])
    check_zeros(model, masks)
    for name, mask in masks.items():
        old, new = start.get_layer(name).kernel.numpy(), model.get_layer(name).kernel.numpy()
        assert np.all(new[mask == 0] == 0)
        assert not np.any(np.signbit(new[mask == 0]))  # -0.0 would be other bytes
        assert np.all(new[mask == 1] != old[mask == 1])


@pytest.mark.parametrize("kind", CONFIGS)
def test_hold_zeros_control_without_it_the_same_training_loses_them(tmp_path, kind):
    model = sparse_net()
    masks = zero_masks(model)
    train(model, tmp_path, CONFIGS[kind])
    with pytest.raises(CompressionError, match=r"small_net lost zeros .* in conv1, .* in conv2; train it with its"):
        check_zeros(model, masks)


def test_hold_zeros_every_saved_state_of_the_run_has_the_zeros(tmp_path):
    model = sparse_net()
    masks = zero_masks(model)
    hold_zeros(pairs(model, masks))
    train(model, tmp_path, CONFIGS["averaged"])
    place = next(index for index, weight in enumerate(model.weights) if weight is model.get_layer("conv2").kernel)
    with np.load(tmp_path / "last.npz", allow_pickle=False) as state:
        found = [state[name] for name in state.files if state[name].shape == masks["conv2"].shape]
        # Weights and their average; Adam's two moments have the shape too, and are not 0 where the weights are.
        zeroed = [array for array in found if np.all(array[masks["conv2"] == 0] == 0)]
    assert len(found) == 4
    assert len(zeroed) == 2
    assert any(np.array_equal(array, model.weights[place].numpy()) for array in zeroed)


def test_hold_zeros_interrupted_run_resumes_to_the_same_zeros_and_weights(tmp_path):
    class StopAt(keras.callbacks.Callback):
        """Ctrl-C in the second epoch."""

        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            if self.steps == 6:
                raise KeyboardInterrupt

    results = {}
    for name in ("whole", "resumed"):
        model = sparse_net()
        masks = zero_masks(model)
        hold_zeros(pairs(model, masks))
        if name == "resumed":
            with pytest.raises(KeyboardInterrupt):
                train(model, tmp_path / name, extra_callbacks=[StopAt()])
            model = sparse_net()  # as a new process would
            hold_zeros(pairs(model, masks))
        train(model, tmp_path / name)
        check_zeros(model, masks)
        results[name] = model.get_weights()
    for whole, resumed in zip(results["whole"], results["resumed"], strict=True):
        np.testing.assert_array_equal(whole, resumed)


def test_hold_zeros_saved_model_loads_with_plain_keras_and_is_free(tmp_path):
    model = sparse_net()
    masks = zero_masks(model)
    hold_zeros(pairs(model, masks))
    model.save(tmp_path / "held.keras")
    assert model.get_config() == sparse_net().get_config()
    loaded = keras.models.load_model(tmp_path / "held.keras")
    assert all(weight.constraint is None for weight in loaded.weights)
    images = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:])).astype(np.float32)
    np.testing.assert_array_equal(loaded(images).numpy(), model(images).numpy())
    check_zeros(loaded, masks)
    train(keras.models.clone_model(model), tmp_path / "clone")  # knows of no mask, and needs none


def step_towards(variable, value, optimizer=None):
    """One step of gradient descent with a large rate towards a value."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum((tf.cast(variable, tf.float32) - value) ** 2)
    (optimizer or keras.optimizers.SGD(0.4)).apply_gradients([(tape.gradient(loss, variable), variable)])


def test_hold_zeros_takes_effect_at_once_and_the_last_mask_counts():
    variable = tf.Variable([1.0, 2.0, 3.0])
    hold_zeros([(variable, np.array([0, 1, 1]))])
    np.testing.assert_array_equal(variable.numpy(), [0, 2, 3])
    hold_zeros([(variable, np.array([1, 0, 1]))])
    step_towards(variable, 5.0)
    np.testing.assert_array_equal(variable.numpy() == 0, [False, True, False])


def test_hold_zeros_infinite_weights_are_zero_all_the_same():
    variable = tf.Variable([0.0, 2.0])
    hold_zeros([(variable, np.array([0, 1]))])
    step_towards(variable, np.float32("inf"))
    assert variable.numpy()[0] == 0  # a product with the mask would be NaN
    assert np.isinf(variable.numpy()[1])


def test_hold_zeros_a_layers_own_constraint_still_applies():
    layer = layers.Dense(3, use_bias=False, kernel_constraint=keras.constraints.NonNeg())
    layer.build((None, 2))
    mask = np.array([[1, 0, 1], [1, 1, 0]])
    hold_zeros([(layer.kernel, mask)])
    layer.kernel.assign(np.full((2, 3), 0.5) * mask)
    step_towards(layer.kernel, np.array([[-9, 9, 9], [9, 9, 9]], np.float32))
    assert layer.kernel.numpy()[0, 0] == 0  # the layer's own: not below 0
    np.testing.assert_array_equal(layer.kernel.numpy() > 0, np.array([[0, 0, 1], [1, 1, 0]], bool))
    assert layer.get_config()["kernel_constraint"]["class_name"] == "NonNeg"


def test_hold_zeros_mixed_precision_variables_are_held():
    layer = layers.Dense(3, use_bias=False, dtype="mixed_float16")
    layer.build((None, 2))
    mask = np.array([[1, 0, 1], [1, 1, 0]])
    hold_zeros([(layer.kernel, mask)])
    optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.1), dynamic=False, initial_scale=1)
    step_towards(layer.kernel, 5.0, optimizer)
    np.testing.assert_array_equal(layer.kernel.numpy() == 0, mask == 0)


def test_hold_zeros_replicated_variables_are_held():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        variable = tf.Variable([1.0, 2.0, 3.0])
        optimizer = keras.optimizers.Adam(0.4)
    mask = np.array([0, 1, 1])
    hold_zeros([(variable, mask)])

    @tf.function
    def step():
        strategy.run(lambda: step_towards(variable, 5.0, optimizer))

    step()
    np.testing.assert_array_equal(variable.numpy() == 0, mask == 0)


def test_hold_zeros_mask_of_another_width_is_an_error():
    with pytest.raises(CompressionError, match=r"the mask of .* has shape \(2,\), the variable \(3,\): take the masks"):
        hold_zeros([(tf.Variable([1.0, 2.0, 3.0]), np.ones(2))])


def test_check_zeros_of_a_rebuilt_model_says_what_is_there():
    masks = zero_masks(sparse_net())
    with pytest.raises(CompressionError, match=r"for conv2, small_net has shape \(3, 3, 8, 8\): take the masks again"):
        check_zeros(small_net(), {"conv2": masks["conv2"][..., :6]})
    with pytest.raises(CompressionError, match="for gone, small_net has no such layer"):
        check_zeros(small_net(), {"gone": masks["conv2"]})
