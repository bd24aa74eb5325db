"""The phantom's findings: each a change of density that is drawn only where the label says.

Each has a random stream of its own, so two images of one seed differ by the finding alone. A large heart is part of the
anatomy (``Anatomy.heart_ratio``).
"""

from __future__ import annotations

import numpy as np

from cxr_compress.data.readers.phantom_anatomy import Chest, Field, Side, bump, edge

_FLUID = 0.76  # density of an effusion: that of soft tissue, as dense as the heart
_FREE_AIR = 0.10  # what the missing lung tissue of a pneumothorax takes away
_RIM = 0.13  # density of the edge of the collapsed lung


def draw_opacity(density: Field, chest: Chest, rng: np.random.Generator) -> Field:
    """An uneven, soft-edged patch of consolidation in one lung: an added density of 0.20 to 0.32."""
    side = _either(chest, rng)
    u, y = _place(chest, side, rng, margin=0.10)
    radius, peak, stretch = rng.uniform(0.16, 0.25), rng.uniform(0.20, 0.32), rng.uniform(0.75, 1.3)
    ragged = np.clip(1 + 0.35 * chest.canvas.noise(rng, 10), 0.4, 1.8)
    patch = edge(1 - np.sqrt(chest.spot(side, u, y, radius * stretch, 1 / stretch)) * ragged, 0.8)
    return density + peak * patch * (0.8 + 0.2 * np.clip(chest.canvas.noise(rng, 20), -1, 1)) * side.lung


def draw_effusion(density: Field, chest: Chest, rng: np.random.Generator) -> Field:
    """Fluid at the base of one lung, climbing up the chest wall and blunting the angle beside the diaphragm."""
    side = _either(chest, rng)
    height, climb = rng.uniform(0.30, 0.46), rng.uniform(0.4, 0.7)
    outwards = chest.across * (1 / 0.75)
    surface = side.rim - height * (1 - climb + climb * outwards * outwards)
    return density + 0.93 * edge(chest.canvas.y - surface, 0.06) * side.cavity * (_FLUID - density)


def draw_nodule(density: Field, chest: Chest, rng: np.random.Generator) -> Field:
    """One round, well defined spot, 6 to 9.5 % of the image across: an added density of 0.26 to 0.38."""
    side = _either(chest, rng)
    u, y = _place(chest, side, rng, margin=0.12)
    radius, peak = rng.uniform(0.060, 0.095), rng.uniform(0.26, 0.38)
    return density + peak * edge(1 - np.sqrt(chest.spot(side, u, y, radius)), 0.5) * side.lung


def draw_pneumothorax(density: Field, vessels: Field, chest: Chest, rng: np.random.Generator) -> Field:
    """Air between lung and chest wall, widest at the apex: no vessels there, and the pruned edge of the lung.

    Args:
        density: Everything below the vessels.
        vessels: What is added elsewhere.
        chest: Whose.
        rng: Of this finding.
    """
    side = _either(chest, rng)
    depth, reach = rng.uniform(0.20, 0.32), rng.uniform(0.6, 1.1)
    left_over = np.clip(1 - (chest.canvas.y - chest.anatomy.apex) * (1 / reach), 0, 1)
    width = depth * np.sqrt(left_over)
    there = side.lung * (left_over > 0)
    gap = edge(width - chest.wall, 0.02) * there
    rim = bump(np.square((chest.wall - width) * (1 / 0.022))) * there
    return density + vessels * (1 - gap) + _RIM * rim - _FREE_AIR * gap


def _either(chest: Chest, rng: np.random.Generator) -> Side:
    """The side that has it."""
    return chest.sides[int(rng.integers(2))]


def _place(chest: Chest, side: Side, rng: np.random.Generator, *, margin: float) -> tuple[float, float]:
    """A point (u, y) of the lung, at least ``margin`` from the chest wall and above the diaphragm."""
    y = rng.uniform(-0.45, side.dome - 0.12)
    return rng.uniform(0.28, chest.wall_at(y) - margin), y
