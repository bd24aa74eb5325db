"""Batches: the device's own preprocessing, and randomness that depends on seed, epoch and image alone."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.device.preprocess import PreprocessSpec, preprocess
from cxr_compress.errors import DataError
from cxr_compress.train.batches import Batches, ahead
from tests.train.images import SPEC, drawn_images


def batches(count=10, batch_size=4, **options):
    images, labels = drawn_images(count, seed=1)
    return Batches(images, labels, SPEC, batch_size, **options)


def test_batches_unchanged_images_are_bit_equal_to_the_devices_tensors():
    images, labels = drawn_images(5, seed=1)
    pictures, found = Batches(images, labels, SPEC, 5, shuffle=False, augment=False)[0]
    for tensor, image in zip(pictures, images, strict=True):
        np.testing.assert_array_equal(tensor, preprocess(image, SPEC))
    assert pictures.dtype == np.float32
    assert pictures.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(found, labels)
    assert not np.array_equal(pictures[0], preprocess(images[1], SPEC))


def test_batches_color_images_keep_their_channels():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    spec = PreprocessSpec(32, 32, color="rgb")
    pictures, _ = Batches(images, np.array([[0], [1]]), spec, 2, shuffle=False, augment=False)[0]
    np.testing.assert_array_equal(pictures[1], preprocess(images[1], spec))
    augmented, _ = Batches(images, np.array([[0], [1]]), spec, 2)[0]
    assert augmented.shape == pictures.shape


def test_batches_unshuffled_cover_every_image_once_in_order():
    images, labels = drawn_images(10, seed=1)
    parts = list(ahead(Batches(images, labels, SPEC, 4, shuffle=False, augment=False)))
    assert [len(pictures) for pictures, _ in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([found for _, found in parts]), labels)


def test_batches_shuffled_are_full_and_leave_out_other_images_each_epoch():
    images, labels = drawn_images(10, seed=1)
    used = []
    sequence = Batches(images, labels, SPEC, 4, augment=False)
    for epoch in range(20):
        sequence.epoch = epoch
        pictures = np.concatenate([pictures for pictures, _ in ahead(sequence)])
        assert len(pictures) == 8
        used.append({picture.tobytes() for picture in pictures})
    assert all(len(pictures) == 8 for pictures in used)  # none twice within an epoch
    assert len(set.union(*used)) == 10


def test_batches_fewer_images_than_a_batch_give_one_batch_of_all():
    assert [len(pictures) for pictures, _ in ahead(batches(count=3, batch_size=64))] == [3]


def test_batches_same_seed_and_epoch_are_bit_equal_others_are_not():
    first, same, other_seed, other_epoch = batches(), batches(), batches(seed=1), batches()
    other_epoch.on_epoch_end()
    for index in range(len(first)):
        np.testing.assert_array_equal(first[index][0], same[index][0])
        assert np.any(first[index][0] != other_seed[index][0])
        assert np.any(first[index][0] != other_epoch[index][0])


def test_batches_change_of_a_image_does_not_depend_on_its_place_or_the_batch_size():
    images, labels = drawn_images(6, seed=1)
    whole = Batches(images, labels, SPEC, 6, shuffle=False)[0][0]
    pairs = Batches(images, labels, SPEC, 2, shuffle=False)
    np.testing.assert_array_equal(np.concatenate([pairs[2][0], pairs[0][0]]), whole[[4, 5, 0, 1]])


def test_ahead_gives_the_same_batches_as_indexing_and_can_be_stopped_early():
    sequence = batches(count=40)
    for index, (pictures, labels) in enumerate(ahead(sequence, depth=2)):
        np.testing.assert_array_equal(pictures, sequence[index][0])
        np.testing.assert_array_equal(labels, sequence[index][1])
    stream = ahead(sequence)
    next(stream)
    stream.close()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 32, 32), np.float32), np.zeros((2, 1)), r"images must be uint8 \(images, 32, 32\).*got float32"),
        (np.zeros((2, 32, 31), np.uint8), np.zeros((2, 1)), r"got uint8 \(2, 32, 31\): decode them with"),
        (np.zeros((2, 32, 32), np.uint8), np.zeros((3, 1)), r"expected labels .* for 2 images .*got \(3, 1\)"),
        (np.zeros((2, 32, 32), np.uint8), np.zeros(2), r"expected labels .* for 2 images .*got \(2,\)"),
        (np.zeros((0, 32, 32), np.uint8), np.zeros((0, 1)), "for 0 images"),
        (
            np.zeros((2, 32, 32), np.uint8),
            np.full((2, 1), -1),
            "labels must be 0, 1, a soft label in between, or NaN .*: map others",
        ),
        (np.zeros((2, 32, 32), np.uint8), np.full((2, 1), 2.0), "labels must be 0, 1"),
    ],
)
def test_batches_images_and_labels_that_do_not_fit_are_an_error(images, labels, message):
    with pytest.raises(DataError, match=message):
        Batches(images, labels, SPEC, 2)


def test_batches_mixup_blends_each_image_with_another_in_the_share_of_its_labels():
    images = np.stack([np.full((32, 32), 10 * number, np.uint8) for number in range(16)])
    labels = np.stack([[number / 15.0] for number in range(16)]).astype(np.float32)
    batches = Batches(images, labels, SPEC, 16, augment=False, mixup=0.4, shuffle=False)
    pictures, blended = batches[0]
    # Gray value and label both grow evenly with the image's number, so a blend of two keeps their proportion: gray is
    # 150 times the label, to the half level that rounding to uint8 may move it, and float32 noise.
    gray = (pictures[:, 0, 0, 0] * SPEC.std[0] + SPEC.mean[0]) * 255
    np.testing.assert_allclose(gray, 150 * blended[:, 0], atol=0.51)
    moved = np.abs(blended - labels).max(axis=1)
    assert 8 <= np.count_nonzero(moved > 1e-6) <= 16
    own = np.abs(blended[:, 0] * 15 - np.arange(16))
    assert np.all(own <= 7.5)  # its own share is the larger: at most half way to another image
    again, _ = Batches(images, labels, SPEC, 4, augment=False, mixup=0.4, shuffle=False)[0]
    np.testing.assert_array_equal(again, pictures[:4])  # whoever else is in the batch
    plain, _ = Batches(images, labels, SPEC, 16, augment=False, shuffle=False)[0]
    assert np.abs(plain - pictures).max() > 0.1


def test_batches_mixup_with_an_unknown_label_is_unknown():
    images, labels = np.zeros((8, 32, 32), np.uint8), np.full((8, 1), np.nan, np.float32)
    labels[0] = 1.0
    _, blended = Batches(images, labels, SPEC, 8, augment=False, mixup=1.0, shuffle=False)[0]
    assert np.isnan(blended[1:]).all()
