"""Which logit of a model answers for which column of a data set's labels: by name, whatever the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cxr_compress.data.dataset import finding_key
from cxr_compress.errors import DataError


@dataclass(frozen=True)
class Match:
    """The findings that a model and a data set have in common, in the data set's order.

    Attributes:
        findings: (m,) their names, as the data set writes them.
        logits: (m,) the model's column of each.
        labels: (m,) the data set's column of each.
        only_model: Findings of the model that the data set says nothing about.
        only_dataset: Findings of the data set that the model does not know.
        by_position: They were not matched by name: columns were taken in order.
    """

    findings: tuple[str, ...]
    logits: tuple[int, ...]
    labels: tuple[int, ...]
    only_model: tuple[str, ...] = ()
    only_dataset: tuple[str, ...] = ()
    by_position: bool = False


def match_findings(
    model: Sequence[str] | None, dataset: Sequence[str], *, logits: int, by_position: bool = False
) -> Match:
    """Pairs logits with label columns.

    Names are compared without case, and with "_" as a space: Pleural_Thickening is Pleural thickening. Nothing else is
    guessed; "Effusion" and "Pleural Effusion" differ, because a wrong pair gives a number that looks right.

    Args:
        model: The model's findings in the order of its logits; None if it does not say.
        dataset: The data set's findings in the order of its labels.
        logits: How many logits the model gives.
        by_position: The user says that the logits stand in the order of the data set's findings, whatever their names.

    Raises:
        DataError: Nothing in common, a model without names, or by position not as many logits as findings.
    """
    if model is not None and len(model) != logits:
        raise DataError(f"expected one logit for each of the model's {len(model)} findings, it gives {logits}")
    if by_position:
        if len(dataset) != logits:
            raise DataError(
                f"--match=position needs one finding for each of the model's {logits} outputs, the data set has "
                f"{len(dataset)} ({', '.join(dataset)}): match by name"
            )
        every = tuple(range(logits))
        return Match(tuple(dataset), every, every, by_position=True)
    if model is None:
        raise DataError(
            f"the model does not name its {logits} outputs, so which of them belongs to which of the data set's "
            f"findings ({', '.join(dataset)}) is unknown: name them in their order with --labels, or say with "
            "--match=position that they stand in the order of the data set"
        )
    columns = {finding_key(name): column for column, name in enumerate(model)}
    pairs = [
        (columns[finding_key(name)], column) for column, name in enumerate(dataset) if finding_key(name) in columns
    ]
    if not pairs:
        raise DataError(
            f"model and data set have no finding in common: the model has {', '.join(model)}, the data set has "
            f"{', '.join(dataset)}; use the kind of set it was made for, or, where the names alone differ, name its "
            "outputs with --labels or say --match=position"
        )
    known = {finding_key(name) for name in dataset}
    return Match(
        tuple(dataset[column] for _, column in pairs),
        tuple(logit for logit, _ in pairs),
        tuple(column for _, column in pairs),
        tuple(name for name in model if finding_key(name) not in known),
        tuple(name for name in dataset if finding_key(name) not in columns),
    )
