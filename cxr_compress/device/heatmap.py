"""Class activation maps as pictures: where in an image the score of a finding came from.

A map says what each cell of the network's last grid adds to a logit: `logit = mean(map) + bias`, exactly. A cell sees
far more of the image than its own square, so a map shows where evidence came from and is no outline of disease; readers
beat every such method, most of all at small findings.

Source: Saporta et al. 2022, Nature Machine Intelligence 4, 867-878.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from cxr_compress.errors import DataError, ModelFileError

CAPTION = "Shows where evidence came from; not an outline of disease."
# Of the color at full strength, so that the image stays visible below it.
_STRENGTH = 0.55
_RAISES, _LOWERS = np.array([255.0, 60.0, 40.0]), np.array([50.0, 110.0, 255.0])  # RGB: evidence for, against
_FOOTER, _LINE, _FONT = 74, 20, cv2.FONT_HERSHEY_SIMPLEX
_BAR = 120
_LONGEST = 1024  # pixels of a picture's longer side: enough for a screen, and a PNG of some 500 kB

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]


def pick_map(cam: np.ndarray | None, labels: Sequence[str], label: str) -> Map:
    """The map of one finding.

    Args:
        cam: float32 (h, w, k) of an image, or None where the model file has no map.
        labels: the k findings.
        label: one of them.

    Returns:
        float32 (h, w) in units of the logit: its mean plus the bias of the finding is the logit.

    Raises:
        ModelFileError: the model file has no map.
        DataError: an unknown label.
    """
    if cam is None:
        raise no_map()
    if label not in labels:
        raise DataError(f"expected a finding of {', '.join(labels)}; got {label!r}")
    return np.ascontiguousarray(cam[..., list(labels).index(label)], dtype=np.float32)


def no_map() -> ModelFileError:
    """What to raise where a model file has no map."""
    return ModelFileError("the model file gives logits alone, no map: export it with --head=logits+cam")


def overlay(image: Pixels, heatmap: Map, *, title: str = "", limit: float | None = None) -> Pixels:
    """An image with a map over it, a color bar and what the picture is not; the arguments are left unchanged.

    Red raises the score of the finding, blue lowers it, no color does neither. The grid is stretched over the image as
    the network's input was, and blended between the centers of its cells.

    Args:
        image: uint8 (H, W) or (H, W, 3) RGB, any size.
        heatmap: (h, w) in units of the logit, as `pick_map` gives it.
        title: a line above the caption; letters beyond ASCII are replaced.
        limit: value shown in full color; left out, the largest of this map. Give it to compare pictures.

    Returns:
        uint8 RGB, at most 1024 pixels of image at the longer side, and a footer below it.

    Raises:
        DataError: no uint8 image, or a map that is not (h, w) of finite numbers.
    """
    _check(image, heatmap)
    scale = min(1.0, _LONGEST / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA))
    below = small.astype(np.float32) if image.ndim > heatmap.ndim else np.repeat(small[..., None], 3, 2).astype(float)
    values = cv2.resize(heatmap.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    top = float(np.abs(heatmap).max()) if limit is None else limit
    picture = _blend(below, values / top if top > 0 else values)
    return np.concatenate([picture, _footer(size[0], title, top)])


def to_png(picture: Pixels) -> bytes:
    """A uint8 RGB picture as the bytes of a PNG, without any text or date in it."""
    done, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise DataError(f"expected a picture uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    return content.tobytes()


def _check(image: np.ndarray, heatmap: np.ndarray) -> None:
    plain = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)  # noqa: PLR2004
    if image.dtype != np.uint8 or not plain or 0 in image.shape:
        raise DataError(f"expected an image as uint8 (H, W) or (H, W, 3), got {image.dtype} {image.shape}")
    if heatmap.ndim != 2 or 0 in heatmap.shape or not np.isfinite(heatmap).all():  # noqa: PLR2004
        raise DataError(f"expected a map (h, w) of finite numbers, got shape {heatmap.shape}")


def _blend(below: np.ndarray, share: np.ndarray) -> Pixels:
    """Color over RGB; `share` (H, W): -1 full blue, 1 full red, 0 none."""
    share = np.clip(share, -1.0, 1.0)[..., None]
    weight = _STRENGTH * np.abs(share)
    color = np.where(share > 0, _RAISES, _LOWERS)
    return np.rint(below * (1 - weight) + color * weight).astype(np.uint8)


def _footer(width: int, title: str, top: float) -> Pixels:
    """The color bar with its ends in logits, the title and the caption, as wide as the image."""
    footer = np.zeros((_FOOTER, width, 3), np.uint8)
    bar = min(_BAR, width)
    shades = np.repeat(np.linspace(-1.0, 1.0, bar)[None], _LINE // 2, 0)
    footer[6 : 6 + _LINE // 2, :bar] = _blend(np.full((*shades.shape, 3), 60.0), shades)
    lines = (f"{-top:+.2g} to {top:+.2g} of the logit", title, CAPTION)
    for number, line in enumerate(lines):
        text = line.encode("ascii", "replace").decode()
        start = (bar + 8, 16) if number == 0 else (2, 16 + (_LINE + 6) * number)
        cv2.putText(footer, text, start, _FONT, _fitting(text, width - start[0]), (255, 255, 255), 1, cv2.LINE_AA)
    return footer


def _fitting(text: str, room: int) -> float:
    """The size of letters at which a line fits into so many pixels."""
    (length, _), _ = cv2.getTextSize(text, _FONT, 1.0, 1)
    return min(0.5, max(room, 1) / max(length, 1))
