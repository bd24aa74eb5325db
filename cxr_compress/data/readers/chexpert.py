"""Reads CheXpert: 224,316 images, 14 observations, some of them uncertain."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.data.dataset import Dataset
from cxr_compress.data.readers.base import (
    ImageRecord,
    Request,
    keep_existing,
    make_split,
    parse_age,
    parse_sex,
    parse_view,
    register_reader,
)
from cxr_compress.data.splits import choose_patients
from cxr_compress.data.table_file import Row, Table, read_table
from cxr_compress.errors import DataError

ATTRIBUTION = (
    "Irvin et al., CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison, AAAI "
    "2019; Stanford University School of Medicine CheXpert Dataset Research Use Agreement (no redistribution)"
)

CHEXPERT_FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

POLICIES = ("ones", "zeros", "ignore", "soft")
_ELSE = "*"
_SOFT_LOW, _SOFT_HIGH = 0.55, 0.85
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
_VALUES = {"1.0": 1.0, "1": 1.0, "0.0": 0.0, "0": 0.0}
_UNCERTAIN = frozenset({"-1.0", "-1"})
_PATIENT = re.compile(r"patient\d+")
_PREFIX = re.compile(r"CheXpert-v1\.0[^/]*/")


@register_reader(
    "chexpert",
    help="CheXpert: 224,316 images, 14 observations, some of them uncertain",
    options={
        "uncertain": "what -1 becomes in train: ignore (unless given), ones, zeros or soft (0.55 to 0.85), or one for "
        "each observation such as ignore|Atelectasis:ones|Edema:soft",
        "blank": "what an observation that is not mentioned is: zeros (unless given) or ignore",
        "findings": "some of the 14 observations, joined by |",
        "frontal_only": "true leaves lateral images out",
    },
    lists_images=True,
)
def read_chexpert(request: Request) -> Dataset:
    """The set with its official valid images as test and a dev split carved out of train's patients.

    `data_dir` holds `train.csv` and `valid.csv`, or a folder `CheXpert-v1.0*` with them; the prefix of the paths in the
    tables (`CheXpert-v1.0-small/`) need not be the folder's name. The official valid has images of only one kind for
    some observations (no fracture at all), so dev and test may lack a class here.
    Which policy for uncertain labels is best differs between observations. In dev they are unknown whatever the policy:
    nothing should be chosen by a guess.

    Raises:
        DataError: tables missing or damaged (with file and line), images missing, an option out of range.

    Source:
        Policies: Irvin et al. 2019, section 3; soft: Pham et al. 2019 (arXiv:1911.06475), U-Ones+LSR.
    """
    root = _find_root(request.folder)
    findings = request.names("findings") or CHEXPERT_FINDINGS
    unknown = sorted(set(findings) - set(CHEXPERT_FINDINGS))
    if unknown:
        raise DataError(f"chexpert: unknown finding {unknown[0]!r}; expected some of {', '.join(CHEXPERT_FINDINGS)}")
    guessed, certain = _Rules(findings, request), _Rules(findings, request, "ignore")
    tables = {
        name: read_table(root / f"{name}.csv", who="chexpert", needed=(*_COLUMNS, *findings))
        for name in ("train", "valid")
    }
    listed = {
        "train": _read_records(tables["train"], root, guessed, certain),
        "valid": _read_records(tables["valid"], root, certain, certain),
    }
    kept, _ = keep_existing(request, listed)
    whole = make_split("train", kept["train"], findings)
    in_dev = choose_patients(whole.patients, whole.labels, fraction=request.dev_fraction, seed=request.seed)
    train = [record for record in kept["train"] if record.patient not in in_dev]
    dev = [record for record in kept["train"] if record.patient in in_dev]
    return Dataset(
        "chexpert",
        tuple(findings),
        make_split("train", train, findings),
        make_split("dev", [replace(record, labels=record.certain) for record in dev], findings),
        make_split("test", kept["valid"], findings),
        ATTRIBUTION,
        notes=(
            f"test is the official valid part; uncertain labels of train: {guessed.text}; those of dev are unknown",
            *dict.fromkeys(note for table in tables.values() for note in table.notes),
        ),
        patient_key="patientNNNNN in the column 'Path'",
        allow_one_class=True,
    )


def _find_root(data_dir: Path) -> Path:
    """The folder that holds the two tables."""
    roots = [data_dir, *sorted(data_dir.glob("CheXpert-v1.0*"))]
    complete = [root for root in roots if all((root / f"{name}.csv").is_file() for name in ("train", "valid"))]
    if len(complete) != 1:
        raise DataError(
            f"chexpert: expected train.csv and valid.csv in {data_dir} or in one folder CheXpert-v1.0* there, found "
            f"{len(complete)} such folders; point data_dir to one"
        )
    return complete[0]


class _Rules:
    """How the text of a label becomes a number."""

    def __init__(self, findings: tuple[str, ...], request: Request, uncertain: str | None = None) -> None:
        policies = _policies(uncertain or request.options.get("uncertain", "ignore"))
        self._policy = {finding: policies.get(finding, policies[_ELSE]) for finding in findings}
        self.findings = findings
        self._blank = np.nan if request.text("blank", "zeros", ("zeros", "ignore")) == "ignore" else 0.0
        self._seed = request.seed
        self.frontal_only = request.flag("frontal_only")
        self.text = ", ".join(f"{finding} {policy}" for finding, policy in self._policy.items())

    def labels(self, row: Row) -> tuple[float, ...]:
        """One image's."""
        return tuple(self._label(row, finding) for finding in self.findings)

    def _label(self, row: Row, finding: str) -> float:
        text = row[finding]
        if not text:
            return float(self._blank)
        if text in _UNCERTAIN:
            return self._uncertain(row["Path"], finding)
        if text not in _VALUES:
            raise row.error(f"has {text!r} for {finding!r}; expected 1.0, 0.0, -1.0 or nothing")
        return _VALUES[text]

    def _uncertain(self, path: str, finding: str) -> float:
        policy = self._policy[finding]
        if policy != "soft":
            return {"ones": 1.0, "zeros": 0.0, "ignore": np.nan}[policy]
        # Drawn by hashing, so that the order of rows and the version of a random generator have no say.
        digest = hashlib.sha256(f"{self._seed}:{path}:{finding}".encode()).digest()
        return _SOFT_LOW + (_SOFT_HIGH - _SOFT_LOW) * int.from_bytes(digest[:8], "big") / 2**64


