"""cxr_data: check and split as a user calls them, and that cache and fetch are found."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.cli.data import main
from cxr_compress.data import load_dataset
from cxr_compress.device.modelinfo import INTENDED_USE
from tests.cli.runner import BLOCK_TENSORFLOW, run_module
from tests.data.files import make_kermany
from tests.data.readers.test_medmnist import make_archive
from tests.data.test_checks import write_image


def make_images(folder: Path, *, copies: bool = False) -> Path:
    """30 images of 15 patients, in a table with splits."""
    rows = ["path,Cough,patient_id,sex,split"]
    for image in range(30):
        part = ("train", "train", "dev", "test", "test")[image // 6]
        write_image(folder / f"secret{image:02d}.png", image)
        rows.append(f"secret{image:02d}.png,{image % 2},p{image // 2},F,{part}")
    if copies:
        shutil.copy(folder / "secret00.png", folder / "secret29.png")
    (folder / "images.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_data_check_sound_set_ends_with_zero_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--dataset=csv", f"--data_dir={make_images(tmp_path)}", "--format=json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["intended_use"] == INTENDED_USE
    assert (result["problems"], result["serious"]) == ([], 0)
    assert result["images"] == {"train": 12, "dev": 6, "test": 12}
    assert result["counts"][0] == {
        "split": "train",
        "images": 12,
        "patients": 6,
        "finding": "Cough",
        "positives": 6,
        "unknown": 0,
    }
    assert "looking at files: 30 images" in err
    assert "secret" not in err


def test_data_check_bad_images_end_with_one_and_are_named_on_stdout_alone(tmp_path: Path, capsys) -> None:
    make_images(tmp_path, copies=True)
    (tmp_path / "secret03.png").unlink()
    (tmp_path / "secret04.png").write_bytes(b"no image")
    arguments = ["check", "--dataset=csv", f"--data_dir={tmp_path}"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "PROBLEM: missing files: csv: 1 of 30 images are missing; complete the set, or use allow_missing"
    assert lines[1] == f"    {tmp_path / 'secret03.png'}: no such file"
    assert lines[2].startswith("PROBLEM: corrupt files: csv: 1 of 30 images cannot be used")
    assert lines[4].startswith("PROBLEM: same file: csv: 2 images are 1 group(s) of the same file in train and test")
    assert lines[5] == f"    {tmp_path / 'secret00.png'} = {tmp_path / 'secret29.png'}"
    assert lines[-1] == INTENDED_USE
    assert "secret" not in err
    assert main([*arguments, "--format=csv"]) == 1
    out, err = capsys.readouterr()
    assert [row["images"] for row in csv.DictReader(io.StringIO(out))] == ["12", "6", "12"]
    assert "csv: 1 of 30 images are missing" in err
    assert "secret" not in err
    assert main([*arguments, "--format=json"]) == 1
    kinds = [(problem["kind"], problem["serious"]) for problem in json.loads(capsys.readouterr().out)["problems"]]
    assert kinds == [("missing files", True), ("corrupt files", True), ("same file", True)]


def test_data_check_many_names_are_cut_in_the_table_and_whole_in_json(tmp_path: Path, capsys) -> None:
    make_images(tmp_path)
    for image in range(12):
        (tmp_path / f"secret{image:02d}.png").unlink()
    arguments = ["check", "--dataset=csv", f"--data_dir={tmp_path}"]
    assert main(arguments) == 1
    assert "\n    and 2 more; --format=json lists all\n" in capsys.readouterr().out
    assert main([*arguments, "--format=json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"][0]["names"]) == 12
    assert main([*arguments, "--allow_missing"]) == 2  # the train split is empty then


def test_data_check_file_name_with_control_characters_cannot_move_the_cursor(tmp_path: Path, capsys) -> None:
    make_images(tmp_path)
    table = tmp_path / "images.csv"
    table.write_text(table.read_text().replace("secret03.png", "se\x1b[2Jcret03.png"))
    assert main(["check", "--dataset=csv", f"--data_dir={tmp_path}"]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "se\\x1b[2Jcret03.png: no such file" in out


def test_data_check_patient_leakage_ends_with_two_after_everything_is_reported(tmp_path: Path, capsys) -> None:
    make_images(tmp_path, copies=True)
    table = tmp_path / "images.csv"
    table.write_text(table.read_text().replace(",p14,", ",p0,"))
    assert main(["check", "--dataset=csv", f"--data_dir={tmp_path}"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PROBLEM: patient leakage: csv: 1 patient(s) with 4 images are in both train and test")
    assert lines[1] == "    p0"
    assert lines[2].startswith("PROBLEM: same file:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected check, split, cache or fetch as the first argument"),
        (["verify"], "expected check, split, cache or fetch as the first argument"),
        (["check"], "--dataset is missing"),
        (["check", "--dataset=csv"], "--data_dir is missing"),
        (["check", "--dataset=mnist", "--data_dir=x"], "expected a data set of chexpert, csv, images, isic, kermany"),
        (["check", "--dataset=csv", "--data_dir=x", "more"], "expected flags only after check, got 'more'"),
        (
            ["check", "--dataset=csv", "--data_dir=x", "--options=color"],
            "expected --options as name=value, got 'color'",
        ),
        (["check", "--dataset=csv", "--data_dir=x", "--options=a=b"], "csv: unknown option 'a'; it knows allow_one"),
        (["check", "--dataset=kermany", "--data_dir=nowhere"], "kermany: expected a folder"),
        (["check", "--output_file=x"], "Unknown command line flag 'output_file'"),
        (["split", "--dataset=csv", "--data_dir=x"], "--output_file is missing"),
    ],
)
def test_data_wrong_call_is_one_line_and_exit_code_two(arguments: list[str], message: str, capsys) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


def test_data_split_keeps_the_sets_own_test_and_reads_back_the_same(tmp_path: Path, capsys) -> None:
    make_kermany(tmp_path / "kermany")
    table = tmp_path / "split.csv"
    arguments = ["split", "--dataset=kermany", f"--data_dir={tmp_path / 'kermany'}", f"--output_file={table}"]
    assert main([*arguments, "--dev_fraction=0.25", "--seed=3"]) == 0
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    assert f"sha256 {digest}  {table}" in capsys.readouterr().out
    assert (tmp_path / "split.csv.sha256").read_text() == f"{digest}  split.csv\n"
    expected = load_dataset("kermany", tmp_path / "kermany", dev_fraction=0.25, seed=3)
    again = load_dataset("csv", tmp_path / "kermany", options={"table": str(table)})
    for one, other in zip(expected.splits, again.splits, strict=True):
        assert sorted(one.paths) == sorted(other.paths)
        order, others = np.argsort([*map(str, one.paths)]), np.argsort([*map(str, other.paths)])
        np.testing.assert_array_equal(one.labels[order], other.labels[others])
        assert [one.patients[i] for i in order] == [other.patients[i] for i in others]


def test_data_split_same_seed_gives_the_same_bytes_wherever_the_set_lies(tmp_path: Path, capsys) -> None:
    written = []
    for number, seed in enumerate((0, 0, 1)):
        folder = make_images(tmp_path / f"copy{number}")
        table = tmp_path / f"split{number}.csv"
        flags = ["--test_fraction=0.3", "--dev_fraction=0.2", f"--seed={seed}", "--format=json"]
        assert main(["split", "--dataset=csv", f"--data_dir={folder}", f"--output_file={table}", *flags]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
        written.append(table.read_bytes())
    assert written[0] == written[1] != written[2]
    # 15 patients: 30 % in test (4.5 rounds to 4), 20 % of the other 11 in dev.
    assert result["images"] == {"train": 18, "dev": 4, "test": 8}


def test_data_split_divides_a_leaky_set_anew_by_patient_and_refuses_it_as_it_is(tmp_path: Path, capsys) -> None:
    make_images(tmp_path)
    table = tmp_path / "images.csv"
    table.write_text(table.read_text().replace(",p14,", ",p0,"))
    arguments = ["split", "--dataset=csv", f"--data_dir={tmp_path}", f"--output_file={tmp_path / 'out' / 'split.csv'}"]
    assert main([*arguments, "--test_fraction=0.3"]) == 2
    assert "out, does not exist: create it first" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert main(arguments) == 2
    assert "are in both train and test" in capsys.readouterr().err
    assert main([*arguments, "--test_fraction=0.3"]) == 0
    parts: dict[str, set[str]] = {}
    with (tmp_path / "out" / "split.csv").open() as file:
        for row in csv.DictReader(file):
            parts.setdefault(row["patient_id"], set()).add(row["split"])
    assert len(parts) == 14
    assert all(len(split) == 1 for split in parts.values())


def test_data_check_and_split_of_arrays(tmp_path: Path, capsys) -> None:
    archive = make_archive(tmp_path / "pneumoniamnist.npz")
    chosen = ["--dataset=medmnist", f"--data_dir={archive}"]
    assert main(["check", *chosen]) == 0
    assert "every image counts as a patient" in capsys.readouterr().out.splitlines()[0]
    assert main(["split", *chosen, f"--output_file={tmp_path / 'split.csv'}"]) == 2
    assert "the set holds arrays and no files" in capsys.readouterr().err
    assert not (tmp_path / "split.csv").exists()


def test_data_help_of_each_verb_shows_its_own_flags(capsys) -> None:
    flags = {"check": "--options", "split": "--test_fraction", "cache": "--cache_dir", "fetch": "--mirror"}
    for verb, flag in flags.items():
        assert main([verb, "--help"]) == 0
        out = capsys.readouterr().out
        assert [other for other in flags.values() if f"\n  {other}:" in out] in ([flag], ["--options", flag])
    assert main(["--help"]) == 0
    assert "cxr_data check --dataset=kermany" in capsys.readouterr().out


def test_data_check_needs_no_tensorflow(tmp_path: Path) -> None:
    folder = make_images(tmp_path)
    done = run_module("data", "check", "--dataset=csv", f"--data_dir={folder}", prelude=BLOCK_TENSORFLOW)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "no problem found")


def test_data_check_real_kermany_has_no_leak_and_30_groups_of_copies(cxr_data: Path, capsys) -> None:
    assert main(["check", "--dataset=kermany", f"--data_dir={cxr_data / 'kermany224'}", "--format=json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert sum(result["images"].values()) == 5840
    assert result["images"]["test"] == 624
    assert result["serious"] == 0
    assert sum(problem["count"] for problem in result["problems"] if problem["kind"] == "same file") == 30
