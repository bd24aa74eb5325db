"""Draws, writes and reads a set of phantom chest images, for everyone who has no X-rays at hand.

They are always called synthetic: what a model reaches on them shows that the machinery works, and says nothing about
patients.

An image is drawn in body coordinates: x from -1 (patient's right, left on the image) to 1, y from -1 (neck) to 1
(abdomen); `u` is the distance from the spine towards one side. Every shape is a polygon that OpenCV fills, and gray
levels are whole numbers, so that the same numbers give the same bytes on every machine. Sizes and levels in the code
were chosen by eye against real images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.dataset import Dataset
from cxr_compress.data.readers.base import ImageRecord, Request, load_dataset, make_split, register_reader
from cxr_compress.data.splits import carve_dev
from cxr_compress.data.table_file import read_table
from cxr_compress.errors import DataError
from cxr_compress.files import make_folder, write_bytes, write_text

PHANTOM_FINDINGS = ("Opacity", "Effusion", "Large_Heart", "Nodule", "Pneumothorax")
ATTRIBUTION = "Procedural phantom images drawn by cxr_compress: synthetic, made from no image and no patient"

_GENERATOR = 2  # raised whenever the same parameters give other images, so that an old set is not taken for a new one
_PARAMETERS, _STARTED, _LABELS = "phantom.json", "phantom_unfinished.json", "labels.csv"
_COLUMNS = ("path", "split", "patient_id", *PHANTOM_FINDINGS)
_SHARES = (0.40, 0.30, 0.30, 0.25, 0.25)  # of the patients who have each finding
_SHOWS = 0.85  # chance that an image of such a patient shows it; his first image always does
_MIN_IMAGES, _MIN_SIZE = 8, 32
_WRITERS, _WAVE = 4, 32  # threads; images between two words of progress, and at most lost by Ctrl-C


def load_phantom(data_dir: str | Path, *, dev_fraction: float = 0.1, seed: int = 0) -> Dataset:
    """The set as `load_dataset("phantom", ...)` gives it; the seed is that of dev, images have a seed of their own."""
    return load_dataset("phantom", data_dir, dev_fraction=dev_fraction, seed=seed)


@register_reader("phantom", help="drawn chest images of write_phantom, for those who have no X-rays: synthetic")
def read_phantom(request: Request) -> Dataset:
    """The set that `write_phantom` left in a folder.

    Raises:
        DataError: no finished set there, or a file is missing or damaged.
    """
    folder = request.data_dir
    if not (folder / _PARAMETERS).is_file():
        raise DataError(
            f"phantom: expected {_PARAMETERS} in {folder}, found none: no phantom set was finished there; "
            "write one with cxr_compress.data.write_phantom"
        )
    parts: dict[str, list[ImageRecord]] = {"train": [], "test": []}
    for row in read_table(
        folder / _LABELS, who="phantom", needed=("path", "split", "patient_id", *PHANTOM_FINDINGS)
    ).rows:
        labels = tuple(float(row[finding] == "1") for finding in PHANTOM_FINDINGS)
        parts["test" if row["split"] == "test" else "train"].append(
            ImageRecord(folder / row["path"], row["patient_id"], labels)
        )
    absent = sum(not record.path.is_file() for records in parts.values() for record in records)
    if absent:
        raise DataError(f"phantom: {absent} images of {_LABELS} are missing in {folder}; write the set again elsewhere")
    whole, test = (make_split(name, records, PHANTOM_FINDINGS) for name, records in parts.items())
    train, dev = carve_dev(whole, fraction=request.dev_fraction, seed=request.seed)
    return Dataset(
        "phantom",
        PHANTOM_FINDINGS,
        train,
        dev,
        test,
        ATTRIBUTION,
        synthetic=True,
        patient_key=f"the column 'patient_id' of {_LABELS}",
    )


def write_phantom(
    data_dir: str | Path,
    *,
    n_train: int = 2000,
    n_test: int = 500,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draws a set into a folder: gray 8-bit PNGs, `labels.csv`, and last the parameters it was made with.

    An interrupted call is taken up where it stopped by the same call; a finished set is left alone. The same
    parameters give the same images, in whatever number of calls.

    Args:
        data_dir: a new or empty folder, or one that this function wrote.
        n_train: images to train on (dev is carved out of them on loading); patients have 1 to 3 images.
        n_test: images of other patients to test on.
        size: pixels per edge; drawing takes about 4 ms an image at 128, four times that at 256.
        seed: another seed draws other patients.
        progress: called as (images done, images in all).

    Raises:
        DataError: parameters out of range, a folder with other content, or a set made with other parameters.
        CompressionError: the disk is full or the folder cannot be written.
    """
    folder = Path(data_dir)
    numbers = {"n_train": n_train, "n_test": n_test, "size": size, "seed": seed}
    least = {"n_train": _MIN_IMAGES, "n_test": _MIN_IMAGES, "size": _MIN_SIZE, "seed": 0}
    for name, value in numbers.items():
        if value < least[name]:
            raise DataError(f"phantom: expected {name} of at least {least[name]}, got {value}")
    parameters = {"what": ATTRIBUTION, "generator": _GENERATOR, **numbers, "findings": list(PHANTOM_FINDINGS)}
    if _is_finished(folder, parameters):
        return
    make_folder(folder / "images")
    write_text(folder / _STARTED, json.dumps(parameters, indent=1) + "\n")
    images = [*_plan("train", n_train, 0, seed), *_plan("test", n_test, n_train, seed)]

    def draw(planned: _PlannedImage) -> None:
        path = folder / planned.path
        if not path.exists():
            image = render_image(seed, planned.patient, planned.number, planned.findings, size=size)
            write_bytes(path, cv2.imencode(".png", image)[1].tobytes())

    with ThreadPoolExecutor(_WRITERS) as pool:  # the disk's syncs take as long as the drawing: let them overlap
        for start in range(0, len(images), _WAVE):
            wave = images[start : start + _WAVE]
            list(pool.map(draw, wave))
            if progress is not None:
                progress(start + len(wave), len(images))
    rows = [",".join(_COLUMNS), *(planned.row for planned in images)]
    write_text(folder / _LABELS, "\n".join(rows) + "\n")
    write_text(folder / _PARAMETERS, json.dumps(parameters, indent=1) + "\n")
    (folder / _STARTED).unlink()


