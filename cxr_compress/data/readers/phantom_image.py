"""One phantom image: anatomy, findings, look-alikes, then the X-ray tube and the detector.

Everything here is synthetic. No real image was used to make it, and nothing measured on it says anything about
patients.
"""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.readers import phantom_findings as draw
from cxr_compress.data.readers import phantom_parts as parts
from cxr_compress.data.readers.phantom_anatomy import (
    Canvas,
    Chest,
    Field,
    draw_body,
    draw_heart,
    draw_lungs,
    happens,
    make_anatomy,
    make_canvas,
    make_chest,
)
from cxr_compress.errors import DataError

PHANTOM_FINDINGS = ("Opacity", "Effusion", "Large_Heart", "Nodule", "Pneumothorax")

_STREAMS = ("pose", "vessels", "look-alikes", "devices", "tube", *PHANTOM_FINDINGS)


def render_image(
    seed: int, patient: int, image: int, findings: Collection[str], *, size: int = 128
) -> NDArray[np.uint8]:
    """Draws one image.

    Anatomy depends on (seed, patient); pose, breath, devices, exposure, noise and the place of each finding on
    (seed, patient, image). Two calls that differ in ``findings`` alone give images that differ only where those are.

    Args:
        seed: Of the whole set, 0 or more.
        patient: Number of the patient, 0 or more.
        image: Number of the image of this patient, 0 or more.
        findings: Some of ``PHANTOM_FINDINGS``.
        size: Pixels per edge; a nodule is 8 to 12 pixels wide at 128.

    Returns:
        uint8 (size, size), dense parts bright as on a radiograph.

    Raises:
        DataError: An unknown finding.
    """
    unknown = set(findings) - set(PHANTOM_FINDINGS)
    if unknown:
        raise DataError(f"expected findings of {', '.join(PHANTOM_FINDINGS)}; got {sorted(unknown)[0]!r}")

    def rng(stream: str) -> np.random.Generator:
        return np.random.default_rng((seed, patient, image, _STREAMS.index(stream)))

    anatomy = make_anatomy(np.random.default_rng((seed, patient)), large_heart="Large_Heart" in findings)
    pose = rng("pose")
    chest = make_chest(make_canvas(pose, size), anatomy, _breathe(pose))
    density = draw_lungs(draw_body(chest), chest)
    vessels = parts.draw_vessels(chest, rng("vessels"))
    if "Pneumothorax" in findings:
        density = draw.draw_pneumothorax(density, vessels, chest, rng("Pneumothorax"))
    else:
        density = density + vessels
    if "Effusion" in findings:
        density = draw.draw_effusion(density, chest, rng("Effusion"))
    density = draw_heart(density, chest)
    # These two add to whatever else the beam passes, the heart included.
    if "Opacity" in findings:
        density = draw.draw_opacity(density, chest, rng("Opacity"))
    if "Nodule" in findings:
        density = draw.draw_nodule(density, chest, rng("Nodule"))
    density = _cover(density, chest, rng("look-alikes"), rng("devices"))
    return _expose(density, chest.canvas, rng("tube"))


def _breathe(rng: np.random.Generator) -> list[float]:
    """How far each diaphragm stands up: on some images one is high, a look-alike of an effusion."""
    breath = rng.uniform(-0.03, 0.06)
    return [breath + rng.uniform(0.06, 0.14) * high for high in happens(rng, 0.15, 0.15)]


def _cover(density: Field, chest: Chest, look_alikes: np.random.Generator, devices: np.random.Generator) -> Field:
    """Everything that lies over the lungs and has no label."""
    density = parts.draw_breasts(density, chest, look_alikes)
    density = parts.draw_look_alikes(density, chest, look_alikes)
    density = parts.draw_bones(density, chest)
    return parts.draw_devices(density, chest.canvas, devices)


def _expose(density: Field, canvas: Canvas, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Tube and detector: scatter, uneven beam, contrast and exposure of the day, blur, quantum noise, collimation.

    None of the draws depends on the image's content: no gray level gives a finding away.
    """
    size = canvas.size
    scatter, tilt = rng.uniform(0.05, 0.22), rng.uniform(-0.07, 0.07, 2).tolist()
    gain, offset, gamma = rng.uniform(0.95, 1.25), rng.uniform(-0.10, 0.08), rng.uniform(0.75, 1.35)
    blur, grain = rng.uniform(0.25, 0.5) * size / 128, rng.uniform(0.006, 0.020)
    veil = cv2.resize(
        cv2.resize(density, (8, 8), interpolation=cv2.INTER_AREA), (size, size), interpolation=cv2.INTER_CUBIC
    )
    light = (density + scatter * (veil - density)) * gain + tilt[0] * canvas.x + tilt[1] * canvas.y + offset
    light = cv2.GaussianBlur(np.clip(light, 0, 1.15), (0, 0), blur) * (1 / 1.15)
    # Fewer photons reach the detector behind dense parts: grain grows with brightness.
    light = light**gamma + grain * (0.4 + light) * rng.standard_normal((size, size), np.float32)
    return _collimate(np.clip(light * 255, 0, 255).astype(np.uint8), rng)


def _collimate(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Unexposed borders on some images, and the lead letter that marks a side."""
    size = len(image)
    *borders, left = happens(rng, 0.2, 0.2, 0.2, 0.2, 0.5)
    top, bottom, west, east = (round(rng.uniform(0, 0.05) * size) * border for border in borders)
    height, bright = rng.uniform(0.08, 0.2), int(rng.integers(190, 256))
    corner = (round(size * (0.04 if left else 0.89)), round(size * height))
    cv2.putText(image, "R" if left else "L", corner, cv2.FONT_HERSHEY_SIMPLEX, size / 330, bright, 1, cv2.LINE_AA)
    image[:top] = image[size - bottom :] = 0
    image[:, :west] = image[:, size - east :] = 0
    return image
