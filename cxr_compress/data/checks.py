"""Looks at every image of a set and reports all that is wrong with it at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.dataset import Dataset, Problem, ProblemKind, find_problems
from cxr_compress.data.splits import Split, join_splits
from cxr_compress.device.preprocess import PreprocessSpec, load_uint8
from cxr_compress.errors import DataError

THUMBNAIL = 32  # pixels per edge
MAX_DISTANCE = 5  # bits; saving an image anew at JPEG quality 40 and half its size moves up to 4 of 64
_BANDS = (11, 11, 11, 11, 10, 10)  # one more than MAX_DISTANCE, so that one band of each such pair is untouched
_SAME = 0.99  # correlation of thumbnails
_LOW = 8  # frequencies per axis that the hash keeps
_FLAT = 2.0  # standard deviation of gray levels below which a thumbnail shows nothing
_BLOCK = 1 << 20  # pairs compared at once: 8 MB

Images = NDArray[np.uint8]
Hashes = NDArray[np.uint64]


def perceptual_hash(thumbnail: Images) -> int:
    """64 bits that survive another format, size, brightness or contrast.

    Args:
        thumbnail: uint8 (32, 32), gray.

    Source:
        The DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), 3.2.1: the
        8 x 8 lowest frequencies against their median.
    """
    low = cv2.dct(thumbnail.astype(np.float32))[:_LOW, :_LOW].ravel()
    bits = low > np.median(low[1:])  # the first is the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def equal_groups(digests: Sequence[bytes]) -> list[tuple[int, ...]]:
    """Positions with the same digest, where two or more share one; in the order of the first of each.

    Args:
        digests: digests of files; b"" belongs to no group.
    """
    where: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        where.setdefault(digest, []).append(position)
    return [tuple(group) for digest, group in where.items() if digest and len(group) > 1]


def similar_groups(thumbnails: Images) -> list[tuple[int, ...]]:
    """Positions of images that show the same; two or more each, in the order of the first of each.

    Takes about n * n / 1000 comparisons of hashes instead of n * n / 2. Flat images (all black) are passed over.

    Args:
        thumbnails: uint8 (n, 32, 32), gray.
    """
    not_flat = np.flatnonzero(thumbnails.std(axis=(1, 2)) >= _FLAT)
    pictures = thumbnails[not_flat]
    hashes = np.array([perceptual_hash(picture) for picture in pictures], np.uint64)
    parent = np.arange(len(pictures))
    leaders = [leader for group in _runs(hashes) for leader in _link_equal(group, pictures, parent)]
    for one, other in _candidates(hashes, np.array(leaders, np.int64)):
        same = _correlations(pictures, one, other) >= _SAME
        for a, b in zip(one[same].tolist(), other[same].tolist(), strict=True):
            _link(parent, a, b)
    roots = [_root(parent, position) for position in range(len(pictures))]
    groups: dict[int, list[int]] = {}
    for position, root in enumerate(roots):
        groups.setdefault(root, []).append(int(not_flat[position]))
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _runs(keys: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """The positions of each different key."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order])) + 1
    yield from (run for run in np.split(order, starts) if len(run))


def _link_equal(group: NDArray[np.int64], pictures: Images, parent: NDArray[np.int64]) -> list[int]:
    """Link images of one hash with those they equal; the first of each, so that a thousand copies are one candidate."""
    leaders = []
    while len(group):
        leader = int(group[0])
        leaders.append(leader)
        rest = group[1:]
        same = _correlations(pictures, np.full(len(rest), leader), rest) >= _SAME
        parent[rest[same]] = leader
        group = rest[~same]
    return leaders


