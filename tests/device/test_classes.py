"""Classes that exclude one another on the device: one softmax, exactly one class an image, whatever runs it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.cli.predict import main
from cxr_compress.device.classifier import Classifier, Findings
from cxr_compress.device.modelfile import ModelFile, ModelInfo, pack_model, read_model
from cxr_compress.device.verify import compare, record
from cxr_compress.errors import DataError, ModelFileError
from tests.device.images import draw_image, png
from tests.device.reference import FLOAT_MODEL, INT8_MODEL


def info_of_classes(path: Path, **changes: object) -> ModelInfo:
    """What a reference file says, as if its two outputs excluded one another."""
    plain = {"logit_slope": (1.0, 1.0), "logit_offset": (0.0, 0.0), "thresholds": (0.5, 0.5)}
    return dataclasses.replace(
        read_model(path).info, **{"activation": "softmax", "reference": None, **plain, **changes}
    )


@pytest.fixture(scope="module", params=[INT8_MODEL, FLOAT_MODEL], ids=["int8", "float"])
def classifier(request: pytest.FixtureRequest) -> Classifier:
    content = read_model(request.param).content
    return Classifier(ModelFile(request.param, content, info_of_classes(request.param), len(content), ""))


def test_predict_gives_each_image_the_likeliest_class_and_no_other(classifier: Classifier) -> None:
    called = set()
    for seed in range(12):
        found = classifier.predict(draw_image(seed))
        shares = np.exp(found.logits.astype(np.float64))
        np.testing.assert_allclose(found.probabilities, shares / shares.sum(), atol=1e-6)
        assert sum(found.positive) == 1
        assert found.predicted == classifier.labels[int(np.argmax(found.logits))]
        assert found.top(2)[0] == (found.predicted, pytest.approx(max(found.probabilities)))
        called.add(found.predicted)
    assert len(called) == 2, "control: the image decides"


@given(st.lists(st.floats(-50, 50, width=32, allow_subnormal=False), min_size=2, max_size=2))
def test_decide_gives_one_class_for_any_logits_the_first_of_equals(logits: list[float]) -> None:
    content = read_model(FLOAT_MODEL).content
    file = ModelFile(FLOAT_MODEL, content, info_of_classes(FLOAT_MODEL), len(content), "")
    found = _CLASSIFIERS.setdefault("float", Classifier(file)).decide(np.array(logits, np.float32))
    assert sum(found.positive) == 1
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-6)
    if logits[0] == logits[1]:
        assert found.positive == (True, False)


_CLASSIFIERS: dict[str, Classifier] = {}


def test_findings_say_predicted_top_and_activation() -> None:
    shares = np.array([0.2, 0.4, 0.4], np.float32)
    arrays = np.log(shares), shares, np.full(3, 0.5, np.float32)
    found = Findings(("a", "b", "c"), *arrays, (False, True, False), activation="softmax")
    assert found.predicted == "b"
    assert [label for label, _ in found.top(3)] == ["b", "c", "a"]
    said = found.to_dict()
    assert (said["activation"], said["predicted"]) == ("softmax", "b")
    assert [entry["threshold"] for entry in said["findings"]] == [None] * 3
    with pytest.raises(DataError, match="expected k from 1 to 3, the number of labels; got 4"):
        found.top(4)
    plain = Findings(("a", "b", "c"), *arrays, (False, True, True))
    assert plain.predicted is None
    assert set(plain.to_dict()) == {"findings", "warnings"}


def test_info_of_one_exclusive_class_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"expected two or more classes .* \(softmax\), got \('a',\)"):
        info_of_classes(FLOAT_MODEL, labels=("a",), logit_slope=(1,), logit_offset=(0,), thresholds=(0.5,))


def test_verify_judges_the_likeliest_class_unless_another_is_within_what_two_logits_may_be_off() -> None:
    content = read_model(FLOAT_MODEL).content
    plain = info_of_classes(FLOAT_MODEL, logit_offset=(0.0, 0.5))
    info = dataclasses.replace(plain, reference=record(content, plain))
    assert info.reference is not None
    assert len(json.dumps(info.reference.to_dict())) <= 1000
    logits, positive = np.asarray(info.reference.logits), np.asarray(info.reference.positive)
    assert (positive.sum(axis=1) == 1).all()
    found = compare(info, logits, positive, "here")
    assert (found.passed, found.decisions, found.flipped, found.too_close) == (True, 4, 0, 0)
    turned = positive.copy()
    turned[2] = ~turned[2]
    assert compare(info, logits, turned, "here").flipped == 1
    # One image whose classes lie 1.9 tolerances apart after the offset: one logit up and one down would turn it.
    near = logits.copy()
    near[2, 0] = near[2, 1] + 0.5 + 1.9 * found.tolerance
    close = dataclasses.replace(info.reference, logits=tuple(map(tuple, near.tolist())))
    judged = compare(dataclasses.replace(info, reference=close), near, turned, "here")
    assert (judged.too_close, judged.flipped) == (1, 0)
    near[2, 0] += 0.2 * found.tolerance
    close = dataclasses.replace(info.reference, logits=tuple(map(tuple, near.tolist())))
    judged = compare(dataclasses.replace(info, reference=close), near, turned, "here")
    assert (judged.too_close, judged.flipped) == (0, 1)


def test_predict_command_shows_the_predicted_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, image_file = tmp_path / "classes.tflite", tmp_path / "image.png"
    model.write_bytes(pack_model(read_model(INT8_MODEL).content, info_of_classes(INT8_MODEL)))
    image_file.write_bytes(png(draw_image(3)))
    expected = Classifier(model).predict(image_file)
    for form in ("csv", "json", "table"):
        assert main([f"--model={model}", str(image_file), f"--format={form}"]) == 0
        out = capsys.readouterr().out
        if form == "json":
            (image,) = json.loads(out)["images"]
            assert (image["predicted"], image["activation"]) == (expected.predicted, "softmax")
        else:
            titles = "image,predicted,label,probability,positive,logit,milliseconds"
            assert out.startswith(titles) if form == "csv" else out.split()[:2] == ["image", "predicted"]
            assert f"{max(expected.probabilities):.3f}"[:5] in out
            assert "threshold" not in out
