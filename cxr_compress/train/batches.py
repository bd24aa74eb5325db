"""Batches of images for training: the cached uint8 images, changed a little, through the one preprocessing.

The changes are those that another position of the patient or another exposure would make.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.errors import DataError
from cxr_compress.keras2 import keras
from cxr_compress.recipe import AugmentRanges

_BATCHES_AHEAD = 3
_MIXUP_STREAM = 1  # parts the random numbers of blending from those of the changes to an image


DEFAULT_RANGES = AugmentRanges()


class Batches(keras.utils.Sequence):
    """What one epoch sees, as (float32 (batch, height, width, channels), float32 (batch, findings)) pairs.

    Everything random is a pure function of (seed, epoch, index of the image), so a resumed run, another batch size in
    between or another number of threads changes no image. Shuffled batches are all full: the few images left over
    change from epoch to epoch, and batch normalization never sees a batch of one. Unshuffled batches cover every image.

    Attributes:
        epoch: which epoch's order and changes `__getitem__` gives; set it, or let `on_epoch_end` count it up.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        spec: PreprocessSpec,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: bool = True,
        ranges: AugmentRanges = DEFAULT_RANGES,
        mixup: float = 0.0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Check the images and fix the order of the first epoch.

        Args:
            images: uint8 (images, height, width) or (images, height, width, 3), as `data.decode_split` gives them.
            labels: (images, findings), 0 to 1, or NaN for unknown.
            spec: how the model wants its images.
            batch_size: images per batch; a set with fewer images gives one smaller batch.
            seed: of order and changes.
            shuffle: draw a new order each epoch and leave out what does not fill a batch.
            augment: change each image a little; off for scoring.
            ranges: how far.
            mixup: parameter of the Beta distribution of the shares in which each image and its labels are blended with
                another image; 0 blends none.
            share: (i, n): give part i of n of the images of each batch, as one of n workers trains on; n must divide
                the batch. Which images are in a batch does not depend on it.

        Raises:
            DataError: images and labels do not belong together, or hold something else than images and 0/1 labels.
        """
        super().__init__()
        self.images, self.labels = checked_images(images, labels, spec)
        self.spec = spec
        self.batch_size = min(batch_size, len(self.images))
        self.seed = seed
        self.shuffle = shuffle
        self.augment = augment
        self.ranges = ranges
        self.mixup = mixup
        self.share = share
        self.epoch = 0
        self._drawn: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        images = len(self.images)
        return images // self.batch_size if self.shuffle else -(-images // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._in_batch(index)
        part, parts = self.share
        chosen = chosen[part * len(chosen) // parts : (part + 1) * len(chosen) // parts]
        if self.mixup:
            return self._blended(chosen)
        images = np.stack([self._image(int(image)) for image in chosen]) if self.augment else self.images[chosen]
        return normalize(images, self.spec), self.labels[chosen]

    def image_ids(self, index: int) -> list[str]:
        """Hashes of the decoded images in a batch, which name them without their file names: 12 digits of SHA-256."""
        chosen = self._in_batch(index)
        return [hashlib.sha256(np.ascontiguousarray(self.images[image]).data).hexdigest()[:12] for image in chosen]

    def on_epoch_end(self) -> None:
        """Go on to the next epoch's order and changes."""
        self.epoch += 1

    def _in_batch(self, index: int) -> np.ndarray:
        """The images of a whole batch, by number."""
        return self._order()[index * self.batch_size : (index + 1) * self.batch_size]

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.images))
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = np.random.default_rng((self.seed, self.epoch))
            self._drawn = (self.epoch, generator.permutation(len(self.images)))
        return self._drawn[1]

    def _image(self, image: int) -> np.ndarray:
        if not self.augment:
            return np.asarray(self.images[image])
        return augment(self.images[image], np.random.default_rng((self.seed, self.epoch, image)), self.ranges)

    def _blended(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each image with a share of another one of the set, and labels to match; unknown with anything is unknown.

        Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (arXiv 1710.09412), equation 1; the partner is
        drawn for the image and not within the batch, so that it does not depend on who else is in there.
        """
        images, labels = [], []
        for image in map(int, chosen):
            generator = np.random.default_rng((self.seed, self.epoch, image, _MIXUP_STREAM))
            partner = int(generator.integers(len(self.images)))
            share = generator.beta(self.mixup, self.mixup)
            share = float(max(share, 1.0 - share))  # the image itself stays the larger part
            images.append(cv2.addWeighted(self._image(image), share, self._image(partner), 1.0 - share, 0.0))
            labels.append(share * self.labels[image] + (1.0 - share) * self.labels[partner])
        return normalize(np.stack(images), self.spec), np.stack(labels).astype(np.float32)


def ahead(batches: Batches, depth: int = _BATCHES_AHEAD) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Yield the epoch's batches in order while a thread prepares the next ones; OpenCV and NumPy release the GIL."""
    count = len(batches)
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        waiting = deque(pool.submit(batches.__getitem__, index) for index in range(min(depth, count)))
        for index in range(count):
            batch = waiting.popleft().result()
            if index + depth < count:
                waiting.append(pool.submit(batches.__getitem__, index + depth))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def checked_images(images: np.ndarray, labels: np.ndarray, spec: PreprocessSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return images and float32 labels if they belong together.

    Raises:
        DataError: wrong dtype or shape, no image, another count of labels, or labels outside [0, 1] that are not NaN.
    """
    labels = np.asarray(labels, dtype=np.float32)
    wanted = (spec.height, spec.width) if spec.color == "gray" else (spec.height, spec.width, 3)
    if images.dtype != np.uint8 or images.shape[1:] != wanted:
        raise DataError(
            f"images must be uint8 (images, {', '.join(map(str, wanted))}) as the preprocessing spec says, got "
            f"{images.dtype} {images.shape}: decode them with data.decode_split"
        )
    if labels.ndim != 2 or len(labels) != len(images) or not len(images):  # noqa: PLR2004 - images x findings
        raise DataError(f"expected labels (images, findings) for {len(images)} images (at least 1), got {labels.shape}")
    if not np.all(((labels >= 0) & (labels <= 1)) | np.isnan(labels)):
        raise DataError("labels must be 0, 1, a soft label in between, or NaN for unknown: map others before training")
    return images, labels


def augment(image: np.ndarray, generator: np.random.Generator, ranges: AugmentRanges = DEFAULT_RANGES) -> np.ndarray:
    """Return a moved, turned, scaled and re-exposed copy of one image; the argument is left as it is.

    Eight numbers are drawn from `generator` whatever the ranges are, so the same generator state always gives the
    same image. What comes in from outside repeats the border pixel.

    Args:
        image: uint8 (height, width) or (height, width, 3).
        generator: of the random amounts.
        ranges: how far the image may be changed.

    Returns:
        uint8 of the same shape.
    """
    amounts = generator.uniform(-1.0, 1.0, size=8)
    moved = _move(image, amounts[:4], ranges)
    if ranges.mirror and amounts[7] > 0:
        moved = np.ascontiguousarray(moved[:, ::-1])
    contrast = 1.0 + ranges.contrast * amounts[4]
    table = _exposure_table(float(moved.mean()), contrast, ranges.brightness * amounts[5])
    return cv2.LUT(moved, _bent(table, ranges.gamma * float(amounts[6])))


def _move(image: np.ndarray, amounts: np.ndarray, ranges: AugmentRanges) -> np.ndarray:
    height, width = image.shape[:2]
    center = ((width - 1) / 2.0, (height - 1) / 2.0)
    matrix = cv2.getRotationMatrix2D(center, ranges.rotation * amounts[0], 1.0 + ranges.scale * amounts[1])
    matrix[:, 2] += (ranges.shift * width * amounts[2], ranges.shift * height * amounts[3])
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _exposure_table(mean: float, contrast: float, brightness: float) -> np.ndarray:
    """The 256 new gray values: a table is the fastest exact way to map a uint8 image."""
    levels = (np.arange(256) - mean) * contrast + mean + brightness
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _bent(table: np.ndarray, log_exponent: float) -> np.ndarray:
    """The table followed by a gamma curve; 0 leaves it as it is."""
    if not log_exponent:
        return table
    return np.rint(255.0 * (table / 255.0) ** np.exp(log_exponent)).astype(np.uint8)
