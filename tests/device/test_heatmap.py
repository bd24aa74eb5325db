"""Class activation maps on the device, where no TensorFlow is: both runtimes, one float map a finding, pictures."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.heatmap import CAPTION, overlay, pick_map, to_png
from cxr_compress.errors import DataError, ModelFileError
from tests.device.images import draw_image
from tests.device.reference import CAM_EXPECTED, CAM_MODEL, INT8_MODEL

LABELS = ("opacity", "large heart")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(CAM_MODEL)


def test_heatmap_mean_and_bias_are_the_logit_and_another_findings_are_not(classifier: Classifier) -> None:
    bias = json.loads(CAM_EXPECTED.read_text())["bias"]
    step, coarse = classifier.output_scale, classifier._run.cam
    assert step is not None
    assert coarse is not None
    assert coarse.scale is not None
    # Two steps of the logit, for its own rounding and that of the mean in front of the Dense layer; and six standard
    # errors of the mean of 64 roundings of the map, whose steps are 12 times as wide in this network of random weights.
    limit = 2 * step + 6 * coarse.scale / np.sqrt(12 * 64)
    wrong = []
    for seed in range(8):
        found = classifier.predict(draw_image(seed))
        for number, label in enumerate(LABELS):
            heatmap = found.heatmap(label)
            assert (heatmap.shape, heatmap.dtype) == ((8, 8), np.float32)
            assert abs(heatmap.mean() + bias[number] - found.logits[number]) <= limit
            wrong.append(abs(heatmap.mean() + bias[1 - number] - found.logits[1 - number]))
    assert min(wrong) > limit
    assert max(wrong) > 50 * limit  # the control: the map of the other finding


def test_heatmap_is_within_five_steps_of_the_reference_one(classifier: Classifier) -> None:
    reference = json.loads(CAM_EXPECTED.read_text())
    found = classifier.predict(draw_image(reference["image"]))
    steps = classifier._run.cam
    assert steps is not None
    assert steps.scale is not None
    for label, rows in reference["maps"].items():
        # Runtimes round int8 differently; nothing averages the cells of a map, of which one was 4 steps apart.
        apart = np.abs(found.heatmap(label) - np.array(rows)) / steps.scale
        assert apart.max() < 5.01
        assert apart.mean() < 0.5
        assert np.abs(found.heatmap(label)[::-1] - np.array(rows)).mean() > 5 * steps.scale  # the control: upside down


def test_predict_with_a_map_gives_the_logits_that_logits_gives(classifier: Classifier) -> None:
    from cxr_compress.device.preprocess import preprocess

    image = draw_image(3)
    batch = preprocess(image, classifier.spec)[np.newaxis]
    assert np.array_equal(classifier.predict(image).logits, classifier.logits(batch)[0])


def test_heatmap_of_a_file_without_map_or_of_an_unknown_finding_fails() -> None:
    found = Classifier(INT8_MODEL).predict(draw_image(0))
    assert found.cam is None
    with pytest.raises(ModelFileError, match=r"gives logits alone, no map: export it with --head=logits\+cam"):
        found.heatmap("opacity")
    with pytest.raises(ModelFileError, match="no map"):
        Classifier(INT8_MODEL).require_map()
    with pytest.raises(DataError, match="expected a finding of opacity, large heart; got 'Opacity'"):
        pick_map(np.zeros((2, 2, 2), np.float32), LABELS, "Opacity")


def test_overlay_colors_what_raises_red_and_what_lowers_blue() -> None:
    image = np.full((200, 100), 128, np.uint8)
    heatmap = np.array([[2.0, 0.0], [0.0, -2.0]], np.float32)
    picture = overlay(image, heatmap, title="opacity: 0.90")
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (100, 3)
    red, _, blue = picture[10, 10].astype(int)
    assert red > 128 > blue
    red, _, blue = picture[190, 90].astype(int)
    assert blue > 128 > red
    assert np.abs(picture[100, 50].astype(int) - 128).max() <= 1  # halfway between the two nothing is raised or lowered
    assert picture[200:].max() > 200  # letters in the footer
    assert (image == 128).all()


def test_overlay_with_a_limit_shows_two_maps_on_one_scale_and_without_each_on_its_own() -> None:
    image = np.full((64, 64), 100, np.uint8)
    weak, strong = np.full((2, 2), 0.1, np.float32), np.full((2, 2), 1.0, np.float32)
    assert np.array_equal(overlay(image, weak)[:64], overlay(image, strong)[:64])
    assert not np.array_equal(overlay(image, weak, limit=1.0)[:64], overlay(image, strong, limit=1.0)[:64])
    assert np.array_equal(overlay(image, np.zeros((2, 2), np.float32))[:64, :, 0], image)


def test_overlay_of_a_large_image_is_made_small_and_color_is_kept() -> None:
    image = np.zeros((300, 2048, 3), np.uint8)
    image[..., 1] = 200
    picture = overlay(image, np.zeros((7, 7), np.float32))
    assert picture.shape[1] == 1024
    assert (picture[:150] == (0, 200, 0)).all()


def test_to_png_holds_the_pixels_and_no_text() -> None:
    picture = overlay(np.full((40, 40), 9, np.uint8), np.ones((2, 2), np.float32), title="Pleura é")
    content = to_png(picture)
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), picture)
    assert b"tEXt" not in content
    assert "not an outline" in CAPTION


@pytest.mark.parametrize(
    ("image", "heatmap", "text"),
    [
        (np.zeros((4, 4), np.float32), np.zeros((2, 2), np.float32), r"expected an image as uint8 .* got float32"),
        (np.zeros((4, 4, 4), np.uint8), np.zeros((2, 2), np.float32), r"expected an image as uint8"),
        (np.zeros((4, 4), np.uint8), np.zeros((2, 2, 1), np.float32), r"expected a map \(h, w\) of finite numbers"),
        (np.zeros((4, 4), np.uint8), np.full((2, 2), np.nan, np.float32), r"expected a map"),
    ],
)
def test_overlay_of_something_else_fails(image: np.ndarray, heatmap: np.ndarray, text: str) -> None:
    with pytest.raises(DataError, match=text):
        overlay(image, heatmap)
