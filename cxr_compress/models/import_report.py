"""What an import of foreign weights did: plain data for the command and for tests."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ImportReport:
    """What a foreign weights file and a model had in common; an import is all or nothing.

    Attributes:
        arrays: Variables that were set: all of the model's.
        parameters: Numbers in them, batch-norm statistics included.
        stored_dtype: As they lay in the file; the model holds float32.
        renamed: Name in the file -> name in the model, where they differ.
        network: What was built, such as "chexnet" ("" where the caller built it).
        file_kind: As what the file was read, such as "torch legacy".
        outputs: Logits in the file; 0 where the caller knew.
        ignored: Names in the file that hold no weights: counters of batches.
        fresh: Variables of the model that were drawn anew, since the file's head knows other classes.
        left_out: Findings of the file whose logits the model does not have.
        thresholds: Finding -> probability from which the file's authors call it positive, where the file says so.
    """

    arrays: int
    parameters: int
    stored_dtype: str
    renamed: dict[str, str]
    network: str = ""
    file_kind: str = ""
    outputs: int = 0
    ignored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)