def _policies(uncertain: Any) -> dict[str, str]:
    """Finding -> policy; that of all others under "*"."""
    if isinstance(uncertain, Mapping):
        policies = {_ELSE: "ignore", **{str(finding): str(policy) for finding, policy in uncertain.items()}}
    else:
        parts = [part.rpartition(":") for part in str(uncertain).split("|")]
        policies = {_ELSE: "ignore", **{finding or _ELSE: policy for finding, _, policy in parts}}
    for finding, policy in policies.items():
        if policy not in POLICIES or finding not in (_ELSE, *CHEXPERT_FINDINGS):
            raise DataError(
                f"chexpert: expected the option uncertain as one of {', '.join(POLICIES)}, or such as "
                f"'ignore|Atelectasis:ones'; got {finding}:{policy}"
            )
    return policies


@dataclass(frozen=True)
class _Record(ImageRecord):
    """One row of a table; `certain` are its labels with the uncertain ones unknown."""

    certain: tuple[float, ...] = ()


def _read_records(table: Table, root: Path, rules: _Rules, certain: _Rules) -> list[_Record]:
    """The rows of one table that are asked for."""
    records = []
    for row in table.rows:
        frontal = _is_frontal(row)
        if frontal or not rules.frontal_only:
            records.append(
                _Record(
                    root / _PREFIX.sub("", row["Path"], count=1),
                    _patient(row),
                    rules.labels(row),
                    _age(row),
                    parse_sex(row["Sex"]),
                    parse_view(row["AP/PA"] if frontal else "L"),
                    certain=certain.labels(row),
                )
            )
    return records


def _is_frontal(row: Row) -> bool:
    """Whether an image was taken from the front; any other word than the two would leave it out by mistake."""
    word = row["Frontal/Lateral"].lower()
    if word not in ("frontal", "lateral"):
        raise row.error(f"has {row['Frontal/Lateral']!r} in 'Frontal/Lateral'; expected Frontal or Lateral")
    return word == "frontal"


def _patient(row: Row) -> str:
    """The patient is a folder of the path."""
    match = _PATIENT.search(row["Path"])
    if match is None:
        raise row.error(f"has no patient in its path (expected .../patient00001/...), got {row['Path']!r}")
    return match.group()


def _age(row: Row) -> float:
    try:
        return parse_age(row["Age"])
    except ValueError as error:
        raise row.error(f"has the age {row['Age']!r}; expected years") from error