def _is_finished(folder: Path, parameters: dict[str, Any]) -> bool:
    """True if this very set is complete; False if it may be begun or continued."""
    path = next((folder / name for name in (_PARAMETERS, _STARTED) if (folder / name).is_file()), None)
    if path is None:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise DataError(f"phantom: expected {folder} to be new, empty or a phantom set, it holds something else")
        return False
    try:
        parameters_there = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"phantom: {path.name} in {folder} is damaged; delete the folder or take another") from error
    differing = [key for key in parameters if parameters_there.get(key) != parameters[key]]
    if differing:
        pairs = ", ".join(f"{key} {parameters_there.get(key)!r} instead of {parameters[key]!r}" for key in differing)
        raise DataError(f"phantom: {folder} holds a set with {pairs}; delete it or choose another folder")
    return path.name == _PARAMETERS


@dataclass(frozen=True)
class _PlannedImage:
    """One row of labels.csv; patients are numbered through the whole set, images within a patient."""

    split: str
    patient: int
    number: int
    findings: tuple[str, ...]

    @property
    def path(self) -> str:
        return f"images/phantom{self.patient:05d}_{self.number:02d}.png"

    @property
    def row(self) -> str:
        labels = (str(int(name in self.findings)) for name in PHANTOM_FINDINGS)
        return ",".join((self.path, self.split, f"phantom{self.patient:05d}", *labels))


