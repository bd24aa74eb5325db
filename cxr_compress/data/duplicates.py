"""Finds the same picture twice in a set: the same file, or the same film saved anew.

A perceptual hash proposes pairs, the correlation of 32 x 32 thumbnails decides. The hash alone would not do: chest
films look alike. Of the 17 million pairs of the 5,856 Kermany films 237 lie within 5 bits and 34 are copies; thumbnails
of different films correlate up to 0.975, those of copies saved anew from 0.998.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

THUMBNAIL = 32  # pixels per edge
MAX_DISTANCE = 5  # bits; saving a film anew at JPEG quality 40 and half its size moves up to 4 of 64
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
        digests: Of files; b"" belongs to no group.
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
    shown = np.array([index for index, one in enumerate(thumbnails) if one.std() >= _FLAT], np.int64)
    pictures = thumbnails[shown]
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
        groups.setdefault(root, []).append(int(shown[position]))
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _runs(keys: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """The positions of each different key."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order])) + 1
    yield from (run for run in np.split(order, starts) if len(run))


def _link_equal(group: NDArray[np.int64], pictures: Images, parent: NDArray[np.int64]) -> list[int]:
    """Links images of one hash with those they equal; one of each kind, so that a thousand copies are one candidate."""
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
    return np.asarray((_standardise(pictures[one]) * _standardise(pictures[other])).sum(axis=1), np.float32)


def _standardise(pictures: Images) -> NDArray[np.float32]:
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
    """Joins two groups; the earlier image leads."""
    low, high = sorted((_root(parent, one), _root(parent, other)))
    parent[high] = low
