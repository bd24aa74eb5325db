"""Which logit of a model answers for which column of a data set's labels: by name, whatever the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def match_findings(model: Sequence[str] | None, dataset: Sequence[str], *, logits: int) -> Match:
    """Pairs logits with label columns.

    Names are compared without case, and with "_" as a space: Pleural_Thickening is Pleural thickening. Nothing else is
    guessed; "Effusion" and "Pleural Effusion" differ, because a wrong pair gives a number that looks right. A model of
    one logit and a set of one finding belong together whatever they are called, and so do a model that names nothing
    and a set with as many findings as it has logits.

    Args:
        model: The model's findings in the order of its logits; None if it does not say.
        dataset: The data set's findings in the order of its labels.
        logits: How many logits the model gives.

    Raises:
        DataError: Nothing in common, or a model without names whose number of logits is not that of the findings.
    """
    if model is not None and len(model) != logits:
        raise DataError(f"expected one logit for each of the model's {len(model)} findings, it gives {logits}")
    columns = {_key(name): column for column, name in enumerate(model or ())}
    pairs = [(columns[_key(name)], column) for column, name in enumerate(dataset) if _key(name) in columns]
    if not pairs and len(dataset) == logits and (model is None or logits == 1):
        every = tuple(range(logits))
        return Match(tuple(dataset), every, every, by_position=True)
    if model is None:
        raise DataError(
            f"the model does not name its {logits} logits and the data set has {len(dataset)} findings: which belongs "
            "to which is unknown; save the model with its findings, or use a data set with as many"
        )
    if not pairs:
        raise DataError(
            f"model and data set have no finding in common: the model has {', '.join(model)}, the data set has "
            f"{', '.join(dataset)}; score it on the kind of set it was made for"
        )
    known = {_key(name) for name in dataset}
    return Match(
        tuple(dataset[column] for _, column in pairs),
        tuple(logit for logit, _ in pairs),
        tuple(column for _, column in pairs),
        tuple(name for name in model if _key(name) not in known),
        tuple(name for name in dataset if _key(name) not in columns),
    )


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