def _plan(split: str, images: int, first_patient: int, seed: int) -> list[_PlannedImage]:
    """The images of a split with their findings; exactly `_SHARES` of the patients have each."""
    rng = np.random.default_rng((seed, first_patient, images))
    # One to three images each until they are enough; the last patient takes what is left.
    counts = np.diff(np.minimum(np.cumsum(rng.integers(1, 4, images)), images), prepend=0)
    counts = counts[counts > 0]
    patients = len(counts)
    sick = np.stack([rng.permutation(patients) < max(1, round(share * patients)) for share in _SHARES], axis=1)
    planned = []
    for patient, count in enumerate(counts.tolist()):
        shows = rng.uniform(size=(3, len(PHANTOM_FINDINGS))) < _SHOWS
        shows[0] = True
        for number in range(count):
            findings = tuple(np.array(PHANTOM_FINDINGS)[sick[patient] & shows[number]].tolist())
            planned.append(_PlannedImage(split, first_patient + patient, number, findings))
    return planned


_STREAMS = ("pose", "vessels", "look-alikes", "exposure", *PHANTOM_FINDINGS)
_FINE = 4  # binary digits of a pixel with which polygons are drawn
_SOFT, _VESSELS, _FLUID, _ABDOMEN = 130, 175, 190, 200  # gray levels
_RIM = 0.24  # how far below the top of the diaphragm the lung reaches at the chest wall
_WIDEST = 0.2  # y at which the chest is widest
_LOWEST_RIB = 0.45  # y, above the abdomen
_LETTERS = {"L": ((0, 0), (0, 1), (1, 1)), "R": ((0, 1), (0, 0), (1, 0), (1, 0.5), (0, 0.5), (1, 1))}
_SIDES = (-1, 1)  # the patient's right, the left

Numbers = NDArray[np.float64]
Points = NDArray[np.float64]  # (n, 2) body coordinates
Levels = NDArray[np.int32]  # (size, size) gray levels, or a mask of 0 to 255


def render_image(
    seed: int, patient: int, image: int, findings: Collection[str], *, size: int = 128
) -> NDArray[np.uint8]:
    """Draws one image.

    Anatomy depends on (seed, patient); pose, breath, exposure, noise and the place of each finding on (seed, patient,
    image). Two calls that differ in `findings` alone give images that differ only where those are.

    Args:
        seed: seed of the whole set, 0 or more.
        patient: number of the patient, 0 or more.
        image: number of the image of this patient, 0 or more.
        findings: some of `PHANTOM_FINDINGS`.
        size: pixels per edge; a nodule is 8 to 12 pixels wide at 128.

    Returns:
        uint8 (size, size), dense parts bright as on a radiograph.

    Raises:
        DataError: an unknown finding.
    """
    unknown = set(findings) - set(PHANTOM_FINDINGS)
    if unknown:
        raise DataError(f"expected findings of {', '.join(PHANTOM_FINDINGS)}; got {sorted(unknown)[0]!r}")
    rngs = {name: np.random.default_rng((seed, patient, image, at)) for at, name in enumerate(_STREAMS)}
    large_heart = "Large_Heart" in findings
    chest = _Chest(np.random.default_rng((seed, patient)), rngs["pose"], size, large_heart=large_heart)
    levels, vessels = _draw_trunk(chest), _draw_vessels(chest, rngs["vessels"])
    if "Pneumothorax" in findings:
        levels, vessels = _draw_pneumothorax(levels, vessels, chest, rngs["Pneumothorax"])
    levels = levels + vessels
    if "Effusion" in findings:
        levels = _draw_effusion(levels, chest, rngs["Effusion"])
    levels = np.maximum(levels, _draw_heart(chest))
    # These add to whatever else the beam passes, the heart included.
    if "Opacity" in findings:
        levels = levels + _draw_opacity(chest, rngs["Opacity"])
    if "Nodule" in findings:
        levels = levels + _draw_nodule(chest, rngs["Nodule"])
    return _expose(levels + _draw_look_alikes(chest, rngs["look-alikes"]), rngs["exposure"])


