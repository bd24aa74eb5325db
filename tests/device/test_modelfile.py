from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.modelfile import (
    INTENDED_USE,
    MAX_METADATA_BYTES,
    ModelFile,
    ModelInfo,
    pack_model,
    read_model,
)
from cxr_compress.device.modelinfo import ReferenceOutputs
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import ModelFileError
from tests.device.reference import INT8_MODEL

# As far as the container is concerned a flatbuffer is bytes with an identifier; that it runs is for other tests.
FLATBUFFER = b"\x1c\0\0\0TFL3" + bytes(range(60))
INFO = ModelInfo(
    model_name="tiny_m50_w70_int8",
    labels=("Atelectasis", "Épanchement"),
    preprocess=PreprocessSpec(height=64, width=48, bit_depth=12),
    logit_slope=(1.0, 0.5),
    logit_offset=(-2.25, 0.0),
    thresholds=(0.5, 0.125),
    threshold_source="Youden on dev, 521 images",
    quant_type="int8",
    parents={"train": "ab" * 32, "base": "ef" * 32},
    training_data="phantom",
    attribution="none needed",
    synthetic=True,
    recipe={"seed": 0, "target_macs": 0.5, "stages": ["pruned", "prune"]},
    calibration_source="Platt on dev, 521 images",
    model_card="# A card\n",
    canonical_hash="cd" * 32,
    reference=ReferenceOutputs(3, ((0.5, -1.25), (2.0, 0.0)), ((True, False), (True, False)), 0.25, "some 1.0"),
)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.tflite"
    path.write_bytes(data)
    return path


def changed(**fields: Any) -> ModelInfo:
    return dataclasses.replace(INFO, **fields)


def archive_of(data: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(data))


def repack(data: bytes, document: dict[str, Any] | None, labels: str | None = "a\n", *, seal: bool = True) -> bytes:
    """The flatbuffer with another archive, as someone who edits one with zip (and computes its hash) would make it."""
    size = len(FLATBUFFER)
    buffer = io.BytesIO()
    buffer.write(data[:size])
    with zipfile.ZipFile(buffer, "a") as archive:
        if document is not None:
            archive.writestr("cxr_compress.json", json.dumps(document))
        if labels is not None:
            archive.writestr("labels.txt", labels)
        archive.writestr("model_card.md", INFO.model_card)
        archive.comment = bytes(71) if seal else b""
    made = buffer.getvalue()
    return made[:-71] + b"sha256:" + hashlib.sha256(made[:-71]).hexdigest().encode() if seal else made


def document_of(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(archive_of(data).read("cxr_compress.json"))
    return document


# --- round trip -------------------------------------------------------------------------------------------------------


def test_pack_then_read_gives_back_content_and_info(tmp_path: Path) -> None:
    data = pack_model(FLATBUFFER, INFO)
    file = read_model(str(write(tmp_path, data)))
    assert (file.content, file.info, file.file_bytes) == (FLATBUFFER, INFO, len(data))
    assert file.path == tmp_path / "model.tflite"


texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12)


@given(
    tail=st.binary(max_size=300),
    labels=st.lists(texts, min_size=1, max_size=5, unique=True),
    number=st.floats(-50, 50, allow_subnormal=False),
    name=texts,
    recipe=st.dictionaries(texts, st.one_of(st.none(), st.booleans(), st.integers(), texts), max_size=3),
)
def test_pack_then_read_any_model_is_the_identity(
    tmp_path: Path, tail: bytes, labels: list[str], number: float, name: str, recipe: dict[str, Any]
) -> None:
    info = changed(
        reference=None,
        model_name=name,
        labels=tuple(labels),
        logit_slope=(1.5,) * len(labels),
        logit_offset=(number,) * len(labels),
        thresholds=(0.25,) * len(labels),
        recipe=recipe,
    )
    flatbuffer = b"\x1c\0\0\0TFL3" + tail
    file = read_model(write(tmp_path, pack_model(flatbuffer, info)))
    assert (file.content, file.info) == (flatbuffer, info)


def test_pack_same_input_gives_same_bytes() -> None:
    reordered = changed(recipe=dict(reversed(INFO.recipe.items())))
    assert pack_model(FLATBUFFER, INFO) == pack_model(FLATBUFFER, reordered)
    assert pack_model(FLATBUFFER, INFO) != pack_model(FLATBUFFER, changed(synthetic=False))


def test_pack_gives_a_plain_zip_with_labels_and_hashes() -> None:
    data = pack_model(FLATBUFFER, INFO)
    assert data.startswith(FLATBUFFER)
    archive = archive_of(data)
    assert archive.namelist() == ["cxr_compress.json", "labels.txt", "score_calibration.txt", "model_card.md"]
    assert archive.testzip() is None
    assert archive.read("labels.txt").decode() == "Atelectasis\nÉpanchement\n"
    # Scale, slope and offset, as the standard has it; a line end behind the last line would count as a finding more.
    assert archive.read("score_calibration.txt").decode() == "1,1.0,-2.25\n1,0.5,0.0"
    assert archive.read("model_card.md").decode() == "# A card\n"
    assert archive.comment.decode() == "sha256:" + hashlib.sha256(data[:-71]).hexdigest()
    document = document_of(data)
    assert "model_card" not in document  # once is enough
    assert document["flatbuffer_bytes"] == len(FLATBUFFER)
    assert document["flatbuffer_sha256"] == hashlib.sha256(FLATBUFFER).hexdigest()
    assert document["intended_use"] == INTENDED_USE


