"""The CheXpert reader: the published layout, what becomes of uncertain labels, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import CHEXPERT_FINDINGS, load_dataset
from cxr_compress.data.readers.base import Missing, read_dataset
from cxr_compress.errors import DataError
from tests.data.files import draw

HEADER = ",".join(["Path,Sex,Age,Frontal/Lateral,AP/PA", *CHEXPERT_FINDINGS])
CYCLE = ("1.0", "0.0", "", "-1.0")


def make_rows(part: str, first: int, patients: int) -> list[str]:
    """Two images a patient, the second lateral; labels go round, one step on for each patient and finding."""
    rows = []
    for patient in range(first, first + patients):
        folder = f"CheXpert-v1.0-small/{part}/patient{patient:05d}/study1"
        values = CYCLE if part == "train" else CYCLE[:2]
        labels = ",".join(values[(patient + finding) % len(values)] for finding in range(14))
        rows.append(
            f"{folder}/view1_frontal.jpg,Female,{20 + patient % 60},Frontal,{'AP' if patient % 2 else 'PA'},{labels}"
        )
        rows.append(f"{folder}/view2_lateral.jpg,Male,0,Lateral,,{labels}")
    return rows


def make_chexpert(root: Path, *, images: bool = True) -> Path:
    """``root`` is what the archive's folder CheXpert-v1.0-small becomes."""
    root.mkdir(parents=True, exist_ok=True)
    for part, first, patients in (("train", 1, 40), ("valid", 64541, 6)):
        rows = make_rows(part, first, patients)
        (root / f"{part}.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        for row in rows if images else ():
            draw(root / row.partition(",")[0].partition("/")[2])
    return root


@pytest.mark.parametrize("inside", ["", "CheXpert-v1.0-small", "CheXpert-v1.0"])
def test_load_dataset_chexpert_folder_of_any_name_reads_paths_people_and_views(tmp_path: Path, inside: str) -> None:
    make_chexpert(tmp_path / inside)
    dataset = load_dataset("chexpert", tmp_path)
    assert dataset.findings == CHEXPERT_FINDINGS
    assert (len(dataset.train) + len(dataset.dev), len(dataset.test), dataset.test.name) == (80, 12, "test")
    assert set(dataset.test.patients) == {f"patient{number}" for number in range(64541, 64547)}
    assert dataset.test.views == ("AP", "L", "PA", "L") * 3
    assert dataset.test.sexes == ("F", "M") * 6
    assert dataset.test.ages[:3].tolist() == [20 + 64541 % 60, 0, 20 + 64542 % 60]
    assert all(path.is_file() for split in dataset.splits for path in split.paths)
    assert not set(dataset.train.patients) & set(dataset.dev.patients)


@pytest.mark.parametrize(("policy", "expected"), [("ones", 1.0), ("zeros", 0.0), ("ignore", np.nan)])
def test_load_dataset_chexpert_policy_decides_uncertain_labels_of_train_alone(tmp_path, policy, expected) -> None:
    root = make_chexpert(tmp_path)
    dataset = load_dataset("chexpert", root, options={"uncertain": policy})
    for split in (dataset.train, dataset.dev):
        for patient, labels in zip(split.patients, split.labels, strict=True):
            for finding in range(14):
                told = CYCLE[(int(patient[7:]) + finding) % 4]
                unclear = expected if split is dataset.train else np.nan
                wanted = {"1.0": 1.0, "0.0": 0.0, "": 0.0, "-1.0": unclear}[told]
                np.testing.assert_equal(labels[finding], np.float32(wanted))


def test_load_dataset_chexpert_soft_labels_are_spread_fixed_and_seeded(tmp_path: Path) -> None:
    make_chexpert(tmp_path)

    def soft(seed: int) -> dict[Path, np.ndarray]:
        train = load_dataset("chexpert", tmp_path, seed=seed, options={"uncertain": "soft"}).train
        return dict(zip(train.paths, train.labels, strict=True))

    images = soft(0)
    labels = np.concatenate(list(images.values()))
    drawn = labels[~np.isin(labels, (0, 1))]
    assert len(drawn) == labels.size // 4
    assert 0.55 <= drawn.min() < 0.58
    assert 0.82 < drawn.max() <= 0.85
    assert len(np.unique(drawn)) > 0.98 * len(drawn)
    np.testing.assert_equal(soft(0), images)
    others = soft(1)
    path = next(path for path in images if path in others)
    assert not np.array_equal(others[path], images[path])


@pytest.mark.parametrize(
    "uncertain",
    [
        "zeros|Atelectasis:ones|Pleural Effusion:ignore",
        {"*": "zeros", "Atelectasis": "ones", "Pleural Effusion": "ignore"},
    ],
)
def test_load_dataset_chexpert_policy_per_finding(tmp_path: Path, uncertain) -> None:
    options = {"uncertain": uncertain, "findings": "Atelectasis|Pleural Effusion|Edema"}
    dataset = load_dataset("chexpert", make_chexpert(tmp_path), options=options)
    assert dataset.findings == ("Atelectasis", "Pleural Effusion", "Edema")
    quarter = len(dataset.train) // 4
    np.testing.assert_array_equal(np.isnan(dataset.train.labels).sum(axis=0) > 0, [False, True, False])
    # A quarter of the images is told to be positive; in the first column about another one, the uncertain, is too.
    positives = np.nansum(dataset.train.labels, axis=0)
    assert positives[0] > 1.6 * quarter
    assert max(positives[1:]) < 1.4 * quarter
    assert "Atelectasis ones, Pleural Effusion ignore, Edema zeros" in dataset.notes[0]


def test_load_dataset_chexpert_frontal_only_and_blank_as_unknown(tmp_path: Path) -> None:
    options = {"frontal_only": "true", "blank": "ignore", "uncertain": "zeros"}
    dataset = load_dataset("chexpert", make_chexpert(tmp_path), options=options)
    assert (len(dataset.train) + len(dataset.dev), len(dataset.test)) == (40, 6)
    assert "L" not in dataset.train.views + dataset.dev.views + dataset.test.views
    # In dev uncertain labels are unknown too.
    assert abs(np.isnan(dataset.train.labels).mean() - 1 / 4) < 0.02
    assert abs(np.isnan(dataset.dev.labels).mean() - 2 / 4) < 0.1


def test_load_dataset_chexpert_missing_images_are_counted_dropped_or_kept(tmp_path: Path) -> None:
    root = make_chexpert(tmp_path)
    (root / "train/patient00007/study1/view2_lateral.jpg").unlink()
    with pytest.raises(DataError, match="chexpert: 1 of 80 train images and 0 of 12 valid images are missing"):
        load_dataset("chexpert", root)
    assert sum(map(len, load_dataset("chexpert", root, allow_missing=True).splits)) == 91
    assert sum(map(len, read_dataset("chexpert", root, missing=Missing.KEEP).splits)) == 92


def test_load_dataset_chexpert_test_without_a_class_is_allowed_unless_asked_for(tmp_path: Path) -> None:
    root = make_chexpert(tmp_path)
    valid = root / "valid.csv"
    lines = valid.read_text().splitlines()
    valid.write_text("\n".join([lines[0], *(line[: -len("1.0")] + "0.0" for line in lines[1:])]))
    assert not load_dataset("chexpert", root).test.labels[:, -1].any()
    with pytest.raises(DataError, match="with and without 'Support Devices' in test"):
        load_dataset("chexpert", root, options={"allow_one_class": False})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Pleural Other", "Other", r"expected the column\(s\) Pleural Other in train.csv"),
        ("patient00002", "somebody", "line 4 of train.csv has no patient in its path"),
        (",Female,21,", ",Female,young,", "line 2 of train.csv has the age 'young'"),
        (",-1.0,", ",-2.0,", r"line 2 of train.csv has '-2.0' for '.*'; expected 1.0, 0.0, -1.0 or nothing"),
    ],
)
def test_load_dataset_chexpert_damaged_table_is_one_clear_line(tmp_path, old, new, message) -> None:
    table = make_chexpert(tmp_path, images=False) / "train.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        read_dataset("chexpert", tmp_path, missing=Missing.KEEP)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uncertain": "maybe"}, r"expected the option uncertain as one of ones, zeros, .*got \*:maybe"),
        ({"uncertain": "ones|Cough:zeros"}, "got Cough:zeros"),
        ({"blank": "ones"}, "expected the option blank to be one of zeros, ignore; got 'ones'"),
        ({"findings": "Edema|Cough"}, "unknown finding 'Cough'; expected some of No Finding"),
        ({"frontal_only": "perhaps"}, "expected the option frontal_only to be true or false, got 'perhaps'"),
        ({"frontal": True}, "chexpert: unknown option 'frontal'; it knows allow_one_class, blank"),
    ],
)
def test_load_dataset_chexpert_option_out_of_range_is_refused(tmp_path: Path, options, message) -> None:
    make_chexpert(tmp_path, images=False)
    with pytest.raises(DataError, match=message):
        load_dataset("chexpert", tmp_path, options=options)


def test_load_dataset_chexpert_two_copies_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected train.csv and valid.csv in .* found 0 such folders"):
        load_dataset("chexpert", tmp_path)
    for name in ("CheXpert-v1.0-small", "CheXpert-v1.0"):
        make_chexpert(tmp_path / name, images=False)
    with pytest.raises(DataError, match="found 2 such folders; point data_dir to one"):
        load_dataset("chexpert", tmp_path)
