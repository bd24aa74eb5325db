"""The CSV of predictions gives the numbers again and names nobody."""

from __future__ import annotations

import csv
import io

import numpy as np

from cxr_compress.evaluate import Evaluation, predictions_csv, score_logits
from cxr_compress.metrics import auroc_per_finding

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
