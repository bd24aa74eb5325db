r"""Are the verdicts of cxr_compare right? Simulated models whose true loss is known, and a real one with known AUROCs.

Command:  python experiments/comparison_statistics.py --data_dir=../shared/data
Time:     on one core 90 s each for coverage and errors.
Result:   experiments/results/comparison_statistics.json, a key for each of --parts:
          coverage    how often the 95 % intervals hold the true drop of AUROC, with few positives and with several
                      images of a patient; beside it the plain percentile interval of the AUROC itself
          errors      14 findings, each of which truly loses the margin: how often any is shown not inferior; and 14
                      that lose nothing: how often any is shown worse
          power       as printed, and as simulated, of models that are truly equal
          planted     how often one noised finding of 14, and one noised group of 10 %, is named, and anything else
          identical   a model beside itself, through the files that cxr_evaluate writes
          delong      the spread by DeLong's formula for clustered data over that of the bootstrap
          published   AUROCs of a real CheXNet on 22,433 NIH images beside those published for it
          speed       25,596 images x 14 findings x 2,000 resamplings, and the same in a loop over scikit-learn

The name is not statistics.py: scripts of this folder would import it in place of Python's own.

Scores are normal: with the finding they lie `separation` higher, and the noise of a candidate follows its reference's
with a correlation of 0.95. Half of the noise is common to all images of a patient, so the true AUROC is
Phi(separation / sqrt 2), and the loss is what the separations make it.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from absl import app, flags
from numpy.typing import NDArray

from cxr_compress.evaluate import (
    NOT_INFERIOR,
    OWN,
    WORSE,
    Evaluation,
    Judged,
    compare_groups,
    compare_models,
    predictions_csv,
    read_predictions,
    score_logits,
)
from cxr_compress.evaluate.verdict import judge
from cxr_compress.files import write_text
from cxr_compress.metrics import (
    Loss,
    auroc,
    auroc_per_finding,
    auroc_samples,
    count_carriers,
    count_images,
    interval,
    mid_ranks,
)

Array = NDArray[np.float64]
NORMAL = NormalDist()
MARGIN = 0.01
AUROC = 0.86
FOLLOWS = 0.95  # correlation of the noise of candidate and reference
COMMON = 0.5  # share of the noise that all images of a patient have in common
PREVALENCES = (0.02, 0.025, 0.03, 0.04, 0.05, 0.05, 0.06, 0.08, 0.1, 0.1, 0.12, 0.15, 0.2, 0.3)
FINDINGS = tuple(f"finding {number}" for number in range(len(PREVALENCES)))

_PARTS = flags.DEFINE_list("parts", [], "Which parts; empty: all.")
_RUNS = flags.DEFINE_float("runs", 1.0, "Number of simulations, as a share of the usual.", lower_bound=0.0)
_DATA = flags.DEFINE_string("data_dir", None, "Folder with nih_meta, for the part published.")
_RESULTS = flags.DEFINE_string("output_file", "experiments/results/comparison_statistics.json", "Where results go.")
_SMOKE = flags.DEFINE_boolean("smoke", False, "A few simulations of each part, printed and not written.")


def separation_for(value: float) -> float:
    """How far apart the classes lie for an AUROC."""
    return math.sqrt(2) * NORMAL.inv_cdf(value)


def draw_patients(rng: np.random.Generator, patients: int, most: int) -> NDArray[np.int64]:
    """The patient of each image: one to `most` images each."""
    return np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))


def draw_noise(rng: np.random.Generator, member: NDArray[np.int64], columns: int) -> Array:
    """Noise of (images, columns) with variance 1, a part of it common to a patient."""
    own, common = rng.normal(size=(len(member), columns)), rng.normal(size=(member.max() + 1, columns))
    return math.sqrt(COMMON) * common[member] + math.sqrt(1 - COMMON) * own


def draw_pair(
    rng: np.random.Generator, labels: Array, member: NDArray[np.int64], losses: float | Array
) -> tuple[Array, Array]:
    """Scores (images, k) of a reference with an AUROC of 0.86 and of a candidate with true losses (k,)."""
    noise = draw_noise(rng, member, labels.shape[1])
    other = FOLLOWS * noise + math.sqrt(1 - FOLLOWS**2) * draw_noise(rng, member, labels.shape[1])
    after = [separation_for(AUROC - loss) for loss in np.broadcast_to(losses, labels.shape[1])]
    return separation_for(AUROC) * labels + noise, np.array(after) * labels + other


def draw_labels(rng: np.random.Generator, member: NDArray[np.int64], prevalences: Sequence[float]) -> Array:
    """Labels (images, k), the same for all images of a patient."""
    return (rng.uniform(size=(member.max() + 1, len(prevalences))) < prevalences)[member].astype(np.float64)


def measure(
    labels: Array, pair: tuple[Array, Array], member: NDArray[np.int64], samples: int, seed: int
) -> tuple[list[Loss], Array, Array]:
    """Losses, and the resampled AUROCs (samples, k) of both: what cxr_compare judges by."""
    before, after = (auroc_samples(labels, scores, member, samples=samples, seed=seed) for scores in pair)
    values = auroc_per_finding(labels, pair[0]) - auroc_per_finding(labels, pair[1])
    counts = np.minimum(*count_images(labels))
    losses = [
        Loss.of(float(value), before[:, k] - after[:, k], int(counts[k]), count_carriers(labels[:, k], member))
        for k, value in enumerate(values)
    ]
    return losses, before, after


def coverage(runs: float) -> dict[str, Any]:
    """How often intervals hold the truth."""
    cases = {
        "21 positives, one image a patient": (21, 300, 1),
        "about 21 positives of 14 patients": (14, 200, 2),
        "about 60 positives of 30 patients": (30, 150, 3),
        "about 300 positives of 150 patients": (150, 350, 3),
    }
    found = {}
    for number, (name, (positive, negative, most)) in enumerate(cases.items()):
        rng, held, of_auroc, count = np.random.default_rng(number), 0, 0, max(2, round(1000 * runs))
        for run in range(count):
            member = draw_patients(rng, positive + negative, most)
            labels = (member < positive)[:, None].astype(np.float64)
            pair = draw_pair(rng, labels, member, MARGIN)
            (loss,), before, after = measure(labels, pair, member, 500, run)
            drop = interval(loss.value, (before - after)[:, 0], carriers=loss.patients)
            held += drop.low <= MARGIN <= drop.high
            plain = interval(auroc(labels[:, 0], pair[0][:, 0]), before[:, 0])
            of_auroc += plain.low <= AUROC <= plain.high
        found[name] = {"runs": count, "drop": held / count, "plain_interval_of_the_auroc": of_auroc / count}
    return found


def judge_14(rng: np.random.Generator, losses: float | Array, seed: int) -> list[Judged]:
    """The verdicts on 14 findings of 1,000 patients, from 20 positives up."""
    while True:
        member = draw_patients(rng, 1000, 2)
        labels = draw_labels(rng, member, PREVALENCES)
        if count_images(labels)[0].min() >= 20:  # noqa: PLR2004 - below, no verdict is given
            break
    measured, _, _ = measure(labels, draw_pair(rng, labels, member, losses), member, 200, seed)
    return judge(measured, MARGIN, [""] * len(measured))


def errors(runs: float) -> dict[str, Any]:
    """How often anything is shown that is not so."""
    found: dict[str, Any] = {}
    for number, (name, loss, wrong) in enumerate(
        (
            ("any of 14 shown not inferior, each loses the margin", MARGIN, NOT_INFERIOR),
            ("any of 14 shown worse, none loses anything", 0.0, WORSE),
        )
    ):
        rng, count = np.random.default_rng(100 + number), max(2, round(250 * runs))
        hits = [any(one.verdict == wrong for one in judge_14(rng, loss, run)) for run in range(count)]
        found[name] = {"runs": count, "share": float(np.mean(hits))}
    return found


def power(runs: float) -> dict[str, Any]:
    """As printed for truly equal models, and as simulated."""
    found = {}
    for number, margin in enumerate((0.01, 0.015, 0.02, 0.025)):
        rng, count = np.random.default_rng(200 + number), max(2, round(1000 * runs))
        shown, printed = 0, []
        for run in range(count):
            member = draw_patients(rng, 400, 2)
            labels = (member < 120)[:, None].astype(np.float64)  # noqa: PLR2004
            (loss,), _, _ = measure(labels, draw_pair(rng, labels, member, 0.0), member, 500, run)
            (judged,) = judge([loss], margin, [""])
            shown += judged.verdict == NOT_INFERIOR
            printed.append(loss.power(margin))
        found[f"margin {margin:g}"] = {
            "runs": count,
            "printed": float(np.mean(printed)),
            "simulated": shown / count,
        }
    return found


def score(labels: Array, logits: Array, member: NDArray[np.int64], samples: int) -> Evaluation:
    """As cxr_evaluate would, with thresholds on calibrated probabilities."""
    chances = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return score_logits(
        logits.astype(np.float32),
        labels.astype(np.float32),
        [f"p{patient:06d}" for patient in member],
        FINDINGS,
        decisions=chances >= np.float32(0.5),
        thresholds=[0.5] * len(FINDINGS),
        probabilities=chances,
        samples=samples,
    )


def planted(runs: float) -> dict[str, Any]:
    """Harm that is there: to one finding, and to one group of a tenth of the images in another finding."""
    rng, count = np.random.default_rng(300), max(2, round(100 * runs))
    harmed, group = 9, "source 3"
    named = others = worst = other_groups = 0
    for _ in range(count):
        member = draw_patients(rng, 1600, 2)
        labels = draw_labels(rng, member, PREVALENCES)
        losses = np.zeros(len(PREVALENCES))
        losses[harmed] = 0.05
        before, after = draw_pair(rng, labels, member, losses)
        sources = np.array([f"source {patient % 10}" for patient in member])
        inside, column = sources == group, len(PREVALENCES) - 1
        after[inside, column] = rng.normal(size=inside.sum())  # it says nothing there any more
        reference, candidate = (score(labels, scores, member, 200) for scores in (before, after))
        verdicts = [
            change.judged.verdict if change.judged else ""
            for change in compare_models(
                "planted", reference, candidate, np.arange(len(labels)), margin=MARGIN
            ).findings
        ]
        named += verdicts[harmed] == WORSE
        others += any(verdict == WORSE for place, verdict in enumerate(verdicts) if place not in (harmed, column))
        (grouping,) = compare_groups(reference, candidate, {"source": sources.tolist()}, margin=MARGIN)
        lost = [(one.group, one.finding) for one in grouping.changes if one.judged.verdict == WORSE]
        top = grouping.worst
        worst += top is not None and (top.group, top.finding) == (group, FINDINGS[column]) and lost[:1] != []
        other_groups += any(
            where not in ((group, FINDINGS[column]),) and where[1] != FINDINGS[harmed] for where in lost
        )
    return {
        "runs": count,
        "images": "about 2,400 of 1,600 patients",
        "finding": {"true_loss": 0.05, "prevalence": PREVALENCES[harmed], "named": named / count},
        "another_finding_named": others / count,
        "group": {"share": 0.1, "prevalence": PREVALENCES[-1], "named_as_worst": worst / count},
        "another_group_named": other_groups / count,
    }


def identical(_: float) -> dict[str, Any]:
    """A model beside itself."""
    rng = np.random.default_rng(400)
    member = draw_patients(rng, 1000, 2)
    labels = draw_labels(rng, member, PREVALENCES)
    scored = score(labels, draw_pair(rng, labels, member, 0.0)[0], member, 200)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.csv" for name in "ab"]
        for file in files:
            file.write_text(predictions_csv(scored), encoding="utf-8")
        first, second = map(read_predictions, files)
    reference, candidate = (one.score(samples=200, seed=0) for one in (first, second.pair_with(first)))
    changes = compare_models("itself", reference, candidate, first.images, margin=1e-6).findings
    return {
        "not_inferior_of_14": sum(one.judged is not None and one.judged.verdict == NOT_INFERIOR for one in changes),
        "flips": sum(one.decided[OWN].flips for one in changes),
    }


def delong_spread(labels: Array, pair: tuple[Array, Array], member: NDArray[np.int64]) -> float:
    """Standard error of a difference of two AUROCs, without resampling.

    Source: DeLong, DeLong and Clarke-Pearson 1988; for several images of a patient Obuchowski 1997, "Nonparametric
    analysis of clustered ROC curve data".
    """
    ill = labels == 1
    parts = []
    for scores in pair:
        ranks = mid_ranks(scores)
        won = (ranks[ill] - mid_ranks(scores[ill])) / (~ill).sum()
        lost = 1 - (ranks[~ill] - mid_ranks(scores[~ill])) / ill.sum()
        parts.append((won, lost))
    patients = member.max() + 1
    sums = []
    for images, first, second in zip((ill, ~ill), *parts, strict=True):
        difference = first - second
        sums.append(np.bincount(member[images], difference - difference.mean(), patients) / images.sum())
    counts = [len(np.unique(member[images])) for images in (ill, ~ill)]
    variance = sum(count / (count - 1) * (total**2).sum() for count, total in zip(counts, sums, strict=True))
    shared = 2 * patients / (patients - 1) * (sums[0] * sums[1]).sum()
    return math.sqrt(variance + shared)


def delong(runs: float) -> dict[str, Any]:
    """The spread by formula over that of the bootstrap: mean and range."""
    found = {}
    for name, (patients, prevalence, most) in {
        "about 20 positives": (200, 0.1, 1),
        "about 100 positives": (500, 0.2, 1),
        "about 200 positives, 2 images a patient": (500, 0.2, 3),
    }.items():
        rng, ratios = np.random.default_rng(500), []
        for run in range(max(2, round(60 * runs))):
            member = draw_patients(rng, patients, most)
            labels = draw_labels(rng, member, [prevalence])
            pair = draw_pair(rng, labels, member, 0.0)
            (loss,), _, _ = measure(labels, pair, member, 1000, run)
            ratios.append(delong_spread(labels[:, 0], (pair[0][:, 0], pair[1][:, 0]), member) / loss.spread)
        found[name] = {"mean": float(np.mean(ratios)), "low": float(min(ratios)), "high": float(max(ratios))}
    return found


def published(_: float) -> dict[str, Any]:
    """A real CheXNet on the 22,433 images that it was not trained on."""
    if _DATA.value is None:
        return {"reason": "--data_dir was not given"}
    folder = Path(_DATA.value) / "nih_meta"
    with (folder / "chexnet_jrzech_aucs.csv").open(encoding="utf-8") as file:
        known = {row["label"]: float(row["auc"]) for row in csv.DictReader(file)}
    with gzip.open(folder / "Data_Entry_2017_v2020.csv.gz", "rt", encoding="utf-8") as file:
        said = {row["Image Index"]: row["Finding Labels"].split("|") for row in csv.DictReader(file)}
    with gzip.open(folder / "chexnet_preds_22433.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for name, value in known.items():
        labels = [name in said[row["Image Index"]] for row in rows]
        ours = auroc(np.array(labels, np.float64), [float(row[f"prob_{name}"]) for row in rows])
        found[name] = {"ours": ours, "published": value}
    return {
        "images": len(rows),
        "findings": found,
        "largest_difference": max(abs(one["ours"] - one["published"]) for one in found.values()),
    }


def speed(runs: float) -> dict[str, Any]:
    """Seconds for a test set of the size of NIH's, and for a loop over scikit-learn, from a few of its turns."""
    from sklearn.metrics import roc_auc_score

    images, samples, turns = round(25_596 * min(runs, 1.0)), round(2000 * min(runs, 1.0)), 3
    rng = np.random.default_rng(600)
    member = np.sort(rng.integers(0, max(1, images // 9), images))
    _, member = np.unique(member, return_inverse=True)
    labels = draw_labels(rng, member, PREVALENCES)
    scores = draw_pair(rng, labels, member, 0.0)[0]
    begun = time.perf_counter()
    auroc_samples(labels, scores, member, samples=samples)
    ours = time.perf_counter() - begun
    starts = np.searchsorted(member, np.arange(member.max() + 2))
    begun = time.perf_counter()
    for _ in range(turns):
        drawn = rng.integers(0, member.max() + 1, member.max() + 1)
        chosen = np.concatenate([np.arange(starts[patient], starts[patient + 1]) for patient in drawn])
        for k in range(labels.shape[1]):
            roc_auc_score(labels[chosen, k], scores[chosen, k])
    loop = (time.perf_counter() - begun) / turns * samples
    return {
        "images": images,
        "resamplings": samples,
        "seconds": ours,
        "seconds_of_the_loop": loop,
        "times_faster": loop / ours,
    }


PARTS: dict[str, Callable[[float], dict[str, Any]]] = {
    part.__name__: part for part in (coverage, errors, power, planted, identical, delong, published, speed)
}


def main(_: list[str]) -> None:
    """Run the parts that the flags name, and keep what others gave before."""
    unknown = sorted(set(_PARTS.value) - set(PARTS))
    if unknown:
        sys.exit(f"comparison_statistics: expected --parts of {', '.join(PARTS)}, got {unknown[0]!r}")
    results = Path(_RESULTS.value)
    kept = json.loads(results.read_text(encoding="utf-8")) if results.is_file() and not _SMOKE.value else {}
    for name in _PARTS.value or PARTS:
        begun = time.monotonic()
        kept[name] = PARTS[name](0.02 if _SMOKE.value else _RUNS.value)
        print(f"{name} ({time.monotonic() - begun:.0f} s): {json.dumps(kept[name], indent=1)}", flush=True)
        if not _SMOKE.value:
            write_text(results, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
