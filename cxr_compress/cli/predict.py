"""Read chest X-rays on the device and print the findings of a .tflite model.

    cxr_predict --model=model.tflite chest.png
    cxr_predict --model=model.tflite --format=csv folder/ more.jpg > findings.csv
    cxr_predict --model=model.tflite --window=2048,4096 chest.dcm
    cxr_predict --model=model.tflite --heatmap_dir=maps chest.png

Each argument is a PNG, JPEG, BMP, TIFF, WebP or DICOM file, or a folder that is searched for them (sub-folders and
links to folders included, hidden files left out; DICOM under any name). DICOM needs pip install 'cxr-compress[dicom]';
what a header says about a patient is neither read nor printed. Research use only; not a medical device and not a
diagnosis.

A model of classes that exclude one another (normal, bacteria, virus) gives each image exactly one: "predicted", the
likeliest, in every format; its row alone is positive, its probabilities add up to 1, and it has no thresholds.

With --heatmap_dir each positive finding gets a picture of where in the image its score came from: evidence, not an
outline of disease. Pictures are named by the number of the image, whose file name is often a patient's.

What looks odd about an image (inverted, nearly black or white, few gray levels, noise, a few pixels large, or read in
another way than its file declares) is one line on stderr and stands in the last column of its rows, in short in the
table; in --format=json it is the field "warnings" of the image. Its findings are printed all the same: do not rely on
them before the image was looked at. A blank image is refused, unless --gate=off.

A batch (several arguments, or a folder) goes on after a bad file, and after a file in a folder that is no image: one
line on stderr for each, the list at the end and exit code 1. A wrong flag or model, a folder without images, or a bad
file that is the only argument ends with one line and exit code 2. Exit code 0: every file was read. With --format=csv
rows appear as soon as an image is done.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, EXIT_SOME_INPUTS_BAD, UsageError, print_error, run_command
from cxr_compress.cli.device_flags import check_signature, define_public_key_flag, define_runtime_flags, runtime_options
from cxr_compress.cli.output import write_csv_rows, write_results
from cxr_compress.device.classifier import Classifier, Findings
from cxr_compress.device.decode import IMAGE_SUFFIXES
from cxr_compress.device.dicom import DicomView
from cxr_compress.device.heatmap import overlay, to_png
from cxr_compress.device.image_checks import in_short
from cxr_compress.device.modelfile import ModelFile, read_model
from cxr_compress.device.preprocess import GATES, ImageGateWarning, prepare
from cxr_compress.device.sources import look_into
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.files import check_writable, make_folder, write_bytes

_PICTURE = re.compile(r"image_\d{4,}_\d{2,}_[a-z0-9_]+\.png")


def define_heatmap_flag(values: flags.FlagValues) -> None:
    """Define --heatmap_dir."""
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
            # The check for color was passed, or its warning given, when the image was classified.
            warnings.simplefilter("ignore", ImageGateWarning)
            pixels = prepare(image, self._spec, "off", self._view).image
        written = {}
        for label in chosen:
            name = f"image_{number:04d}_{findings.labels.index(label) + 1:02d}_{_file_part(label)}.png"
            path = self._folder / name
            title = f"{label}: {findings.probabilities[findings.labels.index(label)]:.2f}. {self._use}"
            write_bytes(path, to_png(overlay(pixels, findings.heatmap(label), title=title)))
            written[label] = str(path)
        return written


def _file_part(label: str) -> str:
    """A finding as part of a file name on any system."""
    return re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_").lower() or "finding"


NAME = "cxr_predict"
_COLUMNS = ("image", "label", "probability", "threshold", "positive", "logit", "milliseconds", "warnings")
_CLASS_COLUMNS = ("image", "predicted", "label", "probability", "positive", "logit", "milliseconds", "warnings")
_OF_THE_IMAGE = ("milliseconds", "warnings")


@dataclass(frozen=True)
class _Result:
    """The findings of one image, which is named as the user passed it."""

    image: str
    findings: Findings
    warnings: list[str]
    milliseconds: float
    heatmaps: dict[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        about = {**self.findings.to_dict(), "warnings": self.warnings}
        pictures = {} if self.heatmaps is None else {"heatmaps": self.heatmaps}
        return {"image": self.image, **about, "milliseconds": self.milliseconds, **pictures}

    def rows(self, *, short: bool = False) -> list[list[Any]]:
        """One row a finding; each carries the warnings about the image, in short or in full."""
        entries = self.findings.to_dict()["findings"]
        remarks = ", ".join(map(in_short, self.warnings)) if short else " | ".join(self.warnings)
        keys = _columns(self.findings.activation)[1 : -len(_OF_THE_IMAGE)]
        rows = [{"predicted": self.findings.predicted, **entry} for entry in entries]
        return [[self.image, *(row[key] for key in keys), self.milliseconds, remarks] for row in rows]


def _columns(activation: str) -> tuple[str, ...]:
    """What a row says: of classes that exclude one another the predicted one, and no threshold."""
    return _CLASS_COLUMNS if activation == "softmax" else _COLUMNS


@dataclass
class _Batch:
    """What came of the arguments so far; an error is (image, message)."""

    results: list[_Result] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def fail(self, image: str, error: DataError) -> None:
        print_error(NAME, str(error))
        self.errors.append((image, str(error)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    flags.DEFINE_string("model", None, "The .tflite file, made by cxr_compress or cxr_convert.", flag_values=values)
    define_public_key_flag(values)
    define_runtime_flags(values)
    flags.DEFINE_enum(
        "gate",
        "error",
        GATES,
        "What to do with an image the model was not made for, a blank one or a color photograph: refuse it (error), "
        "or warn and go on at your own risk (off).",
        flag_values=values,
    )
    text = "Which frame of a DICOM file with several, counted from 1."
    flags.DEFINE_integer("frame", None, text, flag_values=values)
    text = (
        "How DICOM files are seen: CENTER,WIDTH, or the number of the VOI LUT or window in the file, counted from 1. "
        "The first one by default; the whole range of stored values where a file has none."
    )
    flags.DEFINE_string("window", None, text, flag_values=values)
    text = (
        "Meaningful bits, 8 to 16, of images that store 16 bits a pixel, and of DICOM files without a window. By "
        "default told by their highest value, with a warning where that is not what the file declares."
    )
    flags.DEFINE_integer("bit_depth", None, text, flag_values=values)
    define_heatmap_flag(values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Classify every image of the arguments."""
    if not values.model:
        raise UsageError("expected --model=FILE, the .tflite to use")
    if not arguments:
        raise UsageError("expected at least one image file or folder, got none")
    _check_heatmap_dir(values, arguments)
    view = _view(values)
    check_signature(values)
    model = read_model(values.model)
    classifier = Classifier(model, view=view, gate=values.gate, **runtime_options(values))
    images, batch = _list_images(arguments)
    pictures = HeatmapWriter(values.heatmap_dir, model, classifier, view) if values.heatmap_dir else None
    alone = images == arguments and len(images) == 1
    _classify(classifier, images, batch, alone=alone, form=values.format, pictures=pictures)
    if values.format != "csv":
        _print(values.format, model, classifier, batch)
    if model.info.synthetic:
        print_error(NAME, "warning: this model was trained on drawn images; its findings say nothing about patients")
    if not batch.errors:
        return EXIT_OK
    bad = ", ".join(image for image, _ in batch.errors)
    total = len(batch.results) + len(batch.errors)
    print_error(NAME, f"{len(batch.errors)} of {total} could not be used: {bad}")
    return EXIT_SOME_INPUTS_BAD


