"""cxr_compare from its flags to table, JSON, CSV and exit code, for models and for what cxr_evaluate wrote of them."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cxr_compress.report
from cxr_compress.cli.compare import SCHEMA_VERSION, main
from cxr_compress.cli.evaluate import main as evaluate
from cxr_compress.device import INTENDED_USE
from cxr_compress.evaluate import Limits, score_logits
from cxr_compress.evaluate.predictions import predictions_csv
from cxr_compress.metrics import softmax
from cxr_compress.report.page import render_page
from tests.cli.runner import BLOCK_TENSORFLOW, run_module
from tests.cli.test_evaluate import FINDINGS, TEST, write_set
from tests.device.reference import FLOAT_MODEL, INT8_MODEL

SCHEMA = Path(cxr_compress.report.__file__).with_name("comparison.schema.json")
FAST = "--bootstrap_samples=50"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("images"))


def call(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    code = main([FAST, *flags])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def models(table: Path, *flags: str) -> list[str]:
    of_set = ["--dataset=csv", f"--data_dir={table}"]
    return [f"--reference={FLOAT_MODEL}", f"--candidate={INT8_MODEL}", *of_set, *flags]


def predict(folder: Path, table: Path, model: Path) -> Path:
    target = folder / f"{model.stem}.csv"
    flags = [f"--model={model}", "--dataset=csv", f"--data_dir={table}", FAST, f"--predictions_file={target}"]
    assert evaluate(flags) == 0
    return target


def test_compare_models_in_a_table(table, capsys) -> None:
    code, out, err = call(capsys, *models(table))
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("reference tiny_float.tflite on csv test: 90 images of 45 patients")
    for words in ("tiny_int8.tflite: ", "large heart", "own 0.", "Spearman", "sex and age", "groups too small"):
        assert words in out, words
    assert "The 45 images whose rank changes most" in out  # half of them
    assert lines[-1] == INTENDED_USE
    assert "secret" not in out + err
    assert "Jane" not in out + err


def test_compare_models_and_predictions_of_them_say_the_same(table, tmp_path, capsys) -> None:
    """But for intervals: patients are hashed in predictions, so the resampled sets are others."""
    assert call(capsys, *models(table, f"--output_file={tmp_path / 'models.json'}"))[0] == 0
    files = [predict(tmp_path, table, model) for model in (INT8_MODEL, FLOAT_MODEL)]
    flags = [f"--predictions={file}" for file in files]
    target = tmp_path / "predictions.json"
    assert call(capsys, *flags, f"--reference={files[1]}", f"--output_file={target}")[0] == 0
    ran, read = (json.loads((tmp_path / name).read_text()) for name in ("models.json", "predictions.json"))
    assert read["reference"]["file"] == "tiny_float.csv"
    ours, theirs = (document["candidates"][0] for document in (ran, read))
    assert set(ours["comparison"]["findings"]) == set(FINDINGS)
    for finding in FINDINGS:
        one, other = (document["comparison"]["findings"][finding] for document in (ours, theirs))
        assert one["at_threshold"]["own"]["new_misses"] == other["at_threshold"]["own"]["new_misses"]
        for name in ("auroc_drop", "average_precision_drop"):
            assert one[name]["value"] == other[name]["value"]
        for name in ("ece_after", "positives", "before"):
            assert one[name] == other[name]
    assert set(ours["groups"]) == set(theirs["groups"])
    assert "source and sex" in ours["groups"]
    assert json.loads(target.read_text())["schema_version"] == 1


def test_compare_identical_predictions_hold_and_a_broken_one_ends_with_3(table, tmp_path, capsys) -> None:
    first = predict(tmp_path, table, FLOAT_MODEL)
    same, broken = tmp_path / "same.csv", tmp_path / "broken.csv"
    same.write_text(first.read_text())
    rows = list(csv.DictReader(io.StringIO(first.read_text())))
    for place, row in enumerate(rows):  # logits of another image, which says nothing of this one
        row["logit_opacity"] = rows[place * 37 % len(rows)]["logit_opacity"]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    broken.write_text(text.getvalue())
    code, out, _ = call(capsys, f"--predictions={first}", f"--predictions={same}", "--strict", "--by=")
    assert (code, "same.csv: holds" in out) == (0, True)
    files = ("--changed_images_file", "--moved_images_file")
    written = [f"{flag}={tmp_path / flag.strip('-')}.csv" for flag in files]
    flags = [f"--predictions={path}" for path in (first, same, broken)]
    code, out, _ = call(capsys, *flags, *written, "--by=", "--format=csv")
    assert code == 3
    rows = [row for row in csv.DictReader(io.StringIO(out)) if row["finding"] == "opacity"]
    assert [(row["candidate"], row["verdict"]) for row in rows] == [
        ("same.csv", "not inferior"),
        ("broken.csv", "worse"),
    ]
    moved = list(csv.DictReader(io.StringIO((tmp_path / "moved_images_file.csv").read_text())))
    assert {row["finding"] for row in moved} == {"opacity"}
    assert call(capsys, *flags, *written, "--by=")[0] == 3, "its own files are replaced"
    changed = list(csv.DictReader(io.StringIO((tmp_path / "changed_images_file.csv").read_text())))
    assert {row["candidate"] for row in changed} <= {"broken.csv"}


def test_compare_is_strict_where_asked(table, capsys) -> None:
    undecided = ("--margin=0.000001", "--by=")
    assert call(capsys, *models(table, *undecided))[0] == 0
    assert call(capsys, *models(table, *undecided, "--strict"))[0] == 3


def test_compare_says_what_each_model_costs(table, capsys) -> None:
    _, out, _ = call(capsys, *models(table, "--timed_runs=3", "--by=", "--format=json"))
    document = json.loads(out)
    costs = [document["reference"], document["candidates"][0]["model"]]
    assert [cost["bytes"] for cost in costs] == [path.stat().st_size for path in (FLOAT_MODEL, INT8_MODEL)]
    assert costs[0]["macs"] == costs[1]["macs"] > 0, "int8 computes as often"
    assert [cost["latency"]["runs"] for cost in costs] == [3, 3]
    assert all(0 < cost["latency"]["min_ms"] <= cost["latency"]["p50_ms"] for cost in costs)
    _, out, _ = call(capsys, *models(table, "--by=", "--format=json"))
    assert "latency" not in json.loads(out)["reference"], "timing takes time, so only where asked for"


@pytest.fixture(scope="module")
def documents(table, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What the command writes of models, of predictions, of classes that exclude one another, and without labels."""
    folder = tmp_path_factory.mktemp("documents")
    first, second = (predict(folder, table, model) for model in (FLOAT_MODEL, INT8_MODEL))
    images = ["--dataset=images", f"--data_dir={table.parent}", "--split=all"]
    classes = [folder / name for name in ("classes.csv", "classes_too.csv")]
    rng = np.random.default_rng(0)
    truth = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 300)]
    logits = 2 * truth + rng.normal(size=truth.shape)
    for path in classes:
        shares = softmax(logits).astype(np.float32)
        decided = {"decisions": shares == shares.max(axis=1, keepdims=True), "shares": shares}
        scored = score_logits(logits, truth, [str(image // 2) for image in range(300)], "abc", samples=2, **decided)
        path.write_text(predictions_csv(scored, key=b"key"))
        logits = logits + 0.3 * rng.normal(size=truth.shape)
    calls = {
        "models": models(table, "--timed_runs=2", "--max_ece=0.5"),
        "predictions": [f"--predictions={path}" for path in (first, second, shutil.copy(first, folder / "again.csv"))],
        "classes": [f"--predictions={path}" for path in classes],
        "no labels": [f"--reference={FLOAT_MODEL}", f"--candidate={INT8_MODEL}", *images],
    }
    target = folder / "results.json"
    written = {}
    for name, flags in calls.items():
        assert main([FAST, *flags, f"--output_file={target}"]) in (0, 3), name
        written[name] = json.loads(target.read_text())
    return written


@pytest.mark.parametrize("name", ["models", "predictions", "classes", "no labels"])
def test_compare_writes_what_its_schema_says(name, documents) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs the extra dev")
    schema = json.loads(SCHEMA.read_text())
    assert schema["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    assert set(schema["properties"]["limits"]["properties"]) == set(Limits.__dataclass_fields__)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = documents[name]
    validator.validate(document)

    def breaks(change: Callable[[dict], object]) -> bool:
        changed = copy.deepcopy(document)
        change(changed)
        return not validator.is_valid(changed)

    first = next(iter(document["candidates"][0]["comparison"]["findings"]))
    assert breaks(lambda one: one.update(more=1))
    assert breaks(lambda one: one.pop("margin"))
    assert breaks(lambda one: one["candidates"].clear())
    row_of = lambda one: one["candidates"][0]["comparison"]["findings"][first]  # noqa: E731
    assert breaks(lambda one: row_of(one)["auroc_drop"].update(low="0.1"))
    assert breaks(lambda one: row_of(one).update(verdict="good"))
    if name != "no labels":
        assert breaks(lambda one: row_of(one).pop("p_worse")), "a verdict without its chance"


@pytest.mark.parametrize("name", ["models", "predictions", "classes", "no labels"])
def test_compare_makes_a_page_of_every_kind_of_results(name, documents) -> None:
    pytest.importorskip("jinja2", reason="needs the extra report")
    page = render_page(documents[name])
    for candidate in documents[name]["candidates"]:
        assert page.count(f">{candidate['comparison']['name']}</h2>") == 1
    assert "nan" not in re.findall(r">([^<]*)</td>", page)


def test_compare_takes_groups_of_a_table(table, tmp_path, capsys) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("image,scanner\n" + "".join(f"{image},{'XY'[image % 2]}\n" for image in range(TEST)))
    _, out, _ = call(capsys, *models(table, f"--groups_file={groups}", "--by=", "--format=json"))
    changes = json.loads(out)["candidates"][0]["groups"]
    assert list(changes) == ["scanner"]


def test_compare_without_labels_says_so(table, capsys) -> None:
    folder = [f"--data_dir={table.parent}", "--dataset=images"]
    flags = [f"--reference={FLOAT_MODEL}", f"--candidate={INT8_MODEL}", *folder, "--split=all"]
    code, out, err = call(capsys, *flags)
    assert code == 0, err
    assert "There are no labels: agreement with the original says nothing" in out
    assert "kappa" in out
    assert "not inferior" not in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "expected --reference and --candidate, or --predictions twice or more"),
        (["--predictions=a.csv"], "expected --predictions twice or more"),
        (["--predictions=a.csv", "--candidate=b.tflite"], "leave --candidate, --dataset and --data_dir out"),
        (["--predictions=a.csv", "--timed_runs=5"], "--timed_runs times models, and with --predictions none is run"),
        (["--predictions=a.csv", "--reference=b.csv"], "expected --reference as one of --predictions, got 'b.csv'"),
        (["--predictions=a.csv", "--predictions=c.csv"], "expected 'a.csv' to be a file"),
        (["--predictions=a.json", "--predictions=c.csv"], "expected a file that ends in .csv, got 'a.json'"),
        (["--reference=a.keras", "--candidate=b.tflite", "--dataset=csv", "--data_dir=."], "cxr_evaluate"),
        (["--reference=a.tflite", "--candidate=b.tflite"], "expected --dataset, got none"),
        (["--margin=0"], "margin"),
    ],
)
def test_compare_wrong_calls_are_one_line(flags, words, capsys) -> None:
    code, out, err = call(capsys, *flags)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err


def test_compare_refuses_a_model_twice_and_other_findings(table, tmp_path, capsys) -> None:
    twice = [f"--reference={INT8_MODEL}", f"--candidate={INT8_MODEL}", "--dataset=csv", f"--data_dir={table}"]
    code, _, err = call(capsys, *twice)
    assert code == 2
    assert "is given twice: compare a model with others" in err
    first = predict(tmp_path, table, FLOAT_MODEL)
    other = tmp_path / "other.csv"
    other.write_text(first.read_text().replace("opacity", "haze"))
    capsys.readouterr()
    code, _, err = call(capsys, f"--predictions={first}", f"--predictions={other}")
    assert code == 2
    assert "expected the findings of tiny_float.csv in other.csv, it lacks opacity and has haze besides" in err
    flags = [f"--predictions={first}", f"--predictions={predict(tmp_path, table, INT8_MODEL)}"]
    capsys.readouterr()
    code, _, err = call(capsys, *flags, "--by=scanner")
    assert code == 2
    assert "the predictions do not say the scanner of their images (they say: source, sex, age)" in err


def test_compare_needs_no_tensorflow(table, tmp_path) -> None:
    done = run_module("compare", FAST, "--by=", *models(table), prelude=BLOCK_TENSORFLOW)
    assert done.returncode == 0, done.stderr
