"""A drawn chest: where lungs, heart and diaphragm of a made-up patient lie, and how dense they are.

Everything lives in body coordinates: x from -1 (patient's right, left on the image) to 1, y from -1 (neck) to 1
(abdomen); ``u`` is the distance from the spine towards one side. Densities are in arbitrary units: 0 is air beside the
patient, about 0.3 an inflated lung, about 0.75 heart and abdomen. Numbers in the code are such coordinates and
densities, chosen by eye against real images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # float32 (size, size)
SIDES = (-1, 1)  # the patient's right lung, the left lung

_SOFT, _VESSELS, _ABDOMEN = 0.56, 0.68, 0.80
_WIDEST, _MIDDLE = 0.20, 0.42  # y at which the chest is widest; u of the middle of a lung there


@dataclass(frozen=True)
class Canvas:
    """The pixels of one image in body coordinates.

    Attributes:
        x: (size, size) body coordinate of each pixel, to the patient's left.
        y: (size, size) body coordinate of each pixel, downwards.
        to_pixels: (2, 3) affine map from body coordinates to pixels, for what is drawn with lines.
    """

    x: Field
    y: Field
    to_pixels: NDArray[np.float64]

    @property
    def size(self) -> int:
        """Pixels per edge."""
        return len(self.x)

    def noise(self, rng: np.random.Generator, cells: int) -> Field:
        """Smooth noise with about ``cells`` bumps per edge, the same shape at every image size."""
        coarse = rng.standard_normal((cells, cells), np.float32)
        return cv2.resize(coarse, (self.size, self.size), interpolation=cv2.INTER_CUBIC)

    def lines(self, strokes: list[NDArray[np.float64]], width: float) -> Field:
        """0 to 1: polylines (points, 2) in body coordinates, ``width`` wide."""
        drawn = np.zeros((self.size, self.size), np.uint8)
        moved = np.concatenate(strokes) @ self.to_pixels[:, :2].T + self.to_pixels[:, 2]
        pixels = np.split(np.rint(moved * 16).astype(np.int32), np.cumsum([len(stroke) for stroke in strokes[:-1]]))
        thickness = max(1, round(width * self.size / 2))
        cv2.polylines(drawn, pixels, isClosed=False, color=255, thickness=thickness, lineType=cv2.LINE_AA, shift=4)
        return drawn.astype(np.float32) * np.float32(1 / 255)


@dataclass(frozen=True)
class Anatomy:
    """What differs from patient to patient, in body coordinates."""

    apex: float  # y of the top of the lungs
    width: float  # u of the inner chest wall at its widest
    base: tuple[float, float]  # y of the top of the right and the left diaphragm dome
    fat: float  # thickness of the soft tissue outside the ribs
    heart_ratio: float  # width of the heart / inner width of the chest (cardiothoracic ratio)
    heart_y: float
    heart_shift: float
    heart: float  # density of the heart, which follows the depth of the chest
    air: float  # density of the lungs
    mediastinum: float  # half width of what lies above the heart
    knob: float  # bulge of the aortic arch
    rib_spacing: float
    rib_phase: float
    rib_slope: float
    bone: float  # how much ribs stand out
    stomach: float  # how dark the gas bubble under the left dome is; 0 for none
    breast: float  # density of breast shadows; 0 for none


@dataclass(frozen=True)
class Side:
    """One half of the chest as fields over the image.

    Attributes:
        sign: -1 for the patient's right, 1 for the left.
        u: Distance from the spine, towards this side.
        half: 1 on this side of the spine, 0 on the other.
        cavity: 1 inside the chest, down to the lowest rim of the diaphragm.
        lung: 1 where there is air.
        dome: y of the top of the diaphragm.
        rim: y of its lowest point, at the wall.
    """

    sign: int
    u: Field
    half: Field
    cavity: Field
    lung: Field
    dome: float
    rim: float


@dataclass(frozen=True)
class Chest:
    """A patient on an image.

    Attributes:
        anatomy: Who it is.
        canvas: Where the pixels are.
        across: Distance from the spine, to either side.
        wall: Distance inwards from the lateral chest wall and the apex; negative outside.
        sides: Right and left.
        lungs: 1 where there is air, on either side.
    """

    anatomy: Anatomy
    canvas: Canvas
    across: Field
    wall: Field
    sides: tuple[Side, Side]
    lungs: Field

    def wall_at(self, y: float) -> float:
        """The inner chest wall at a height, as u: what keeps a finding inside the lung."""
        middle, narrowing = _outline(np.array(y, np.float32), self.anatomy)
        return float(middle + (self.anatomy.width - _MIDDLE) * narrowing)

    def spot(self, side: Side, u: float, y: float, radius: float, stretch: float = 1.0) -> Field:
        """Squared distance from a point of one side, 1 at ``radius`` across and at ``radius * stretch`` down."""
        across, down = (side.u - u) * (1 / radius), (self.canvas.y - y) * (1 / (radius * stretch))
        return across * across + down * down


def edge(distance: Field, width: float) -> Field:
    """0 to 1 across ``width`` around distance 0, smoothly: every outline of the phantom."""
    t = distance * (1 / width)  # in place from here on: this is half of the time that an image takes
    t += 0.5
    np.clip(t, 0, 1, out=t)
    squared = t * t
    t *= -2
    t += 3
    squared *= t
    return squared


def bump(squared: Field) -> Field:
    """A soft spot: 1 in the middle, 0 from a squared distance of 1 outwards."""
    t = np.clip(1 - squared, 0, 1)
    return t * t


def happens(rng: np.random.Generator, *shares: float) -> list[bool]:
    """For each thing that some share of images or patients has: does this one have it?"""
    return [bool(drawn < share) for drawn, share in zip(rng.uniform(size=len(shares)), shares, strict=True)]


def make_canvas(rng: np.random.Generator, size: int) -> Canvas:
    """The patient in front of the detector: moved, turned, nearer or farther, and never quite straight."""
    angle, zoom = np.deg2rad(rng.uniform(-5, 5)), rng.uniform(0.85, 1.12)
    shift = np.array([rng.uniform(-0.09, 0.09), rng.uniform(-0.12, 0.08)])
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    back = np.linalg.inv(turn).astype(np.float32)
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    across, down = (line - float(shift[0]))[None, :], (line - float(shift[1]))[:, None]
    bend = [_small_bend(rng, size) for _ in range(2)]
    x = back[0, 0] * across + back[0, 1] * down + bend[0]
    y = back[1, 0] * across + back[1, 1] * down + bend[1]
    to_pixels = np.hstack([turn, shift[:, None] + 1]) * (size / 2)
    to_pixels[:, 2] -= 0.5
    return Canvas(x, y, to_pixels)


def _small_bend(rng: np.random.Generator, size: int) -> Field:
    """Makes outlines less geometric; small enough for drawn lines to ignore."""
    bend = cv2.resize(rng.standard_normal((4, 4), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return bend * np.float32(0.012)


def make_anatomy(rng: np.random.Generator, *, large_heart: bool) -> Anatomy:
    """A patient. Every draw is made in every case, so that one finding more changes nothing else.

    Source: a cardiothoracic ratio above 0.5 is the usual sign of an enlarged heart. Here up to 0.52 is normal and from
    0.58 on large: nothing lies in between, because there readers disagree.
    """
    base = rng.uniform(0.34, 0.46)
    ratios = (rng.uniform(0.40, 0.52), rng.uniform(0.58, 0.67))
    return Anatomy(
        apex=rng.uniform(-0.76, -0.66),
        width=rng.uniform(0.68, 0.80),
        base=(base, base + rng.uniform(0.0, 0.07)),
        fat=rng.uniform(0.06, 0.22),
        heart_ratio=ratios[large_heart],
        heart_y=rng.uniform(0.15, 0.27),
        heart_shift=rng.uniform(0.07, 0.13),
        heart=rng.uniform(0.66, 0.82),
        air=rng.uniform(0.18, 0.30),
        mediastinum=rng.uniform(0.09, 0.17),
        knob=rng.uniform(0.02, 0.07),
        rib_spacing=rng.uniform(0.14, 0.17),
        rib_phase=rng.uniform(0, 1),
        rib_slope=rng.uniform(0.25, 0.5),
        bone=rng.uniform(0.05, 0.10),
        stomach=rng.uniform(0.15, 0.3) * happens(rng, 0.6)[0],
        breast=rng.uniform(0.04, 0.10) * happens(rng, 0.4)[0],
    )


def make_chest(canvas: Canvas, anatomy: Anatomy, lifts: list[float]) -> Chest:
    """Lungs between wall, mediastinum and diaphragm.

    ``lifts`` raise the right and the left diaphragm (a shallow breath, a palsy), which is no finding. The two halves
    mirror each other but for that, so most fields are computed once.
    """
    across, y = np.abs(canvas.x), canvas.y
    middle, narrowing = _outline(y, anatomy)
    # Near the apex the outline is flat, so the distance to it is the vertical one.
    wall = np.minimum(middle + (anatomy.width - _MIDDLE) * narrowing - across, y - anatomy.apex)
    inside = edge(wall, 0.04) * edge(across - middle + 0.31 * narrowing, 0.05)
    bow = (across - 0.36) * (1 / 0.42)
    height = 0.24 * bow * bow - y  # of the diaphragm's arch above each pixel, but for its top

    def side(sign: int, base: float, lift: float) -> Side:
        u = canvas.x * sign
        half = (u > 0).astype(np.float32)
        here, dome, rim = inside * half, base - lift, base + 0.24
        return Side(sign, u, half, here * edge(rim - y, 0.03), here * edge(height + dome, 0.03), dome, rim)

    right, left = (side(*values) for values in zip(SIDES, anatomy.base, lifts, strict=True))
    return Chest(anatomy, canvas, across, wall, (right, left), right.lung + left.lung)


def _outline(y: Field, anatomy: Anatomy) -> tuple[Field, Field]:
    """At each height, u of the middle of a lung and the share of its full width: an ellipse above the widest level."""
    above = np.clip((_WIDEST - y) * (1 / (_WIDEST - anatomy.apex)), 0, 1)
    return _MIDDLE - 0.06 * above, np.sqrt(1 - above * above)


def draw_body(chest: Chest) -> Field:
    """Trunk, shoulders and neck in front of a black image; thinner towards the flanks."""
    anatomy, across, y = chest.anatomy, chest.across, chest.canvas.y
    flank = anatomy.width + anatomy.fat + 0.45 * edge(-0.25 - y, 0.7) - across
    shoulder = y + 0.92 + 0.3 * anatomy.fat - 0.26 * np.maximum(across - 0.15, 0)
    outline = edge(flank, 0.06) * np.maximum(edge(shoulder, 0.10), edge(0.24 - across, 0.12))
    return outline * (_SOFT + 0.5 * anatomy.fat - 0.14 * edge(across - 0.65, 0.7))


def draw_lungs(density: Field, chest: Chest) -> Field:
    """Air in the chest, abdomen below the domes, the stomach's gas bubble."""
    anatomy, (right, left) = chest.anatomy, chest.sides
    low = chest.canvas.y - right.rim * right.half - left.rim * left.half
    belly = np.maximum(edge(low + 0.06, 0.10) * edge(chest.wall, 0.10), right.cavity + left.cavity)
    density = density + belly * (_ABDOMEN - density)
    # Lungs are denser towards the hilum.
    air = anatomy.air + 0.3 * anatomy.fat + 0.05 * edge(0.30 - chest.across, 0.4)
    density = density + chest.lungs * (air - density)
    if not anatomy.stomach:
        return density
    gas = bump(chest.spot(left, 0.34, anatomy.base[1] + 0.13, 0.17, 0.4))
    return density - anatomy.stomach * gas * (1 - left.lung)