def _candidates(hashes: Hashes, members: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of members within MAX_DISTANCE bits: at least one of six bands of such a pair is equal."""
    shift = 0
    for width in _BANDS:
        keys = (hashes[members] >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        shift += width
        for run in _runs(keys):
            yield from _close_pairs(hashes, members[run])


def _close_pairs(hashes: Hashes, bucket: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of one bucket within MAX_DISTANCE bits, a block of rows at a time."""
    rows = max(1, _BLOCK // len(bucket))
    for start in range(0, len(bucket) - 1, rows):
        block = bucket[start : start + rows]
        near = _bit_counts(hashes[block][:, None] ^ hashes[bucket][None]) <= MAX_DISTANCE
        one, other = np.nonzero(near)
        ahead = other > one + start
        if ahead.any():
            yield block[one[ahead]], bucket[other[ahead]]


def _bit_counts(words: Hashes) -> NDArray[np.uint64]:
    """Ones in each word; numpy has a function for it only from 2.0 on."""
    fives, threes = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
    pairs = words - ((words >> np.uint64(1)) & fives)
    nibbles = (pairs & threes) + ((pairs >> np.uint64(2)) & threes)
    octets = (nibbles + (nibbles >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (octets * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _correlations(pictures: Images, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float32]:
    """Pearson's, of pairs of thumbnails."""
    return np.asarray((_standardize(pictures[one]) * _standardize(pictures[other])).sum(axis=1), np.float32)


def _standardize(pictures: Images) -> NDArray[np.float32]:
    """(n, 1024) rows of mean 0 and length 1."""
    rows = pictures.reshape(len(pictures), THUMBNAIL * THUMBNAIL).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _root(parent: NDArray[np.int64], position: int) -> int:
    """The group of an image."""
    while parent[position] != position:
        parent[position] = parent[parent[position]]
        position = int(parent[position])
    return position


def _link(parent: NDArray[np.int64], one: int, other: int) -> None:
    """Join two groups; the earlier image leads."""
    low, high = sorted((_root(parent, one), _root(parent, other)))
    parent[high] = low


_QUEUED = 64  # images per worker and wave: smooth progress, and Ctrl-C ends at once
_GRAY = 2  # axes of a gray image


@dataclass(frozen=True)
class Count:
    """How often a finding is in a split.

    Attributes:
        split: "train", "dev" or "test".
        images: images in the split.
        patients: patients in the split.
        finding: name of the finding.
        positives: images known to have it (a soft label above one half counts).
        unknown: images without a label of it.
    """

    split: str
    images: int
    patients: int
    finding: str
    positives: int
    unknown: int


@dataclass(frozen=True)
class _Look:
    """The content of one image, or why it cannot be used."""

    digest: bytes  # b"" where it could not be read
    thumbnail: NDArray[np.uint8] | None
    trouble: ProblemKind | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Images:
    """All images of a set, one split after the other."""

    dataset: Dataset
    split: Split
    parts: tuple[str, ...]

    def name(self, image: int) -> str:
        """The path of an image, or its position in a set of arrays."""
        if not self.split.paths:
            return f"{self.parts[image]} image {image - self.parts.index(self.parts[image])}"
        return str(self.split.paths[image])


def count_images(dataset: Dataset) -> list[Count]:
    """Images, patients, positives and unknown labels for each finding of each split; one line a split without any."""
    dataset = dataset if dataset.findings else dataset.with_unknown(["(no labels)"])
    return [
        Count(split.name, len(split), len(set(split.patients)), finding, int(positives), int(len(split) - known))
        for split in dataset.splits
        for finding, positives, known in zip(
            dataset.findings, split.positive.sum(axis=0), split.known.sum(axis=0), strict=True
        )
    ]


def examine(
    dataset: Dataset, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> list[Problem]:
    """All problems of a set: those of its splits, and those of its files.

    Every file is read and decoded in full. Beside the set's own records this holds 1 KB an image.

    Args:
        dataset: as a reader gives it, unchecked; listed images may be missing.
        workers: threads; None for one per core.
        progress: called as (images done, images in all) from the calling thread.

    Returns:
        The worst first: those of `find_problems`; missing and corrupt files; the same file, then the same image,
        in several splits, then within one split.
    """
    images = _Images(
        dataset,
        join_splits(dataset.splits, "all"),
        tuple(split.name for split in dataset.splits for _ in range(len(split))),
    )
    looks = _look_at_all(images, workers or os.cpu_count() or 1, progress)
    return [*find_problems(dataset), *_unreadable(images, looks), *_duplicates(images, looks)]


def is_serious(problem: Problem) -> bool:
    """False for copies within one split: they waste time and weigh an image twice, but no result is wrong by them."""
    copies = problem.kind in (ProblemKind.SAME_FILE, ProblemKind.SAME_IMAGE)
    return not (copies and len(problem.splits) == 1)


def _look_at_all(images: _Images, workers: int, progress: Callable[[int, int], None] | None) -> list[_Look]:
    """Every image, by several threads: hashing and OpenCV both work outside Python's lock."""
    color = images.dataset.color
    spec = PreprocessSpec(THUMBNAIL, THUMBNAIL, color="rgb" if color == "rgb" else "gray")
    total = len(images.split)
    waiting = iter(range(total))

    def look(image: int) -> _Look:
        if images.split.pixels is not None:
            return _look_at_pixels(images.split.pixels[image])
        return _look_at_file(images.split.paths[image], spec)

    looks: list[_Look] = []
    with ThreadPoolExecutor(workers) as pool:
        while wave := list(islice(waiting, _QUEUED * workers)):
            looks += pool.map(look, wave)
            if progress is not None:
                progress(len(looks), total)
    return looks


def _look_at_file(path: Path, spec: PreprocessSpec) -> _Look:
    """Reads one file twice (the second time from the system's cache): for its digest and for its picture."""
    if not path.is_file():
        return _Look(b"", None, ProblemKind.MISSING, "no such file")
    try:
        digest = hashlib.sha256(path.read_bytes()).digest()
        return _Look(digest, _gray(load_uint8(path, spec)))
    except (DataError, OSError) as error:
        return _Look(b"", None, ProblemKind.CORRUPT, str(error))


def _look_at_pixels(image: NDArray[np.uint8]) -> _Look:
    """One image of an array."""
    small = cv2.resize(_gray(image), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return _Look(hashlib.sha256(image.tobytes()).digest(), np.asarray(small, np.uint8))


def _gray(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w) of a gray or RGB image."""
    return image if image.ndim == _GRAY else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _unreadable(images: _Images, looks: Sequence[_Look]) -> Iterator[Problem]:
    """Missing and corrupt files, each kind as one problem."""
    remedies = {
        ProblemKind.MISSING: "complete the set, or use allow_missing",
        ProblemKind.CORRUPT: "copy them again, or take them out of the set",
    }
    for kind, remedy in remedies.items():
        bad = [image for image, look in enumerate(looks) if look.trouble is kind]
        if bad:
            fault = "are missing" if kind is ProblemKind.MISSING else "cannot be used"
            text = f"{images.dataset.name}: {len(bad)} of {len(looks)} images {fault}; {remedy}"
            names = tuple(_with_reason(images.name(image), looks[image].reason) for image in bad)
            yield Problem(kind, text, _parts(images, bad), len(bad), names)


def _with_reason(name: str, reason: str) -> str:
    return reason if name in reason else f"{name}: {reason}"


def _duplicates(images: _Images, looks: Sequence[_Look]) -> Iterator[Problem]:
    """Copies in several splits first: those make a test easier than it is."""
    same_file = equal_groups([look.digest for look in looks])
    copies = {image: group for group in same_file for image in group}
    # One image of each group stands for all of it.
    originals = [
        image
        for image, look in enumerate(looks)
        if look.thumbnail is not None and copies.get(image, (image,))[0] == image
    ]
    thumbnails = [thumbnail for image in originals if (thumbnail := looks[image].thumbnail) is not None]
    stacked = np.stack(thumbnails) if thumbnails else np.empty((0, THUMBNAIL, THUMBNAIL), np.uint8)
    same_image = [
        tuple(sorted(image for place in group for image in copies.get(originals[place], (originals[place],))))
        for group in similar_groups(stacked)
    ]
    for across in (True, False):
        for kind, groups in ((ProblemKind.SAME_FILE, same_file), (ProblemKind.SAME_IMAGE, same_image)):
            chosen = [group for group in groups if (len(_parts(images, group)) > 1) is across]
            yield from _copies(images, kind, chosen, across=across)


def _copies(images: _Images, kind: ProblemKind, groups: list[tuple[int, ...]], *, across: bool) -> Iterator[Problem]:
    """Groups of one kind as one problem, or as one for each split that they are within."""
    by_parts: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for group in groups:
        by_parts.setdefault(_parts(images, group), []).append(group)
    for parts, members in by_parts.items():
        count = sum(map(len, members))
        doubts = [
            f", {number} {doubt}"
            for number, doubt in (
                (sum(_labels_differ(images, group) for group in members), "with different labels"),
                (sum(_patients_differ(images, group) for group in members), "of different patients"),
            )
            if number
        ]
        where = f"in {' and '.join(parts)}" if across else f"within {parts[0]}"
        remedy = "keep each image in one split" if across else "keep one of each"
        what = "the same file" if kind is ProblemKind.SAME_FILE else "the same image saved anew"
        groups_found = f"{count} images are {len(members)} group(s) of {what} {where}{''.join(doubts)}"
        text = f"{images.dataset.name}: {groups_found}; {remedy}"
        names = tuple(" = ".join(images.name(image) for image in group) for group in members)
        yield Problem(kind, text, parts, len(members), names)


def _parts(images: _Images, group: Sequence[int]) -> tuple[str, ...]:
    """The splits that some images are in, in their order."""
    names = {images.parts[image] for image in group}
    return tuple(split.name for split in images.dataset.splits if split.name in names)


def _labels_differ(images: _Images, group: Sequence[int]) -> bool:
    """A copy that says something else than its original is a mistake in one of the two."""
    rows = images.split.labels[list(group)]
    return bool((~((rows == rows[:1]) | (np.isnan(rows) & np.isnan(rows[:1])))).any())


def _patients_differ(images: _Images, group: Sequence[int]) -> bool:
    """One image under two names: one of the two patients is none, or both are the same person."""
    return len({images.split.patients[image] for image in group}) > 1
