"""Every allocation, criterion and pattern through a real training: its zeros, its pattern, and a stop on the way."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models.zeros import kernel_of, prunable_layers, zero_masks
from cxr_compress.sparsity import (
    PruningSteps,
    SparsityTarget,
    allocate,
    check_allocation,
    layer_outcomes,
    measure_sparsity,
)
from cxr_compress.sparsity.masks import exact_mask
from cxr_compress.train import FitConfig, fit
from tests.sparsity.test_prune import TARGET, UNIFORM, StopAt, largest_difference, net, prune

SHORT = FitConfig(epochs=3, batch_size=16, learning_rate=5e-3)  # 4 steps an epoch, 12 in all, masks final after 6
KINDS = {
    "global": SparsityTarget(sparsity=TARGET, allocation="global"),
    "erk": SparsityTarget(sparsity=TARGET, allocation="erk", schedule="polynomial", power=1.0, initial_sparsity=0.3),
    "threshold": SparsityTarget(threshold=0.9, threshold_unit="std", schedule="constant"),
    "2:4": SparsityTarget(pattern="2:4", schedule="constant"),
    "block": SparsityTarget(sparsity=0.5, pattern="block", block=(2, 1)),
}


class Epochs(keras.callbacks.Callback):
    """Keeps every kernel's mask after each epoch, by the wrapper's name."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def on_epoch_end(self, epoch, logs=None):
        named = {layer.name: layer for layer in self.model.layers if hasattr(layer, "pruning_vars")}
        self.masks.append({name: layer.pruning_vars[0][1].numpy() for name, layer in named.items()})


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """What an undisturbed run of a kind gave: (model, masks after each epoch, lines of progress); each trained once."""
    done = {}

    def run(kind):
        if kind not in done:
            log, epochs = [], Epochs()

            def watched_fit(*arguments, extra_callbacks, **options):
                return fit(*arguments, extra_callbacks=[*extra_callbacks, epochs], **options)

            folder = tmp_path_factory.mktemp("kind")
            options = {"target": KINDS[kind], "config": SHORT, "fit": watched_fit, "progress": log.append}
            done[kind] = (prune(net(), folder, **options), epochs.masks, log)
        return done[kind]

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_prune_weights_every_kind_of_target_ends_with_exactly_its_zeros(whole_run, kind):
    plain, masks, log = whole_run(kind)
    allocation = allocate(net(), KINDS[kind])
    assert {outcome.name: outcome.zeros for outcome in layer_outcomes(plain, allocation)} == {
        layer.name: layer.zeros for layer in allocation.layers
    }
    assert measure_sparsity(plain).total == allocation.total > 0
    assert log[: len(allocation.notes())] == list(allocation.notes())
    for name, mask in zero_masks(plain).items():  # the pattern, seen in the result: the same mask once more
        kernel = kernel_of(prunable_layers(plain)[name]).numpy()
        np.testing.assert_array_equal(exact_mask(kernel, allocation.pruned[name].zeros, KINDS[kind], held=mask), mask)
    for name, mask in masks[1].items():  # final by the end of the second epoch, in the third the same
        np.testing.assert_array_equal(masks[2][name], mask)


@pytest.mark.parametrize("kind", ["global", "2:4"])
def test_prune_weights_stopped_run_of_another_kind_resumes_to_the_same_model(whole_run, tmp_path, kind):
    def stopping_fit(*arguments, extra_callbacks, **options):
        return fit(*arguments, extra_callbacks=[*extra_callbacks, StopAt(5)], **options)

    with pytest.raises(KeyboardInterrupt):
        prune(net(), tmp_path, target=KINDS[kind], config=SHORT, fit=stopping_fit)
    assert (tmp_path / "last.npz").exists()
    resumed = prune(net(), tmp_path, target=KINDS[kind], config=SHORT)
    assert largest_difference(resumed, whole_run(kind)[0]) == 0.0


def test_prune_weights_constant_threshold_cuts_what_is_below_it_at_the_first_step(tmp_path):
    class FirstMask(keras.callbacks.Callback):
        """Keeps the mask of `conv` as TF-MOT made it in the first step."""

        mask = None

        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1 and self.mask is None:
                self.mask = self.model.get_layer("prune_low_magnitude_conv").pruning_vars[0][1].numpy()

    first = FirstMask()

    def watched_fit(*arguments, extra_callbacks, **options):
        return fit(*arguments, extra_callbacks=[*extra_callbacks, first], **options)

    model = net()
    start = np.abs(model.get_layer("conv").kernel.numpy())
    config = FitConfig(epochs=1, batch_size=16)
    prune(model, tmp_path, target=KINDS["threshold"], config=config, fit=watched_fit, steps=PruningSteps(0, 4, 1))
    np.testing.assert_array_equal(first.mask == 0, start < 0.9 * start_std(model))
    assert 0.1 < np.mean(first.mask) < 0.9


def start_std(model):
    """Standard deviation of `conv`'s kernel, in double precision."""
    return np.std(model.get_layer("conv").kernel.numpy().astype(np.float64))


def test_prune_weights_best_epoch_has_final_masks(tmp_path):
    chosen = {}

    def watched_fit(*arguments, **options):
        chosen["from"] = options["best_from_epoch"]
        chosen["result"] = fit(*arguments, **options)
        return chosen["result"]

    plain = prune(net(), tmp_path, config=SHORT, fit=watched_fit, steps=PruningSteps(0, 9, 1))
    assert chosen["from"] == 3  # step 9 is in the third epoch
    assert chosen["result"].best_epoch == 3
    check_allocation(plain, allocate(net(), UNIFORM))


def test_check_allocation_names_a_kernel_with_too_few_zeros():
    model = net()
    allocation = allocate(model, UNIFORM)
    with pytest.raises(CompressionError, match=r"fewer zeros than allocated: conv \(0 of 225\), body/conv"):
        check_allocation(model, allocation)
