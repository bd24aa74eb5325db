"""The CSV of predictions gives the numbers again and names nobody."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.device.modelinfo import probabilities_of
from cxr_compress.errors import DataError
from cxr_compress.evaluate import Evaluation, predictions_csv, read_groups, read_predictions, score_logits
from cxr_compress.metrics import auroc_per_finding
from tests.evaluate.compared import draw_logits, score

PATIENTS = tuple(f"person{number // 2}" for number in range(60))


def make_scored() -> Evaluation:
    rng = np.random.default_rng(0)
    labels = (rng.uniform(size=(60, 2)) < 0.4).astype(np.float32)
    labels[5, 1] = np.nan
    logits = rng.normal(size=(60, 2)).astype(np.float32)
    return score_logits(logits, labels, PATIENTS, ("a", "b"), samples=10)


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_predictions_csv_gives_labels_and_logits_bit_for_bit() -> None:
    scored = make_scored()
    rows = read(predictions_csv(scored))
    assert list(rows[0]) == ["image", "patient", "label_a", "label_b", "logit_a", "logit_b"]
    logits = np.array([[row["logit_a"], row["logit_b"]] for row in rows]).astype(np.float32)
    np.testing.assert_array_equal(logits, scored.logits)
    labels = np.array([[float(row[f"label_{name}"] or "nan") for name in "ab"] for row in rows])
    np.testing.assert_array_equal(labels, scored.labels)
    np.testing.assert_array_equal(auroc_per_finding(labels, logits), auroc_per_finding(scored.labels, scored.logits))
    assert rows[5]["label_b"] == ""
    assert [row["image"] for row in rows] == [str(image) for image in range(60)]


def test_predictions_csv_keeps_patients_apart_and_unnamed() -> None:
    scored = make_scored()
    text = predictions_csv(scored)
    assert not any(patient in text for patient in PATIENTS)
    hashed = [row["patient"] for row in read(text)]
    assert all((hashed[i] == hashed[j]) == (PATIENTS[i] == PATIENTS[j]) for i in range(60) for j in range(60))
    # Another call has another key, unless one is given.
    assert not set(hashed) & {row["patient"] for row in read(predictions_csv(scored))}
    assert predictions_csv(scored, key=b"mine") == predictions_csv(scored, key=b"mine")


def write(tmp_path: Path, text: str, name: str = "a.csv") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("calibrated", [True, False])
def test_predictions_read_back_give_the_evaluation_again(tmp_path, calibrated) -> None:
    labels, logits, patients = draw_logits(images=300)
    scored = score(labels, logits, patients, thresholds=(0.4, 0.6), samples=20)
    if not calibrated:
        decisions = probabilities_of(logits, "sigmoid") >= np.float32(0.5)
        options = {"decisions": decisions, "thresholds": (0.5, 0.5), "samples": 20}
        scored = score_logits(logits, labels, patients, scored.findings, **options)
    path = write(tmp_path, predictions_csv(scored, {"sex": tuple("FM" * 150)}))
    found = read_predictions(path)
    again = found.score(samples=20, seed=0)
    assert found.groups == {"sex": tuple("FM" * 150)}
    assert found.images.tolist() == list(range(300))
    for name in ("logits", "labels", "decisions"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scored, name))
    assert (again.probabilities is None) == (not calibrated)
    # Patients are numbered in another order than their names', so resampled sets differ and values do not.
    pairs = zip(again.scores, scored.scores, strict=True)
    assert all((one.auroc.value, one.sensitivity) == (other.auroc.value, other.sensitivity) for one, other in pairs)


def test_predictions_of_two_files_pair_whatever_the_order_of_rows_and_columns(tmp_path) -> None:
    scored = make_scored()
    first = read_predictions(write(tmp_path, predictions_csv(scored)))
    rows = list(csv.reader(io.StringIO(predictions_csv(scored))))
    order = [0, 1, 3, 2, 5, 4]  # findings the other way round
    turned = [[row[column] for column in order] for row in [rows[0], *reversed(rows[1:])]]
    text = "\n".join(",".join(row) for row in turned) + "\n"
    second = read_predictions(write(tmp_path, text, "b.csv"))
    assert second.findings == ("b", "a")
    paired = second.pair_with(first)
    assert paired.findings == ("a", "b")
    np.testing.assert_array_equal(paired.logits, first.logits)
    assert paired.patients == first.patients


def test_predictions_on_other_images_are_refused_in_one_line(tmp_path) -> None:
    scored = make_scored()
    text = predictions_csv(scored)
    first = read_predictions(write(tmp_path, text))
    lines = text.splitlines()
    cells = lines[1].split(",")
    other_label = ",".join([*cells[:2], str(1 - int(cells[2])), *cells[3:]])
    other_patient = ",".join([cells[0], "0123456789abcdef", *cells[2:]])
    changed = {
        "59 images where a.csv has 60": lines[:-1],
        "images of other numbers": [*lines[:-1], f"77,{lines[-1].partition(',')[2]}"],
        "other labels than a.csv, first of image 0": [lines[0], other_label, *lines[2:]],
        "shared out among patients otherwise": [lines[0], other_patient, *lines[2:]],
        "lacks b and has c besides": [lines[0].replace("_b", "_c"), *lines[1:]],
    }
    for words, rows in changed.items():
        other = read_predictions(write(tmp_path, "\n".join(rows) + "\n", "b.csv"))
        with pytest.raises(DataError, match=words):
            other.pair_with(first)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",0.5\n", ",nan\n", "line 2 of a.csv has 'nan' in the column logit_a; expected a finite number"),
        ("\n0,", "\none,", "line 2 of a.csv has 'one' in the column image"),
        ("\n1,", "\n0,", "line 3 of a.csv names image 0, which line 2 names"),
        ("label_a", "label_z", "the header lacks label_a"),
        (",1,0.25", ",2,0.25", "has '2' in the column label_a; expected a number from 0 to 1"),
    ],
)
def test_predictions_that_cannot_be_read_say_where(tmp_path, old, new, words) -> None:
    text = "image,patient,label_a,logit_a\n0,p,0,0.5\n1,q,1,0.25\n"
    assert old in text
    path = write(tmp_path, text.replace(old, new, 1))
    with pytest.raises(DataError, match=re.escape(words)):
        read_predictions(path)


def test_images_without_a_patient_count_as_patients_of_their_own(tmp_path) -> None:
    rows = "image,label_a,logit_a\n0,0,0.5\n1,1,0.25\n"
    assert len(set(read_predictions(write(tmp_path, rows)).patients)) == 2
    rows = "image,patient,label_a,logit_a\n0,,0,0.5\n1,,1,0.25\n2,x,1,0.25\n3,x,1,1\n"
    assert len(set(read_predictions(write(tmp_path, rows)).patients)) == 3


def test_groups_of_a_table_are_by_the_number_of_the_image(tmp_path) -> None:
    path = write(tmp_path, "scanner,image,ward\nX,1,a\nY,0,\n")
    assert read_groups(path, [0, 1]) == {"scanner": ("Y", "X"), "ward": ("unknown", "a")}
    with pytest.raises(DataError, match="lacks image 2 "):
        read_groups(path, [0, 1, 2])
    with pytest.raises(DataError, match="lacks any column beside image"):
        read_groups(write(tmp_path, "image\n0\n", "b.csv"), [0])