def _check_heatmap_dir(values: flags.FlagValues, arguments: list[str]) -> None:
    """Pictures among the images would be read as images the next time."""
    if not values.heatmap_dir:
        return
    target = Path(values.heatmap_dir).resolve()
    for argument in arguments:
        if Path(argument).is_dir() and target.is_relative_to(Path(argument).resolve()):
            raise UsageError(f"--heatmap_dir {values.heatmap_dir} lies in {argument}, which is searched for images")


def _view(values: flags.FlagValues) -> DicomView:
    """What to look at in DICOM files, and the bit depth of all."""
    try:
        return DicomView.parse(values.frame, values.window, values.bit_depth)
    except DataError as error:
        raise UsageError(f"--frame, --window or --bit_depth: {error}") from error


def _list_images(arguments: list[str]) -> tuple[list[str], _Batch]:
    """Replace each folder by the images in it, and note what else it holds as not read.

    A folder without any image fails, for good when it is the only argument.
    """
    images: list[str] = []
    batch = _Batch()
    for argument in arguments:
        if not argument:  # which Path takes for the current folder
            raise UsageError("expected the path of an image or a folder, got an empty argument; check the command")
        if not Path(argument).is_dir():
            images.append(argument)
            continue
        content = look_into(argument)
        if not content.images:
            unread = f" ({note})" if (note := content.note()) else ""
            error = DataError(f"{argument}: holds no image ({', '.join(IMAGE_SUFFIXES)}){unread}; check the folder")
            if len(arguments) == 1:
                raise error
            batch.fail(argument, error)
            continue
        for entry in content.not_read:
            batch.fail(str(entry.path), DataError(f"{entry.path}: not read: {entry.reason}"))
        images += map(str, content.images)
    return images, batch


def _classify(
    classifier: Classifier, images: list[str], batch: _Batch, *, alone: bool, form: str, pictures: HeatmapWriter | None
) -> None:
    """Classify image by image into the batch; a bad one that stands alone raises its DataError."""
    if form == "csv":
        write_csv_rows([_columns(classifier.info.activation)], intended_use=classifier.info.intended_use)
    for number, image in enumerate(images, 1):
        try:
            result = _predict(classifier, image)
            if pictures is not None:
                result = replace(result, heatmaps=pictures.write(number, image, result.findings))
        except DataError as error:
            if alone:
                raise
            batch.fail(image, error)
            continue
        batch.results.append(result)
        for text in result.warnings:
            # By its number: a file name is often a patient's, and stderr ends up in logs.
            print_error(NAME, f"warning: image {number}: {text}")
        if form == "csv":
            write_csv_rows(result.rows())


def _predict(classifier: Classifier, image: str) -> _Result:
    """Classify one image and gather what is to be said about the image itself."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageGateWarning)
        start = time.perf_counter()
        findings = classifier.predict(image)
        milliseconds = round((time.perf_counter() - start) * 1e3, 2)
    remarks = [str(warning.message) for warning in caught] + list(findings.warnings)
    return _Result(image, findings, remarks, milliseconds)


def _print(form: str, model: ModelFile, classifier: Classifier, batch: _Batch) -> None:
    """Print what came of the batch as a table or as JSON."""
    info = model.info
    about = {"name": info.model_name, "sha256": model.sha256, "quant_type": info.quant_type}
    document = {
        "model": {**about, "runtime": classifier.runtime, "synthetic": info.synthetic},
        "images": [result.to_dict() for result in batch.results],
        "errors": [{"image": image, "error": text} for image, text in batch.errors],
    }
    rows = [row for result in batch.results for row in result.rows(short=True)]
    headers = _columns(info.activation)
    write_results(form, document=document, headers=headers, rows=rows, intended_use=info.intended_use)