class _Chest:
    """A patient as he stands before the detector, and masks of shapes in his body coordinates.

    Attributes:
        apex: y of the top of the lungs.
        width: u of the inner chest wall at its widest.
        domes: y of the top of the right and the left diaphragm.
        heart: half width of the heart.
        heart_y: y of its middle.
        mediastinum: half width of what lies above the heart.
        fat, air, heart_level, bone: gray levels.
        lungs: masks of the right and the left lung.
    """

    def __init__(self, rng: np.random.Generator, pose: np.random.Generator, size: int, *, large_heart: bool) -> None:
        """Draw the numbers: each is drawn in every case, so that one finding more changes nothing else.

        Source: a cardiothoracic ratio above 0.5 is the usual sign of an enlarged heart. Here up to 0.52 is normal and
        from 0.58 on large: nothing lies in between, because there readers disagree.
        """
        self.size = size
        angle, zoom = np.deg2rad(pose.uniform(-5, 5)), pose.uniform(0.88, 1.10)
        self._turn = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self._shift = pose.uniform((-0.08, -0.10), (0.08, 0.06))
        self.apex, self.width = rng.uniform(-0.76, -0.66), rng.uniform(0.68, 0.80)
        self.domes = rng.uniform(0.34, 0.46) + np.array([0, rng.uniform(0, 0.07)]) - pose.uniform(-0.03, 0.08, 2)
        ratios = rng.uniform(0.40, 0.52), rng.uniform(0.58, 0.67)
        self.heart, self.heart_y = ratios[large_heart] * self.width, rng.uniform(0.15, 0.27)
        self.mediastinum = rng.uniform(0.09, 0.17)
        self.rib_spacing, self.rib_slope = rng.uniform(0.14, 0.17), rng.uniform(0.25, 0.5)
        self.fat, self.air, self.heart_level, self.bone = rng.integers((0, 45, 165, 12), (30, 75, 200, 24)).tolist()
        self.lungs = [self.area(self.lung(at)) for at in range(2)]

    def narrowing(self, y: Numbers) -> Numbers:
        """Share of its full width that the chest has at some heights: half an ellipse above the widest level."""
        above = np.clip((_WIDEST - y) / (_WIDEST - self.apex), 0, 1)
        return np.sqrt(1 - above * above)

    def wall(self, y: Numbers) -> Numbers:
        """The inner chest wall at some heights, as u."""
        return 0.36 + (self.width - 0.36) * self.narrowing(y)

    def lung(self, at: int, *, flat: bool = False, collapse: Numbers | float = 0.0) -> Points:
        """The outline of a lung: 24 points down the wall, 12 along the diaphragm to the middle, and up again.

        Args:
            at: 0 for the right one, 1 for the left.
            flat: end level with the lowest point of the diaphragm: the cavity that fluid runs into.
            collapse: how far the lung has come off the wall at each point there.
        """
        rim = self.domes[at] + _RIM
        down = np.linspace(self.apex, rim, 24)
        outer = self.wall(down)
        across = np.linspace(outer[-1], 0.13, 12)
        bottom = rim - (0 if flat else _RIM) * (1 - ((across - 0.36) / (outer[-1] - 0.36)) ** 2)
        up = np.linspace(bottom[-1], self.apex, 16)
        u = np.concatenate([outer - collapse, across, 0.36 - 0.23 * self.narrowing(up)])
        return np.stack([_SIDES[at] * u, np.concatenate([down, bottom, up])], axis=1)

    def place(self, rng: np.random.Generator, margin: float) -> tuple[int, float, float]:
        """Which lung, and a point (x, y) of it that keeps `margin` from the wall and lies above the diaphragm."""
        at = int(rng.integers(2))
        y = rng.uniform(-0.45, self.domes[at] - 0.12)
        return at, _SIDES[at] * rng.uniform(0.28, float(self.wall(y)) - margin), y

    def area(self, points: Points, soft: float = 0.02) -> Levels:
        """The mask of a polygon whose edge is about `soft` wide."""
        mask = np.zeros((self.size, self.size), np.uint8)
        cv2.fillPoly(mask, [self._pixels(points)], 255, cv2.LINE_AA, _FINE)
        return self._blur(mask, soft)

    def disk(
        self, x: float, y: float, radius: float, *, soft: float = 0.02, flat: float = 1, turn: float = 0
    ) -> Levels:
        """The mask of a circle, or of an ellipse whose second axis is `flat` of its first."""
        around = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        a, b = radius * np.cos(around), flat * radius * np.sin(around)
        turned = a * np.cos(turn) - b * np.sin(turn), a * np.sin(turn) + b * np.cos(turn)
        return self.area(np.stack(turned, axis=1) + np.array([x, y]), soft)

    def lines(self, strokes: Sequence[Points], width: float) -> Levels:
        """The mask of some polylines."""
        mask = np.zeros((self.size, self.size), np.uint8)
        thickness = max(1, round(width * self.size / 2))
        cv2.polylines(mask, [self._pixels(stroke) for stroke in strokes], False, 255, thickness, cv2.LINE_AA, _FINE)
        return self._blur(mask, 0.01)

    def _pixels(self, points: Points) -> NDArray[np.int32]:
        moved = (points @ self._turn + self._shift + 1) * (self.size / 2) - 0.5
        return np.rint(moved * (1 << _FINE)).astype(np.int32)

    def _blur(self, mask: NDArray[np.uint8], soft: float) -> Levels:
        # On bytes OpenCV blurs with whole numbers.
        return cv2.GaussianBlur(mask, (0, 0), max(soft * self.size / 4, 0.3)).astype(np.int32)


