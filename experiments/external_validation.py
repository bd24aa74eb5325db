r"""Score a shipped file on images of another hospital, with its own thresholds: what a card says of the world outside.

Command:  python experiments/external_validation.py --model=tflite_models/tiny_chexnet_kermany_m50_w50_int8.tflite \
              --data_dir=../shared/data
Time:     under a minute on two cores.
Result:   experiments/results/external_validation.json: per file (sha256) and set, for each finding of both, images
          and patients with it and without, AUROC with its 95 % interval over patients, the same within one view, where
          the view alone would tell sick from healthy, and sensitivity and specificity at the thresholds of the file.
          `ship_model.py --external=...` puts them into the card.

The set is nih_mini: 1,707 images of adults from the NIH Clinical Center, chosen for their labels and not at random, so
its AUROCs do not compare with published ones; nothing was fitted or chosen on it.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

from cxr_compress.data import decode_split, load_dataset
from cxr_compress.data.splits import join_splits
from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import read_model
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate import from_classifier, groups_of, match_findings, score_groups, score_model
from cxr_compress.files import write_text

RESULTS = Path(__file__).parent / "results" / "external_validation.json"
SET = "nih_mini"
WORDS = "NIH ChestX-ray14, adults of one hospital in Bethesda, 1,707 images chosen for their labels"
_COLUMNS = ("path", "patient_id", "sex", "age", "view", "split")

_MODELS = flags.DEFINE_list("model", [], "The .tflite files.")
_DATA = flags.DEFINE_string("data_dir", None, "Folder with nih_mini/.")
_SAMPLES = flags.DEFINE_integer("bootstrap_samples", 1000, "Resampled sets behind an interval.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", str(RESULTS), "The JSON that the rows go to.")


def table_of(folder: Path, findings: tuple[str, ...]) -> str:
    """The images of nih_mini as a table for the reader `csv`: those findings of a model that NIH's labels know."""
    rows = list(csv.DictReader((folder / "labels.csv").read_text(encoding="utf-8").splitlines()))
    known = [name for name in findings if name.replace(" ", "_") in rows[0]]
    if not known:
        raise CompressionError(f"expected a finding that NIH labels, the model has {', '.join(findings)}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *known])
    for number, row in enumerate(rows):
        # The splits mean nothing here: all images are scored. The reader wants some in each.
        part = ("train", "dev", "test")[int(row["patient_id"]) % 3]
        path = (folder / "images" / row["image"]).with_suffix(".jpg")
        about = [str(path.resolve()), row["patient_id"], row["sex"], row["age"], row["view"], part]
        writer.writerow([*about, *(row[name.replace(" ", "_")] for name in known)])
        if number == 0 and not path.is_file():
            raise CompressionError(f"expected {path.name} in {path.parent}: is nih_mini there completely?")
    return text.getvalue()


def validate(model: Path, folder: Path, samples: int) -> dict[str, Any]:
    """One file on the whole set."""
    file = read_model(model)
    classifier = Classifier(file)
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "table.csv"
        table.write_text(table_of(folder, file.info.labels), encoding="utf-8")
        dataset = load_dataset("csv", table, options={"allow_one_class": "true"})
        split = join_splits(dataset.splits, "all")
        images = decode_split(split, classifier.spec)
    match = match_findings(classifier.labels, dataset.findings, logits=len(classifier.labels))
    scored = score_model(
        from_classifier(classifier),
        images,
        split.labels[:, match.labels],
        split.patients,
        match.findings,
        columns=match.logits,
        samples=samples,
    )
    groups = {by: names for by, names in groups_of(split).items() if by == "view"}
    within = {grouping.by: grouping.to_dict() for grouping in score_groups(scored, groups)}
    return {
        "model": file.info.model_name,
        "sha256": file.sha256,
        "set": SET,
        "words": WORDS,
        "images": len(split),
        "patients": len(set(split.patients)),
        "evaluation": scored.to_dict(),
        "groups": within,
    }


def main(_: list[str]) -> None:
    """Score the files that the flags name, and keep the rows of others."""
    if not _MODELS.value or not _DATA.value:
        sys.exit("external_validation: expected --model=FILE,... and --data_dir=FOLDER with nih_mini/")
    results = Path(_RESULTS.value)
    kept = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else []
    try:
        for model in map(Path, _MODELS.value):
            row = validate(model, Path(_DATA.value) / SET, _SAMPLES.value)
            kept = [one for one in kept if (one["model"], one["set"]) != (row["model"], row["set"])] + [row]
            write_text(results, json.dumps(kept, indent=1) + "\n")
            for finding, found in row["evaluation"]["findings"].items():
                print(f"{row['model']} {finding}: AUROC {found['auroc']}")
    except CompressionError as error:
        sys.exit(f"external_validation: {error}")


if __name__ == "__main__":
    app.run(main)
