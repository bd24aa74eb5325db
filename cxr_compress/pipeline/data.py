"""The images of a run in memory: decoded once, through the device's preprocessing, and hashed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_compress.data import Dataset, Split, decode_split, load_dataset
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.recipe import Recipe

Images = npt.NDArray[np.uint8]
Decoding = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class SplitImages:
    """One split: what is known of it and its decoded images.

    Attributes:
        split: labels, patients, files.
        images: uint8 (n, height, width) or (n, height, width, 3).
    """

    split: Split
    images: Images

    @property
    def pair(self) -> tuple[Images, npt.NDArray[np.float32]]:
        """Images and labels, as training takes them."""
        return self.images, self.split.labels

    def digest(self) -> str:
        """A hash of images, labels and who belongs together; no name or path goes into it."""
        found = hashlib.sha256(np.ascontiguousarray(self.images).data)
        found.update(np.ascontiguousarray(self.split.labels).data)
        _, groups = np.unique(self.split.patients, return_inverse=True)
        found.update(np.ascontiguousarray(groups, dtype=np.int64).data)
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class RunData:
    """Everything a run knows of its data set.

    Attributes:
        dataset: findings, attribution, splits.
        spec: the preprocessing of every image in every stage.
        train: what weights and ranges come from.
        dev: what every choice is made on.
        decode_test: reads the test images; called when they are scored, and not by what chooses on dev.
    """

    dataset: Dataset
    spec: PreprocessSpec
    train: SplitImages
    dev: SplitImages
    decode_test: Callable[[], SplitImages]

    @functools.cached_property
    def test(self) -> SplitImages:
        """What is scored once per final artifact."""
        return self.decode_test()

    def sample(self, count: int, seed: int) -> Images:
        """(count, ...) uint8: seeded draws from the training images without repetition; all where they are fewer."""
        return self.sample_labeled(count, seed)[0]

    def sample_labeled(self, count: int, seed: int) -> tuple[Images, npt.NDArray[np.float32]]:
        """The images of `sample` with their (count, findings) float32 labels."""
        count = min(count, len(self.train.images))
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.train.images), size=count, replace=False))
        images, labels = self.train.pair
        return np.asarray(images[chosen]), np.asarray(labels[chosen])

    def batches(self, images: Images, size: int = 32) -> Iterator[npt.NDArray[np.float32]]:
        """Preprocessed float32 (n, height, width, channels) batches of decoded images."""
        for start in range(0, len(images), size):
            yield normalize(images[start : start + size], self.spec)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images, patients and positives per split, for the manifest."""
        return {
            split.name: {
                "images": len(split),
                "patients": len(set(split.patients)),
                # Of unknown labels none is positive: that would read as if somebody had looked.
                **{
                    f"positive {finding}": int(total)
                    for finding, total in zip(self.dataset.findings, split.positive.sum(axis=0), strict=True)
                    if self.dataset.labeled
                },
            }
            for split in self.dataset.splits
        }


def load_run_data(
    recipe: Recipe,
    data_dir: Path,
    decoding: Decoding,
    preprocess: PreprocessSpec | None = None,
    select: Callable[[Dataset], Dataset] = lambda dataset: dataset,
    *,
    before_decoding: Callable[[Dataset, PreprocessSpec], None] = lambda dataset, spec: None,
) -> RunData:
    """Read and check the three splits of a recipe's data set, and decode two; test images are decoded when needed.

    Args:
        recipe: names the set, its size and the dev share.
        data_dir: where the set lies.
        decoding: is told (split name, images done, images in all).
        preprocess: how the model to start from wants its images, at whatever size; where None as CheXNet,
            gray or in color as the recipe or else the set says.
        select: which findings of the set are wanted, before any image is decoded.
        before_decoding: is called once the lists are read; what it raises spares reading the images.

    Raises:
        DataError: as `load_dataset` and `decode_split`.
    """
    dataset = select(
        load_dataset(
            recipe.data.dataset,
            data_dir,
            dev_fraction=recipe.data.dev_fraction,
            seed=recipe.run.seed,
            allow_missing=recipe.data.allow_missing,
            options=recipe.data.options,
        )
    )
    size = recipe.model.input_size
    own = PreprocessSpec(size, size, color=recipe.model.color or dataset.color)
    spec = own if preprocess is None else replace(preprocess, height=size, width=size)
    before_decoding(dataset, spec)

    def decoded(split: Split) -> SplitImages:
        images = decode_split(split, spec, progress=lambda done, total: decoding(split.name, done, total))
        return SplitImages(split, images)

    return RunData(dataset, spec, decoded(dataset.train), decoded(dataset.dev), lambda: decoded(dataset.test))