def test_info_json_round_trip_and_numpy_numbers() -> None:
    assert ModelInfo.from_json(INFO.to_json()) == INFO
    same = changed(logit_slope=np.array([1.0, 0.5], np.float32), thresholds=list(INFO.thresholds))
    assert same == INFO


def test_read_reference_model_knows_itself() -> None:
    file = read_model(INT8_MODEL)
    assert isinstance(file, ModelFile)
    assert file.info.labels == ("opacity", "large heart")
    assert file.file_bytes == INT8_MODEL.stat().st_size
    assert len(file.content) < file.file_bytes


# --- damage -----------------------------------------------------------------------------------------------------------


def test_read_file_cut_at_every_byte_is_refused_in_one_line(tmp_path: Path) -> None:
    data = pack_model(FLATBUFFER, INFO)
    for length in range(len(data)):
        with pytest.raises(ModelFileError) as caught:
            read_model(write(tmp_path, data[:length]))
        assert "\n" not in str(caught.value)


def read_or_refuse(path: Path) -> ModelFile | str:
    try:
        return read_model(path)
    except ModelFileError as error:
        return str(error)


@given(where=st.integers(0, len(pack_model(FLATBUFFER, INFO)) - 1), flip=st.integers(1, 255))
def test_read_file_with_any_changed_byte_is_refused_in_one_line(tmp_path: Path, where: int, flip: int) -> None:
    data = bytearray(pack_model(FLATBUFFER, INFO))
    data[where] ^= flip
    said = read_or_refuse(write(tmp_path, bytes(data)))
    assert isinstance(said, str)
    assert "\n" not in said


def test_read_file_with_each_byte_changed_in_turn_is_refused(tmp_path: Path) -> None:
    data = pack_model(FLATBUFFER, INFO)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1 + position * 37 % 255
        assert isinstance(read_or_refuse(write(tmp_path, bytes(broken))), str), position


@given(tail=st.binary(min_size=1, max_size=80))
def test_read_file_with_anything_behind_it_is_refused(tmp_path: Path, tail: bytes) -> None:
    assert isinstance(read_or_refuse(write(tmp_path, pack_model(FLATBUFFER, INFO) + tail)), str)


def test_read_file_zipped_again_without_its_hash_is_refused(tmp_path: Path) -> None:
    document = document_of(pack_model(FLATBUFFER, INFO))
    data = repack(FLATBUFFER, document, "Atelectasis\nÉpanchement\n", seal=False)
    with pytest.raises(ModelFileError, match="or was changed: it does not match the sha256 at its end"):
        read_model(write(tmp_path, data))


@pytest.mark.skipif(shutil.which("unzip") is None, reason="no unzip here")
def test_unzip_lists_and_tests_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, pack_model(FLATBUFFER, INFO))
    said = subprocess.run(["unzip", "-p", str(path), "labels.txt"], capture_output=True, text=True, check=False)
    # unzip warns of the bytes in front, which are the model, with exit code 1.
    assert said.stdout == "Atelectasis\nÉpanchement\n"


def test_read_changed_flatbuffer_is_always_refused(tmp_path: Path) -> None:
    data = pack_model(FLATBUFFER, INFO)
    for offset in range(len(FLATBUFFER)):
        broken = bytearray(data)
        broken[offset] ^= 1
        with pytest.raises(ModelFileError, match=r"does not match its recorded sha256|is not a \.tflite file"):
            read_model(write(tmp_path, bytes(broken)))


def test_read_inserted_bytes_are_refused(tmp_path: Path) -> None:
    data = pack_model(FLATBUFFER, INFO)
    with pytest.raises(ModelFileError, match="recorded sha256"):
        read_model(write(tmp_path, data[: len(FLATBUFFER)] + b"\0\0" + data[len(FLATBUFFER) :]))


def test_read_cut_file_of_ours_says_cut(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"model\.tflite: is cut short or damaged, .*copy or convert it again"):
        read_model(write(tmp_path, pack_model(FLATBUFFER, INFO)[:-30]))


# --- not ours ---------------------------------------------------------------------------------------------------------


def test_read_plain_tflite_says_convert(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"not one of ours, or cut short: .*convert it with cxr_convert"):
        read_model(write(tmp_path, FLATBUFFER))


def test_read_tflite_with_a_foreign_archive_says_convert(tmp_path: Path) -> None:
    data = repack(FLATBUFFER, None, "cat\ndog\n")
    with pytest.raises(ModelFileError, match=r"not one of ours: its archive has no cxr_compress\.json; convert it"):
        read_model(write(tmp_path, data))


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(40), b"\x89HDF\r\n\x1a\n", b"TFL3", b"x"])
def test_read_another_kind_of_file_says_not_tflite(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"model\.tflite: is not a \.tflite file \(bytes 4 to 8 are .*TFL3"):
        read_model(write(tmp_path, data))


