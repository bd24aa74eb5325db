"""What lies over and in the lungs of the phantom without being a finding: bones, vessels, devices, folds, haze."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.readers.phantom_anatomy import Canvas, Chest, Field, Side, bump, edge, happens

Points = NDArray[np.float64]


def draw_bones(density: Field, chest: Chest) -> Field:
    """Spine, ribs, clavicles and the edges of the shoulder blades."""
    ribs = 0.9 * _clavicles(chest) + _ribs(chest)
    bone = _spine(chest) + chest.anatomy.bone * ribs + 0.045 * _shoulder_blades(chest)
    # Bone absorbs the same share of whatever beam is left, so it stands out less where the image is white already.
    return density + bone * np.clip(1.35 - density, 0.2, 1)


def _spine(chest: Chest) -> Field:
    """A column of vertebrae with gaps, fainter behind the heart, and the dark windpipe before its upper half."""
    anatomy, y = chest.anatomy, chest.canvas.y
    level = y * (1 / (0.9 * anatomy.rib_spacing)) + anatomy.rib_phase
    blocks = 0.6 + 0.4 * edge(0.36 - np.abs(level - np.rint(level)), 0.2)
    column = edge(0.085 - chest.across, 0.03) * blocks * (0.10 - 0.03 * edge(y, 0.4))
    windpipe = edge(0.036 - np.abs(chest.canvas.x - 0.01), 0.03) * edge(-0.22 - y, 0.08)
    return column - 0.11 * windpipe


def _ribs(chest: Chest) -> Field:
    """The posterior ribs, running outwards and down, and fainter the anterior ones, running inwards and down."""
    anatomy, u, y = chest.anatomy, chest.across, chest.canvas.y
    per_rib = (1 / anatomy.rib_spacing) * (1 - 0.11 * y)  # they lie closer together at the top
    behind = (y - anatomy.rib_slope * u * u - 0.06 * u) * per_rib + anatomy.rib_phase
    before = (y + 0.42 * u - 0.12) * per_rib * 0.8 - anatomy.rib_phase
    cage = edge(chest.wall + 0.035, 0.05) * edge(0.75 - y, 0.3)
    return cage * (_band(behind) * edge(u - 0.07, 0.06) + 0.55 * _band(before) * edge(u - 0.30, 0.14))


def _band(phase: Field) -> Field:
    """A rib per whole number of ``phase``, denser along its two borders."""
    away = np.abs(phase - np.rint(phase))
    inside = np.clip((0.23 - away) * (1 / 0.09) + 0.5, 0, 1)
    border = np.clip(1 - np.abs(away - 0.19) * (1 / 0.06), 0, 1)
    return 0.7 * inside + 0.5 * border


def _clavicles(chest: Chest) -> Field:
    """Pruned bones from the breastbone outwards and up, slightly S-shaped."""
    along = chest.across - 0.05
    line = chest.anatomy.apex + 0.20 - 0.20 * along - 0.35 * along * (along - 0.33) * (along - 0.66)
    away = np.abs(chest.canvas.y - line)
    body = edge(0.028 - away, 0.02) + 0.5 * bump(np.square((away - 0.022) * (1 / 0.012)))
    return body * edge(along, 0.04) * edge(0.68 - along, 0.1)


def _shoulder_blades(chest: Chest) -> Field:
    """The blades overlap the outer upper lungs when the arms are not turned forwards."""
    y = chest.canvas.y
    return edge(chest.across - 0.62 - 0.10 * y, 0.03) * edge(y + 0.62, 0.12) * edge(-0.02 - y, 0.2)


def draw_vessels(chest: Chest, rng: np.random.Generator) -> Field:
    """Hila and the vessels that fan out from them, and the fine texture of a lung."""
    canvas = chest.canvas
    thick: list[Points] = []
    pruned: list[Points] = []
    for side in chest.sides:
        start = np.array([0.15, rng.uniform(-0.05, 0.03) - 0.025 * side.sign])  # the left hilum lies higher
        angles = np.linspace(-1.35, 1.35, 9) + rng.uniform(-0.12, 0.12, 9)
        trunks = _branches(np.tile(start, (9, 1)), angles, rng.uniform(0.30, 0.48, 9), rng)
        turns = rng.uniform(0.25, 0.6, (2, 9)) * [[1], [-1]]
        twigs = _branches(np.tile(trunks[:, 2], (2, 1)), (angles + turns).ravel(), rng.uniform(0.15, 0.3, 18), rng)
        mirror = [side.sign, 1]
        thick += list(trunks[:, :3] * mirror)
        pruned += [*(trunks * mirror), *(twigs * mirror)]
    lines = 0.09 * canvas.lines(thick, 0.03) + 0.07 * canvas.lines(pruned, 0.014)
    hila = bump(np.square((chest.across - 0.18) * (1 / 0.13)) + np.square(canvas.y * (1 / 0.18)))
    texture = 0.010 * canvas.noise(rng, 24) + 0.008 * canvas.noise(rng, 48)
    drawn = cv2.GaussianBlur(lines, (0, 0), canvas.size / 200) + 0.12 * hila + texture
    return (drawn + _congestion(chest, rng)) * chest.lungs


def _congestion(chest: Chest, rng: np.random.Generator) -> Field | float:
    """Full vessels around both hila, alike on both sides: gray where a large heart would be, without its outline."""
    (full,) = happens(rng, 0.4)
    peak, reach, level = rng.uniform(0.04, 0.13), rng.uniform(0.25, 0.42), rng.uniform(0, 0.2)
    if not full:
        return 0.0
    across, down = (chest.across - 0.18) * (1 / reach), (chest.canvas.y - level) * (1 / (1.2 * reach))
    return peak * bump(across * across + down * down)


def _branches(starts: Points, angles: Points, lengths: Points, rng: np.random.Generator) -> Points:
    """Slightly curved lines of five points each: (n, 2) starts, (n,) headings, (n,) lengths to (n, 5, 2)."""
    steps = np.linspace(0, 1, 5)
    headings = angles[:, None] + rng.uniform(-0.4, 0.4, (len(angles), 1)) * steps
    course = np.stack([np.cos(headings), np.sin(headings)], axis=2)
    return starts[:, None] + (lengths[:, None] * steps)[:, :, None] * course


def draw_look_alikes(density: Field, chest: Chest, rng: np.random.Generator) -> Field:
    """What carries no label though it resembles a finding, each on some images: faint haze, skin folds, old scars."""
    for side in chest.sides:
        haze, fold, scar = happens(rng, 0.25, 0.18, 0.15)
        u, y, radius, peak = rng.uniform((0.28, -0.35, 0.16, 0.02), (0.60, 0.35, 0.26, 0.045)).tolist()
        offset, lean = rng.uniform(0.12, 0.30), rng.uniform(-0.15, 0.15)
        at, height = rng.uniform(0.25, 0.5), rng.uniform(-0.4, 0.2)
        if haze:  # below what the label asks for: a density that a reader would not call an opacity
            density = density + peak * bump(chest.spot(side, u, y, radius)) * side.lung
        if fold:
            density = density + 0.07 * _skin_fold(chest, side, offset, lean)
        if scar:  # small and much too dense: calcified
            density = density + 0.30 * bump(chest.spot(side, at, height, 0.026))
    return density


def _skin_fold(chest: Chest, side: Side, offset: float, lean: float) -> Field:
    """Ends in a sharp edge as a collapsed lung does, but vessels go on beyond it and it fades the other way."""
    y = chest.canvas.y
    away = chest.wall - offset - lean * y
    reach = edge(0.35 - np.abs(y - 0.05), 0.3) * side.half
    return np.clip(1 - away * (1 / 0.22), 0, 1) * edge(away, 0.02) * reach


def draw_breasts(density: Field, chest: Chest, rng: np.random.Generator) -> Field:
    """Soft tissue over the lower zones, with a lower rim, and faint nipples at the same height on both sides."""
    rim, u0, nipple = rng.uniform(0.36, 0.50), rng.uniform(0.42, 0.50), rng.uniform(0.02, 0.05)
    across, down = chest.across - u0, chest.canvas.y - rim
    if chest.anatomy.breast:
        radius = np.square(across * (1 / 0.34)) + np.square((down + 0.33) * (1 / 0.36))
        density = density + chest.anatomy.breast * edge(1 - radius, 0.5) * edge(down + 0.42, 0.5)
    tip = np.square((across - 0.03) * (1 / 0.045)) + np.square((down + 0.12) * (1 / 0.045))
    return density + nipple * edge(1 - tip, 0.5)


def draw_devices(density: Field, canvas: Canvas, rng: np.random.Generator) -> Field:
    """ECG leads with electrodes, a pacemaker, a central line: on about half of the images."""
    leads, pacemaker, line = happens(rng, 0.30, 0.10, 0.20)
    ends = rng.uniform((-0.75, -0.4), (0.75, 0.6), (3, 2))
    bend = rng.uniform(-0.25, 0.25, (3, 2))
    side = float(rng.choice([-1, 1]))
    if leads:
        wires = [
            _curve(end, end / 2 + shift, np.array([side * 0.3, 1.15])) for end, shift in zip(ends, bend, strict=True)
        ]
        density = density + 0.14 * canvas.lines(wires, 0.012)
        for u, y in ends.tolist():
            density = np.maximum(density, 0.95 * edge(0.034 - np.hypot(canvas.x - u, canvas.y - y), 0.015))
    if pacemaker:
        box = np.maximum(np.abs(canvas.x - 0.55) - 0.10, np.abs(canvas.y + 0.45) - 0.08)
        density = np.maximum(density, edge(0.02 - box, 0.02))
        lead = _curve(np.array([0.48, -0.40]), np.array([-0.25, -0.7]), np.array([0.12, 0.40]))
        density = density + 0.25 * canvas.lines([lead], 0.014)
    if line:
        tube = _curve(np.array([side * 0.32, -0.95]), np.array([side * 0.25, -0.45]), np.array([-0.10, 0.02]))
        density = density + 0.10 * canvas.lines([tube], 0.016)
    return density


def _curve(start: Points, middle: Points, end: Points) -> Points:
    """Twelve points of a quadratic Bezier curve."""
    t = np.linspace(0, 1, 12)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
