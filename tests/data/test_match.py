"""Which logit answers for which label: by name, in any order, and never by a guess."""

from __future__ import annotations

import pytest

from cxr_compress.data.dataset import match_findings
from cxr_compress.errors import DataError

NIH = ("Effusion", "Mass", "Pleural_Thickening")


def test_match_findings_other_order_pairs_by_name() -> None:
    found = match_findings(("Mass", "pleural thickening", "Effusion"), NIH, logits=3)
    assert found.findings == NIH
    assert found.logits == (2, 0, 1)
    assert found.labels == (0, 1, 2)
    assert not found.by_position


def test_match_findings_scores_what_both_have() -> None:
    found = match_findings(("Edema", "Mass", "Hernia", "Effusion"), NIH, logits=4)
    assert (found.findings, found.logits, found.labels) == (("Effusion", "Mass"), (3, 1), (0, 1))
    assert (found.only_model, found.only_dataset) == (("Edema", "Hernia"), ("Pleural_Thickening",))


@pytest.mark.parametrize("model", [None, ("a", "b", "c"), tuple(reversed(NIH))])
def test_match_findings_by_position_is_taken_only_when_asked_for(model) -> None:
    found = match_findings(model, NIH, logits=3, by_position=True)
    assert (found.findings, found.logits, found.by_position) == (NIH, (0, 1, 2), True)


@pytest.mark.parametrize(
    ("model", "dataset", "logits", "message"),
    [
        (("Edema", "Hernia"), NIH, 2, "no finding in common: the model has Edema, Hernia, the data set has Effusion"),
        (("Pleural Effusion", "Edema"), ("Effusion", "Mass"), 2, "no finding in common"),
        (None, NIH, 14, "does not name its 14 outputs, .* with --labels, or say with --match=position"),
        (None, NIH, 3, "does not name its 3 outputs"),
        (("opacity",), ("Pneumonia",), 1, "no finding in common: the model has opacity, the data set has Pneumonia"),
        (("Mass", "Edema"), NIH, 3, "one logit for each of the model's 2 findings, it gives 3"),
    ],
)
def test_match_findings_without_a_sure_pair_is_refused(model, dataset, logits, message) -> None:
    with pytest.raises(DataError, match=message):
        match_findings(model, dataset, logits=logits)


def test_match_findings_by_position_needs_as_many_on_both_sides() -> None:
    with pytest.raises(DataError, match="--match=position needs one finding for each of the model's 14 outputs"):
        match_findings(None, NIH, logits=14, by_position=True)