def _mirror(points: Points) -> list[Points]:
    """The same on both sides."""
    return [points * [side, 1] for side in _SIDES]


def _draw_trunk(chest: _Chest) -> Levels:
    """Soft tissue, abdomen, lungs, ribs, collar bones and spine in front of a black image."""
    flank = chest.width + 0.05 + chest.fat / 200
    half = np.array([[0.22, -1.3], [0.25, -0.95], [0.60, -0.80 - chest.fat / 300], [flank, -0.5], [flank, 1.5]])
    body = chest.area(np.concatenate([half, half[::-1] * [-1, 1]]), 0.06)
    levels = (_SOFT + chest.fat // 2) * body // 255
    floor = [[side * chest.width, dome + 0.1] for side, dome in zip(_SIDES, chest.domes, strict=True)]
    belly = np.minimum(chest.area(np.array([*floor, [1.5, 1.5], [-1.5, 1.5]]), 0.10), body)
    levels = levels + (_ABDOMEN - levels) * belly // 255
    levels = levels + (chest.air + chest.fat // 3 - levels) * sum(chest.lungs) // 255
    u = np.linspace(0.08, chest.width, 12)
    ribs = []
    for number in range(9):
        y = chest.apex + (number + 0.3) * chest.rib_spacing + 0.06 * u + chest.rib_slope * u * u
        ribs += _mirror(np.stack([u, y], axis=1)[(u < chest.wall(y) + 0.03) & (y < _LOWEST_RIB)])
    collar_bones = _mirror(np.stack([u, chest.apex + 0.2 - 0.2 * u], axis=1))
    bones = np.maximum(chest.lines(ribs, 0.055), chest.lines(collar_bones, 0.05))
    spine = chest.lines([np.array([[0, -1.2], [0, 1.2]])], 0.16)
    windpipe = chest.lines([np.array([[0, -1.2], [0.01, -0.25]])], 0.07)
    return levels + (chest.bone * bones + 16 * spine - 26 * windpipe) // 255


def _draw_vessels(chest: _Chest, rng: np.random.Generator) -> Levels:
    """Vessels that fan out from the middle of both lungs, and the fine texture of a lung."""
    strokes = []
    steps = np.linspace(0, 1, 6)
    for side in _SIDES:
        for angle in np.linspace(-1.35, 1.35, 11) + rng.uniform(-0.12, 0.12, 11):
            headings, along = angle + rng.uniform(-0.4, 0.4) * steps, rng.uniform(0.35, 0.7) * steps
            course = np.stack([0.15 + along * np.cos(headings), along * np.sin(headings)], axis=1)
            strokes.append(course * [side, 1])
    thick, fine = chest.lines([stroke[:4] for stroke in strokes], 0.028), chest.lines(strokes, 0.014)
    hila = sum(chest.disk(0.18 * side, 0, 0.10, soft=0.12, flat=1.5) for side in _SIDES)
    full = int(rng.integers(20, 45))  # gray where a large heart would be, without its outline
    coarse = rng.integers(0, 256, (32, 32), np.uint8)
    texture = cv2.resize(coarse, (chest.size, chest.size), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.int32)
    return (20 * thick + 16 * fine + full * hila + 10 * (texture - 128)) // 255 * sum(chest.lungs) // 255


def _draw_heart(chest: _Chest) -> Levels:
    """The heart's shadow, and above it the great vessels with the aortic knob on the patient's left."""
    half, narrow = chest.heart, chest.mediastinum
    heart = chest.disk(0.1 + 0.25 * (half - 0.34), chest.heart_y, half * 1.06, flat=0.78, turn=0.55)
    heart = np.maximum(heart, chest.disk(narrow - 0.04, -0.25, 0.11))
    column = chest.area(np.array([[-narrow, -1.2], [narrow, -1.2], [narrow, 0.7], [-narrow, 0.7]]), 0.04)
    return np.maximum(chest.heart_level * heart, _VESSELS * column) // 255


def _draw_opacity(chest: _Chest, rng: np.random.Generator) -> Levels:
    """An uneven, soft-edged patch in one lung; added to the levels."""
    at, x, y = chest.place(rng, 0.10)
    blobs = rng.uniform((-0.1, -0.1, 0.09), (0.1, 0.1, 0.17), (5, 3)).tolist()
    patch = np.max([chest.disk(x + dx, y + dy, radius, soft=0.12) for dx, dy, radius in blobs], axis=0)
    return int(rng.integers(52, 80)) * patch * chest.lungs[at] // 255**2


def _draw_nodule(chest: _Chest, rng: np.random.Generator) -> Levels:
    """One round, well defined spot, 6 to 9.5 % of the image across; added to the levels."""
    at, x, y = chest.place(rng, 0.12)
    spot = chest.disk(x, y, rng.uniform(0.060, 0.095), soft=0.03)
    return int(rng.integers(66, 96)) * spot * chest.lungs[at] // 255**2


def _draw_effusion(levels: Levels, chest: _Chest, rng: np.random.Generator) -> Levels:
    """Fluid at the base of one lung, climbing up the chest wall and blunting the angle beside the diaphragm."""
    at = int(rng.integers(2))
    u, height, climb = np.linspace(0, 1, 16), rng.uniform(0.30, 0.46), rng.uniform(0.4, 0.7)
    surface = chest.domes[at] + _RIM - height * (1 - climb + climb * (u / 0.75) ** 2)
    below = np.concatenate([np.stack([_SIDES[at] * u, surface], axis=1), [[_SIDES[at], 1.2], [0, 1.2]]])
    fluid = np.minimum(chest.area(below, 0.04), chest.area(chest.lung(at, flat=True)))
    return levels + np.maximum(_FLUID - levels, 0) * fluid // 255


def _draw_pneumothorax(
    levels: Levels, vessels: Levels, chest: _Chest, rng: np.random.Generator
) -> tuple[Levels, Levels]:
    """Air between lung and chest wall, widest at the apex: no vessels there, and the thin edge of the lung."""
    at = int(rng.integers(2))
    depth, reach = rng.uniform(0.20, 0.32), rng.uniform(0.6, 1.1)
    below_apex = np.linspace(0, chest.domes[at] + _RIM - chest.apex, 24)
    collapsed = chest.lung(at, collapse=depth * np.sqrt(np.clip(1 - below_apex / reach, 0, 1)))
    gap = np.minimum(chest.lungs[at], 255 - chest.area(collapsed))
    edge = chest.lines([collapsed[:24]], 0.02) * chest.lungs[at] // 255
    return levels + (34 * edge - 26 * gap) // 255, vessels * (255 - gap) // 255


def _draw_look_alikes(chest: _Chest, rng: np.random.Generator) -> Levels:
    """Shapes without a label that resemble findings, each on some images; added to the levels."""
    added = np.zeros((chest.size, chest.size), np.int32)
    _, x, y = chest.place(rng, 0.10)
    haze = chest.disk(x, y, rng.uniform(0.16, 0.26), soft=0.1)  # fainter than an opacity
    _, x, y = chest.place(rng, 0.10)
    scar = chest.disk(x, y, 0.026)  # smaller and denser than a nodule
    top, foot, side = rng.uniform(0.35, 0.6), rng.uniform(0.35, 0.6), int(rng.choice(_SIDES))
    fold = chest.lines([np.array([[side * top, -0.5], [side * foot, 0.35]])], 0.02)  # of skin: vessels go on beyond it
    start, middle, end = rng.uniform(-0.8, 0.8, (3, 2))
    t = np.linspace(0, 1, 12)[:, None]
    wire = chest.lines([(1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end], 0.014)
    for mask, amount, share in ((haze, 9, 0.4), (scar, 80, 0.25), (fold, 14, 0.25), (wire, 45, 0.4)):
        added += (rng.uniform() < share) * amount * mask // 255
    return added


def _expose(levels: Levels, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Tube and detector: contrast of the day, uneven beam, grain, unexposed borders, the lead letter of a side.

    None of the draws depends on the image's content: no gray level gives a finding away.
    """
    size = len(levels)
    gain, offset, gamma = rng.uniform(0.85, 1.15), rng.uniform(-0.08, 0.08), rng.uniform(0.8, 1.3)
    curve = np.rint(255 * np.clip(gain * np.arange(256) / 255 + offset, 0, 1) ** gamma).astype(np.int32)
    line, (across, down) = np.arange(size) * (2 / size) - 1, rng.uniform(-16, 16, 2)
    uneven = np.rint(across * line[None] + down * line[:, None]).astype(np.int32)
    grain = int(rng.integers(1, 4))
    noise = rng.integers(-grain, grain + 1, (4, size, size), np.int8).sum(axis=0, dtype=np.int32)
    image = np.clip(curve[np.clip(levels, 0, 255)] + uneven + noise, 0, 255).astype(np.uint8)
    right, bright = bool(rng.integers(2)), int(rng.integers(190, 256))
    corner = (0.04 if right else 0.89, rng.uniform(0.02, 0.14))
    # OpenCV's own letters differ from release to release.
    strokes = np.array(_LETTERS["R" if right else "L"]) * (0.04, 0.06) + corner
    pixels = np.rint(strokes * size * (1 << _FINE)).astype(np.int32)
    cv2.polylines(image, [pixels], False, bright, 1, cv2.LINE_AA, _FINE)
    top, bottom, west, east = np.rint(rng.uniform(0, 0.05, 4) * (rng.integers(0, 5, 4) == 0) * size).astype(int)
    image[:top] = image[size - bottom :] = 0
    image[:, :west] = image[:, size - east :] = 0
    return image
