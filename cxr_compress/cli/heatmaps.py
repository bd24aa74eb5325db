"""Writes the pictures of --heatmap_dir: one PNG for each image and positive finding."""

from __future__ import annotations

import re
import warnings

from absl import flags

from cxr_compress.device.atomic import check_writable, make_folder, write_bytes
from cxr_compress.device.classifier import Classifier, Findings
from cxr_compress.device.dicom import DicomView
from cxr_compress.device.heatmap import overlay, to_png
from cxr_compress.device.modelfile import ModelFile
from cxr_compress.device.preprocess import ImageGateWarning, prepare
from cxr_compress.errors import CompressionError

_PICTURE = re.compile(r"image_\d{4,}_\d{2,}_[a-z0-9_]+\.png")


def define_heatmap_flag(values: flags.FlagValues) -> None:
    """Define it."""
    text = (
        "Folder for one PNG an image and positive finding that shows where its score came from; not an outline of "
        "disease. Needs a model exported with --head=logits+cam."
    )
    flags.DEFINE_string("heatmap_dir", None, text, flag_values=values)


class HeatmapWriter:
    """Writes pictures under names made of the image's number, never of its file name, which is often a patient's."""

    def __init__(self, folder: str, model: ModelFile, classifier: Classifier, view: DicomView) -> None:
        """Make the folder.

        Raises:
            ModelFileError: the model has no map.
            CompressionError: the folder cannot be made or written to, or holds pictures of an earlier run, some of
                which would be left among the new ones under the same numbers.
        """
        classifier.require_map()
        self._folder, self._spec, self._view = make_folder(folder), model.info.preprocess, view
        earlier = sum(_PICTURE.fullmatch(path.name) is not None for path in self._folder.iterdir())
        if earlier:
            raise CompressionError(
                f"--heatmap_dir {folder} holds {earlier} pictures of an earlier run: give another folder, or move them "
                "away"
            )
        check_writable(self._folder)
        self._use = model.info.intended_use

    def write(self, number: int, image: str, findings: Findings) -> dict[str, str]:
        """Write the pictures of one image; give the path of each positive finding's.

        Args:
            number: of the image in this run, from 1.
            image: its path.
            findings: what the model says of it.

        Raises:
            DataError: the image can no longer be read.
        """
        chosen = [label for label, positive in zip(findings.labels, findings.positive, strict=True) if positive]
        if not chosen:
            return {}
        with warnings.catch_warnings():
            # The check for colour was passed, or its warning given, when the image was classified.
            warnings.simplefilter("ignore", ImageGateWarning)
            film = prepare(image, self._spec, "off", self._view).image
        written = {}
        for label in chosen:
            name = f"image_{number:04d}_{findings.labels.index(label) + 1:02d}_{_file_part(label)}.png"
            path = self._folder / name
            title = f"{label}: {findings.probabilities[findings.labels.index(label)]:.2f}. {self._use}"
            write_bytes(path, to_png(overlay(film, findings.heatmap(label), title=title)))
            written[label] = str(path)
        return written


def _file_part(label: str) -> str:
    """A finding as part of a file name on any system."""
    return re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_").lower() or "finding"
