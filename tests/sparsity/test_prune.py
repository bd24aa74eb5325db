"""Weight pruning: exactly the asked zeros, in the right kernels, held while training goes on, in a plain model."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.device.preprocess import normalize
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras, tfmot
from cxr_compress.models.files import load_model, save_model
from cxr_compress.models.zeros import zero_masks
from cxr_compress.sparsity import (
    PruningSteps,
    SparsityTarget,
    allocate,
    measure_sparsity,
    prune_weights,
)
from cxr_compress.sparsity.allocate import zeros_wanted
from cxr_compress.sparsity.prune import ExactMasks, strip_model, wrap_model
from cxr_compress.train import FitConfig, fit
from tests.sparsity.test_measure import mixed_net
from tests.train.images import FINDINGS, SPEC, drawn_images

TRAIN, DEV = drawn_images(64, seed=20), drawn_images(24, seed=21)
CONFIG = FitConfig(epochs=4, batch_size=16, learning_rate=5e-3)
TARGET = 0.6
UNIFORM = SparsityTarget(sparsity=TARGET)

layers = keras.layers


def net() -> keras.Model:
    """Kernels of odd sizes, a nested model, a shared layer and a depthwise one.

    image 32x32x3 -> conv 5x5/4 (5) -> BN -> ReLU -> body[ depthwise -> conv 3x3 (6) ] -> GAP
    GAP -> shared (6) -+-> shared (6) -+-> Add -> dense (7) -> logits (2)
                       +---------------+
    """
    keras.utils.set_random_seed(2)
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(5, 5, strides=4, name="conv")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.9, name="bn")(x))
    body = keras.Sequential(
        [layers.DepthwiseConv2D(3, input_shape=(7, 7, 5), name="depthwise"), layers.Conv2D(6, 3, name="conv")],
        name="body",
    )
    x = layers.GlobalAveragePooling2D(name="gap")(body(x))
    shared = layers.Dense(6, activation="relu", name="shared")
    x = layers.Add(name="add")([shared(x), shared(shared(x))])
    return keras.Model(image, layers.Dense(2, name="logits")(layers.Dense(7, activation="relu", name="dense")(x)))


def prune(model, folder, **options):
    arguments = {"target": UNIFORM, "findings": FINDINGS, "fit": fit, **options}
    config = arguments.pop("config", CONFIG)
    return prune_weights(model, TRAIN, DEV, SPEC, config, folder, **arguments)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    model = net()
    before = model.get_weights()
    plain = prune(model, folder)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # the argument is left as it was
    return folder, model, plain


def largest_difference(model, other):
    return max(np.abs(a - b).max() for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


def test_prune_weights_every_kernel_has_exactly_the_asked_zeros(pruned):
    _, model, plain = pruned
    report = measure_sparsity(plain)
    sizes = {"conv": 5 * 5 * 3 * 5, "body/conv": 3 * 3 * 5 * 6, "shared": 6 * 6, "dense": 6 * 7}
    assert {layer.name: layer.weights for layer in report.layers} == sizes
    assert {layer.name: layer.zeros for layer in report.layers} == {
        n: zeros_wanted(s, TARGET) for n, s in sizes.items()
    }
    assert report.total == pytest.approx(TARGET, abs=0.005)
    assert measure_sparsity(model).zeros == 0


def test_prune_weights_other_weights_are_trained_and_not_zeroed(pruned):
    _, model, plain = pruned
    for name in ("logits", "bn"):
        for old, new in zip(model.get_layer(name).get_weights(), plain.get_layer(name).get_weights(), strict=True):
            assert np.all(new[old != 0] != 0)
            assert np.any(old != new)
    (old, _), (new, _) = (m.get_layer("body").layers[0].get_weights() for m in (model, plain))
    assert np.all(new != 0)
    assert np.any(old != new)


def test_prune_weights_result_is_a_plain_model_of_the_same_layers(pruned, tmp_path):
    _, model, plain = pruned
    assert [(layer.name, type(layer)) for layer in plain.layers] == [(la.name, type(la)) for la in model.layers]
    assert all(len(layer.inbound_nodes) == len(model.get_layer(layer.name).inbound_nodes) for layer in plain.layers)
    path = tmp_path / "pruned.keras"
    save_model(plain, path)
    images = normalize(DEV[0], SPEC)
    expected = plain(images).numpy()
    np.testing.assert_array_equal(keras.models.load_model(path)(images).numpy(), expected)
    assert measure_sparsity(load_model(path)) == measure_sparsity(plain)
    assert np.ptp(expected, axis=0).min() > 1e-2


def test_prune_weights_finished_run_gives_the_same_model_at_once(pruned):
    folder, model, plain = pruned
    log = []
    again = prune(model, folder, progress=log.append)
    assert log == []
    assert largest_difference(again, plain) == 0.0


class StopAt(keras.callbacks.Callback):
    """Ctrl-C at a training step, counted from 0."""

    def __init__(self, step):
        super().__init__()
        self.steps_left = step

    def on_train_batch_end(self, batch, logs=None):
        self.steps_left -= 1
        if self.steps_left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [6, 14])  # 4 steps an epoch, masks are final after 8: while zeros grow, and after
def test_prune_weights_interrupted_run_resumes_to_the_same_model(pruned, tmp_path, step):
    _, model, plain = pruned

    def stopping_fit(*arguments, extra_callbacks, **options):
        return fit(*arguments, extra_callbacks=[*extra_callbacks, StopAt(step)], **options)

    with pytest.raises(KeyboardInterrupt):
        prune(model, tmp_path, fit=stopping_fit)
    assert (tmp_path / "last.npz").exists()
    assert largest_difference(prune(model, tmp_path), plain) == 0.0


def test_prune_weights_folder_of_another_target_is_an_error(pruned):
    folder, model, _ = pruned
    with pytest.raises(CompressionError, match=r"other settings: prune_sparsity \(there 0\.6, now 0\.5\)"):
        prune(model, folder, target=SparsityTarget(sparsity=0.5))


class Watch(keras.callbacks.Callback):
    """Keeps the places of the zeros after every epoch."""

    def __init__(self):
        super().__init__()
        self.zeros = []

    def on_epoch_end(self, epoch, logs=None):
        self.zeros.append(self.model.get_layer("prune_low_magnitude_conv").layer.kernel.numpy() == 0)


def test_prune_weights_zeros_grow_then_stay_where_they_are(tmp_path):
    watch = Watch()

    def watched_fit(*arguments, extra_callbacks, **options):
        return fit(*arguments, extra_callbacks=[*extra_callbacks, watch], **options)

    prune(net(), tmp_path, fit=watched_fit, steps=PruningSteps(0, 8, 1))
    first, *final = watch.zeros
    assert 0 < first.sum() < final[0].sum() == zeros_wanted(5 * 5 * 3 * 5, TARGET)
    for zeros in final[1:]:
        np.testing.assert_array_equal(zeros, final[0])


def test_exact_masks_cut_ties_that_tfmot_alone_keeps(tmp_path):
    model = net()
    kernel = model.get_layer("conv").kernel
    kernel.assign(np.ones(kernel.shape))  # all equal: any threshold keeps every one of them
    model.get_layer("conv").trainable = False
    steps, allocation = PruningSteps(0, 4, 1), allocate(model, UNIFORM)
    wrapped = {}
    for name, extra in {"tfmot": [], "exact": [ExactMasks(allocation, 4)]}.items():
        wrapped[name] = wrap_model(model, allocation, steps)
        callbacks = [tfmot().sparsity.keras.UpdatePruningStep(), *extra]
        config = FitConfig(epochs=1, batch_size=16)
        fit(wrapped[name], TRAIN, DEV, SPEC, config, tmp_path / name, findings=FINDINGS, extra_callbacks=callbacks)
    zeros = strip_model(wrapped["exact"], model, allocation).get_layer("conv").kernel.numpy() == 0
    assert zeros.sum() == zeros_wanted(zeros.size, TARGET)
    with pytest.raises(CompressionError, match="pruning left 0 of 375 weights of conv zeroed, expected 225"):
        strip_model(wrapped["tfmot"], model, allocation)


def test_strip_model_computes_what_tfmots_own_stripping_computes(tmp_path):
    model = net()
    allocation = allocate(model, UNIFORM)
    wrapped = wrap_model(model, allocation, PruningSteps(0, 4, 1))
    callbacks = [tfmot().sparsity.keras.UpdatePruningStep(), ExactMasks(allocation, 4)]
    config = FitConfig(epochs=1, batch_size=16)
    fit(wrapped, TRAIN, DEV, SPEC, config, tmp_path, findings=FINDINGS, extra_callbacks=callbacks)
    ours = strip_model(wrapped, model, allocation)
    images = normalize(DEV[0], SPEC)
    np.testing.assert_array_equal(ours(images).numpy(), tfmot().sparsity.keras.strip_pruning(wrapped)(images).numpy())
    assert np.abs(ours(images).numpy() - model(images).numpy()).max() > 1e-3


def test_prune_weights_run_too_short_for_its_schedule_is_refused_before_training(tmp_path):
    with pytest.raises(CompressionError, match=r"ends at step 17, the run after 16 \(4 epochs of 4 batches\)"):
        prune(net(), tmp_path / "run", steps=PruningSteps(0, 17, 1))
    assert not (tmp_path / "run").exists()


def test_prune_weights_share_as_a_number_is_the_uniform_target(pruned):
    folder, model, plain = pruned
    assert largest_difference(prune(model, folder, target=None, target_sparsity=TARGET), plain) == 0.0
    with pytest.raises(CompressionError, match="give either target or target_sparsity, got None and None"):
        prune(model, folder, target=None)
    with pytest.raises(CompressionError, match=r"either target or target_sparsity, got SparsityTarget\(.* and 0.5"):
        prune(model, folder, target_sparsity=0.5)


def test_prune_weights_running_average_is_refused_before_training(tmp_path):
    config = FitConfig(epochs=4, batch_size=16, ema_decay=0.9)
    with pytest.raises(CompressionError, match=r"prune with ema_decay 0, got 0\.9, and average in the fine-tuning"):
        prune(net(), tmp_path / "run", config=config)
    assert not (tmp_path / "run").exists()


def test_prune_weights_two_of_four_with_steps_of_its_own_is_an_error(tmp_path):
    target = SparsityTarget(pattern="2:4", schedule="constant")
    with pytest.raises(CompressionError, match="first training step: leave steps at None, got begin_step 0, end"):
        prune(net(), tmp_path / "run", target=target, steps=PruningSteps(0, 8, 1))


def test_prune_weights_model_without_a_kernel_but_the_head_is_an_error(tmp_path):
    model = keras.Sequential([layers.Flatten(input_shape=(32, 32, 3)), layers.Dense(2)], name="linear")
    with pytest.raises(UnsupportedLayerError, match="linear has no kernel to prune: apart from the head"):
        prune(model, tmp_path)


def test_prune_weights_subclassed_model_is_an_error(tmp_path):
    class Own(keras.Model):
        """Has no graph to rebuild."""

    with pytest.raises(UnsupportedLayerError, match="got the subclassed Own: rebuild it with the functional API"):
        prune(Own(), tmp_path)


def test_wrap_model_separable_convolution_prunes_its_pointwise_kernel_only():
    model = mixed_net()
    wrapped = wrap_model(model, allocate(model, UNIFORM), PruningSteps(0, 4, 1))
    ((kernel, _, _),) = wrapped.get_layer("prune_low_magnitude_separable").pruning_vars
    assert tuple(kernel.shape) == (1, 1, 4, 6)
    assert not any(layer.name.endswith(("_depthwise", "_head", "_bn")) for layer in wrapped.layers)


def test_pruned_model_fine_tuned_with_its_masks_held_keeps_exactly_its_zeros(pruned, tmp_path):
    _, _, plain = pruned
    copy = keras.models.clone_model(plain)
    copy.set_weights(plain.get_weights())
    masks = zero_masks(copy)
    fit(copy, TRAIN, DEV, SPEC, CONFIG, tmp_path, findings=FINDINGS, masks=masks)
    for name, mask in zero_masks(copy).items():
        np.testing.assert_array_equal(mask, masks[name])
    assert largest_difference(copy, plain) > 1e-3