def draw_heart(density: Field, chest: Chest) -> Field:
    """The heart's shadow, and above it the great vessels with the aortic knob on the patient's left."""
    anatomy, canvas = chest.anatomy, chest.canvas
    half = anatomy.heart_ratio * anatomy.width  # the widths of heart and chest are measured across the image
    shift = anatomy.heart_shift + 0.25 * (half - 0.34)
    x, y = canvas.x - shift, canvas.y - anatomy.heart_y
    cos, sin = float(np.cos(0.55)), float(np.sin(0.55))
    flat = 0.78  # the short axis over the long one
    long = half / float(np.hypot(cos, flat * sin))
    radius = np.hypot(cos / long * x + sin / long * y, cos / (flat * long) * y - sin / (flat * long) * x)
    arch = anatomy.knob * bump(np.square((canvas.y + 0.26) * 10))
    # Wider towards the neck, and below the heart where it meets the diaphragm.
    narrow = anatomy.mediastinum + 0.06 * (edge(-0.45 - canvas.y, 0.5) + edge(canvas.y - 0.25, 0.4))
    band = np.minimum(narrow + arch - canvas.x, narrow + canvas.x)
    # The chest wall in front and behind adds to both, more in large patients.
    dense = _VESSELS + (anatomy.heart - _VESSELS) * edge(canvas.y, 0.5) + 0.2 * anatomy.fat
    return np.maximum(density, edge(_join((1 - radius) * half, band, 0.14), 0.05) * dense)


def _join(one: Field, other: Field, fillet: float) -> Field:
    """The union of two shapes given as distances inwards, with the corners between them filled."""
    near = np.clip(1 - np.abs(one - other) * (1 / fillet), 0, 1)
    return np.maximum(one, other) + 0.25 * fillet * near * near
