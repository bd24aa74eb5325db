"""Which logit answers for which label: by name, in any order, and never by a guess."""

from __future__ import annotations

import pytest

from cxr_compress.errors import DataError
from cxr_compress.evaluate import match_findings

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


def test_match_findings_one_logit_and_one_finding_belong_together() -> None:
    found = match_findings(("opacity",), ("Pneumonia",), logits=1)
    assert (found.findings, found.logits, found.by_position) == (("Pneumonia",), (0,), True)


def test_match_findings_nameless_model_takes_the_order_of_the_set() -> None:
    found = match_findings(None, NIH, logits=3)
    assert (found.findings, found.logits, found.by_position) == (NIH, (0, 1, 2), True)


@pytest.mark.parametrize(
    ("model", "dataset", "logits", "message"),
    [
        (("Edema", "Hernia"), NIH, 2, "no finding in common: the model has Edema, Hernia, the data set has Effusion"),
        (("Pleural Effusion", "Edema"), ("Effusion", "Mass"), 2, "no finding in common"),
        (None, NIH, 14, "does not name its 14 logits and the data set has 3 findings"),
        (("Mass", "Edema"), NIH, 3, "one logit for each of the model's 2 findings, it gives 3"),
    ],
)
def test_match_findings_without_a_sure_pair_is_refused(model, dataset, logits, message) -> None:
    with pytest.raises(DataError, match=message):
        match_findings(model, dataset, logits=logits)