def test_read_missing_empty_or_folder_each_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.tflite: no such model file; check the path"):
        read_model(tmp_path / "nowhere.tflite")
    with pytest.raises(ModelFileError, match=r"model\.tflite: is empty"):
        read_model(write(tmp_path, b""))
    with pytest.raises(ModelFileError, match="is a folder, expected"):
        read_model(tmp_path)


# --- edited by hand ---------------------------------------------------------------------------------------------------


def edited(**changes: Any) -> bytes:
    """Our file with other values in its JSON; a value of None removes the key."""
    document = {**document_of(pack_model(FLATBUFFER, INFO)), **changes}
    document = {key: value for key, value in document.items() if value is not None}
    return repack(FLATBUFFER, document, "Atelectasis\nÉpanchement\n")


def test_read_edited_control_unedited_repack_with_its_hash_is_accepted(tmp_path: Path) -> None:
    assert read_model(write(tmp_path, edited())).info == INFO


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 4}, "has format_version 4, this cxr_compress reads up to 3; upgrade cxr-compress"),
        ({"format_version": "2"}, "expected format_version as a whole number, got '2'"),
        ({"format_version": 1}, r"unknown keys \[\], missing keys \['model_card'\]"),
        ({"format_version": None}, "expected format_version as a whole number, got None"),
        ({"color": 1}, r"unknown keys \['color'\], missing keys \[\]"),
        ({"labels": None}, r"unknown keys \[\], missing keys \['labels'\]"),
        ({"labels": ["Atelectasis"]}, "expected logit_slope as 1 finite numbers"),
        ({"labels": "Atelectasis"}, "expected labels as a list of texts"),
        ({"labels": ["a", "a"]}, "all different and of one line"),
        ({"labels": ["a\nb", "c"]}, "all different and of one line"),
        ({"labels": [1, 2]}, "expected labels as a list of texts"),
        ({"labels": 3}, "expected labels as a list of texts"),
        ({"labels": ["Edema", "Mass"]}, r"labels\.txt and cxr_compress\.json name different findings"),
        ({"thresholds": [0.5, 1.5]}, "expected thresholds from 0 to 1"),
        ({"thresholds": [0.5]}, "expected thresholds as 2 finite numbers"),
        ({"logit_offset": ["a", "b"]}, "expected logit_offset as 2 numbers"),
        ({"synthetic": "no"}, "expected synthetic as bool, got 'no'"),
        ({"parents": [["a", "b", "c"]]}, "expected parents as pairs of a name and a sha256"),
        ({"parents": [["a", 1]]}, "expected parents as pairs of a name and a sha256"),
        ({"calibration_source": 1}, "expected calibration_source as str, got 1"),
        ({"reference": {"seed": 0}}, r"expected reference outputs with .*, got \['seed'\]"),
        ({"recipe": []}, r"expected recipe as dict, got \[\]"),
        ({"preprocess": []}, r"expected preprocess as dict, got \[\]"),
        ({"preprocess": {"height": 8, "width": 8, "crop": 1}}, r"unknown keys \['crop'\]"),
        ({"flatbuffer_bytes": 10**9}, "does not match its recorded sha256"),
        ({"flatbuffer_bytes": None}, "does not match its recorded sha256"),
        ({"flatbuffer_bytes": -4}, "does not match its recorded sha256"),
        ({"flatbuffer_sha256": "0" * 64}, "does not match its recorded sha256"),
    ],
)
def test_read_edited_metadata_is_named_and_refused(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelFileError, match=r"model\.tflite: .*" + text):
        read_model(write(tmp_path, edited(**changes)))


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"a": NaN'], ids=["cut", "list", "deep", "nan"])
def test_info_from_text_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match=r"cxr_compress\.json: (is not JSON|expected a JSON object)"):
        ModelInfo.from_json(text)


# --- packing ----------------------------------------------------------------------------------------------------------


def test_pack_something_else_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"the converted model: is not a \.tflite file"):
        pack_model(b"\0" * 100, INFO)


def test_pack_twice_is_refused() -> None:
    with pytest.raises(ModelFileError, match="already carries an archive; pack the bare flatbuffer"):
        pack_model(pack_model(FLATBUFFER, INFO), INFO)


def test_pack_metadata_above_the_limit_is_refused() -> None:
    with pytest.raises(
        ModelFileError, match=f"at most {MAX_METADATA_BYTES} are allowed; shorten the recipe or the model card"
    ):
        pack_model(FLATBUFFER, changed(recipe={"note": "x" * MAX_METADATA_BYTES}))


@pytest.mark.parametrize("recipe", [{"a": object()}, {"a": float("nan")}])
def test_pack_recipe_that_is_not_json_is_refused(recipe: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match="the model's metadata is not JSON"):
        pack_model(FLATBUFFER, changed(recipe=recipe))
