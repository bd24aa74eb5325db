"""What a .tflite file of ours carries about itself: labels, preprocessing, calibration, thresholds, origin.

The file is the flatbuffer followed by a ZIP archive (the place where TFLite keeps associated files), so any TFLite
runtime runs it and `unzip model.tflite` shows its members. The same input gives the same bytes: members are stored in
fixed order with fixed times.

The archive's comment is the sha256 of every byte before it, so that no byte of the file can change unnoticed. That is
against accidents and careless edits: who means to forge a file computes the hash again. Against that a file is signed
(`sign_file`): a detached Ed25519 signature of its bytes, 64 bytes in model.tflite.sig, as openssl makes and checks it:

    openssl genpkey -algorithm ed25519 -out private.pem
    openssl pkey -in private.pem -pubout -out public.pem
    openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in model.tflite -sigfile model.tflite.sig

The public key has to reach the device by another way than the model. Needs pip install 'cxr-compress[sign]'.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxr_compress.device.interpreter import FLATBUFFER_IDENTIFIER
from cxr_compress.device.modelinfo import INTENDED_USE, JSON_NAME, ModelInfo, dump_json, load_json
from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.files import first_bytes, write_bytes

__all__ = ["INTENDED_USE", "MAX_METADATA_BYTES", "ModelFile", "ModelInfo", "pack_model", "read_model"]

MAX_METADATA_BYTES = 64 * 1024
# The largest image classifiers of Keras have 1.4 GB in float32; no device that this is for holds half of that.
MAX_MODEL_BYTES = 512 * 1024 * 1024

LABELS_NAME = "labels.txt"
CALIBRATION_NAME = "score_calibration.txt"
CARD_NAME = "model_card.md"
_SEAL = b"sha256:"
_SEAL_BYTES = len(_SEAL) + 64
_ZIP_START = b"PK\x03\x04"
_AGAIN = "copy or convert it again"
# The earliest time a ZIP can hold: a real one would make equal models differ.
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
# What zipfile raises on damaged archives, by Python version and place of the damage.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class ModelFile:
    """A model file, read and verified.

    Attributes:
        path: where it was read.
        content: the flatbuffer alone, for a TFLite runtime.
        info: what the file says about itself.
        file_bytes: size of the whole file.
        sha256: of the whole file, hexadecimal.
    """

    path: Path
    content: bytes = field(repr=False)
    info: ModelInfo
    file_bytes: int
    sha256: str


def pack_model(flatbuffer: bytes, info: ModelInfo) -> bytes:
    """Join a .tflite flatbuffer and what it says about itself into one file content; equal inputs give equal bytes.

    Raises:
        ModelFileError: `flatbuffer` is no TFLite flatbuffer or already packed, or the metadata exceeds 64 kB.
    """
    _check_identifier(flatbuffer, "the converted model")
    if _open_zip(flatbuffer) is not None:
        raise ModelFileError(
            "the converted model already carries an archive; pack the bare flatbuffer (ModelFile.content)"
        )
    fields = info.to_dict()
    card = fields.pop("model_card")
    document = {
        **fields,
        "flatbuffer_bytes": len(flatbuffer),
        "flatbuffer_sha256": hashlib.sha256(flatbuffer).hexdigest(),
    }
    packed = _sealed(flatbuffer, {JSON_NAME: dump_json(document), **_derived_texts(info), CARD_NAME: card})
    if len(packed) - len(flatbuffer) > MAX_METADATA_BYTES:
        raise ModelFileError(
            f"the metadata takes {len(packed) - len(flatbuffer)} bytes, at most {MAX_METADATA_BYTES} are allowed; "
            "shorten the recipe or the model card"
        )
    return packed


def read_model(path: str | Path) -> ModelFile:
    """Read a model file and verify that it is whole and as it was written.

    Raises:
        ModelFileError: missing, not a .tflite, not one of ours, cut short, changed, or made by a newer version; the
            message starts with the path.
    """
    try:
        check_tflite(path)
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such model file; check the path") from error
    except IsADirectoryError as error:
        raise ModelFileError(f"{path}: is a folder, expected a .tflite file") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: could not be read: {error}") from error
    _check_identifier(data, str(path))
    try:
        content, info = _unpack(data)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    return ModelFile(Path(path), content, info, len(data), hashlib.sha256(data).hexdigest())


def check_tflite(path: str | Path) -> None:
    """Look at kind, size and first bytes of a file, so that what is no .tflite is not read whole.

    Raises:
        ModelFileError: no regular file, too large, or of another kind; the message starts with the path.
        OSError: missing, a folder, or not readable.
    """
    _check_identifier(first_bytes(path, MAX_MODEL_BYTES), str(path))


def _unpack(data: bytes) -> tuple[bytes, ModelInfo]:
    """Split a file content into flatbuffer and info, verified against each other."""
    archive = _open_zip(data)
    if archive is None:
        if JSON_NAME.encode() in data:
            raise ModelFileError(f"is cut short or damaged: the end of its archive is missing; {_AGAIN}")
        raise ModelFileError(
            f"not one of ours, or cut short: it has no {JSON_NAME} with labels and preprocessing; "
            "convert it with cxr_convert, or copy it again"
        )
    with archive:
        if JSON_NAME not in archive.namelist():
            raise ModelFileError(f"not one of ours: its archive has no {JSON_NAME}; convert it with cxr_convert")
        document = load_json(_read_member(archive, JSON_NAME))
        if document.get("format_version") != 1:  # whose archive has no card
            document["model_card"] = _read_member(archive, CARD_NAME)
        labels = _read_member(archive, LABELS_NAME)
    size, digest = (document.pop(name, None) for name in ("flatbuffer_bytes", "flatbuffer_sha256"))
    version = document.get("format_version")
    info = ModelInfo.from_dict(document)
    content = data[:size] if isinstance(size, int) and 0 < size < len(data) else b""
    if data[len(content) : len(content) + 4] != _ZIP_START or hashlib.sha256(content).hexdigest() != digest:
        raise ModelFileError(f"was changed or damaged: the model does not match its recorded sha256; {_AGAIN}")
    if labels != _labels_text(info):
        raise ModelFileError(f"was changed: {LABELS_NAME} and {JSON_NAME} name different findings; {_AGAIN}")
    if version != 1 and data[-_SEAL_BYTES:] != _seal(memoryview(data)[:-_SEAL_BYTES]):
        raise ModelFileError(
            f"is cut short or damaged, or was changed: it does not match the sha256 at its end; {_AGAIN}"
        )
    return content, info


def _sealed(flatbuffer: bytes, texts: dict[str, str]) -> bytes:
    """The flatbuffer, an archive of the texts, and the hash of both."""
    buffer = io.BytesIO()
    buffer.write(flatbuffer)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        for name, text in texts.items():
            member = zipfile.ZipInfo(name, _FIXED_TIME)
            member.create_system = 3  # Unix, on every machine, so that the bytes do not depend on it
            member.external_attr = 0o644 << 16
            archive.writestr(member, text.encode("utf-8"))
        archive.comment = bytes(_SEAL_BYTES)  # its length is part of what is hashed
    content = buffer.getvalue()
    return content[:-_SEAL_BYTES] + _seal(memoryview(content)[:-_SEAL_BYTES])


def _seal(content: memoryview) -> bytes:
    """The comment that ends the file."""
    return _SEAL + hashlib.sha256(content).hexdigest().encode()


def _open_zip(data: bytes) -> zipfile.ZipFile | None:
    """Open the archive at the end of the bytes; None when there is none that can be read."""
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except _ZIP_ERRORS:
        return None


def _read_member(archive: zipfile.ZipFile, name: str) -> str:
    """Read one small text member; zipfile verifies its checksum."""
    try:
        member = archive.getinfo(name)
        if member.file_size > MAX_METADATA_BYTES or member.compress_type != zipfile.ZIP_STORED:
            raise ModelFileError(f"is damaged: {name} should be stored in at most {MAX_METADATA_BYTES} bytes; {_AGAIN}")
        return archive.read(member).decode("utf-8")
    except _ZIP_ERRORS as error:
        raise ModelFileError(f"is damaged: {name} cannot be read ({error}); {_AGAIN}") from error


def _check_identifier(data: bytes, name: str) -> None:
    """Raise a ModelFileError unless the bytes start as a TFLite flatbuffer does."""
    if not data:
        raise ModelFileError(f"{name}: is empty; {_AGAIN}")
    if data[4:8] != FLATBUFFER_IDENTIFIER:
        raise ModelFileError(
            f"{name}: is not a .tflite file (bytes 4 to 8 are {data[4:8]!r}, expected {FLATBUFFER_IDENTIFIER!r})"
        )


def _derived_texts(info: ModelInfo) -> dict[str, str]:
    """The members for readers that know the TFLite metadata standard and not our JSON.

    Source: metadata_schema.fbs of tflite-support: TENSOR_AXIS_LABELS has a label a line, TENSOR_AXIS_SCORE_CALIBRATION
    a line of scale, slope and offset; score = scale / (1 + exp(-(slope * logit + offset))). Other scores than those
    sigmoids the standard cannot say: files that have others carry no such member.
    """
    if info.activation != "sigmoid":
        return {LABELS_NAME: _labels_text(info)}
    rows = zip(info.logit_slope, info.logit_offset, strict=True)
    # No line end after the last: the Task library would count a finding more.
    calibration = "\n".join(f"1,{slope!r},{offset!r}" for slope, offset in rows)
    return {LABELS_NAME: _labels_text(info), CALIBRATION_NAME: calibration}


def _labels_text(info: ModelInfo) -> str:
    """One finding a line, in the order of the logits."""
    return "".join(f"{label}\n" for label in info.labels)


SIGNATURE_SUFFIX = ".sig"
MAKE_KEY = "openssl genpkey -algorithm ed25519 -out private.pem"
MAKE_PUBLIC_KEY = "openssl pkey -in private.pem -pubout -out public.pem"
SIGNATURE_BYTES = 64


def sign_file(path: str | Path, private_key_pem: str | Path) -> Path:
    """Sign a file; the signature is put beside it, under its name with ".sig" behind. Equal files and keys sign equal.

    Args:
        path: the file.
        private_key_pem: an Ed25519 private key as PEM, without a password.

    Returns:
        The path of the signature.

    Raises:
        CompressionError: cryptography is not installed, the key cannot be used, or a file cannot be read or written.
    """
    key = load_private_key(private_key_pem)
    target = signature_path(path)
    write_bytes(target, key.sign(_read(path, "the file to sign")))
    return target


def verify_signature(path: str | Path, public_key_pem: str | Path, signature: str | Path | None = None) -> None:
    """Check that a file is what the owner of a key signed.

    Args:
        path: the file.
        public_key_pem: an Ed25519 public key as PEM.
        signature: of the file; None: beside it, as `sign_file` puts it.

    Raises:
        ModelFileError: the signature is missing or not of this file and key.
        CompressionError: cryptography is not installed, the key cannot be used, or the file cannot be read.
    """
    key = _load(public_key_pem, "public", MAKE_PUBLIC_KEY)
    sig_file = Path(signature) if signature is not None else signature_path(path)
    if not sig_file.is_file():
        raise ModelFileError(
            f"{path}: has no signature {sig_file.name}; copy it along, or sign the file with --sign_key"
        )
    stored, data = _read(sig_file, "the signature"), _read(path, "the signed file")
    if len(stored) != SIGNATURE_BYTES:
        raise ModelFileError(
            f"{sig_file}: expected a signature of {SIGNATURE_BYTES} bytes, got {len(stored)}; copy it again"
        )
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(stored, data)
    except InvalidSignature as error:
        raise ModelFileError(
            f"{path}: its signature is not by the key {Path(public_key_pem).name}, or the file was changed since; "
            "get file and signature again from whom you trust"
        ) from error


def load_private_key(path: str | Path) -> Any:
    """Read an Ed25519 private key from a PEM file, to find out before a long conversion that it can be used.

    Raises:
        CompressionError: cryptography is not installed, or the key cannot be used.
    """
    return _load(path, "private", MAKE_KEY)


def signature_path(path: str | Path) -> Path:
    """Where the signature of a file lies."""
    return Path(path).with_name(Path(path).name + SIGNATURE_SUFFIX)


def _load(path: str | Path, kind: str, command: str) -> Any:
    """A key from a PEM file, of the right kind, or an error that says how to make one."""
    parsers, kinds = _cryptography()
    data = _read(path, f"the {kind} key")
    try:
        key = parsers[kind](data)
    except (ValueError, TypeError) as error:  # TypeError: it has a password
        locked = "it has a password" if isinstance(error, TypeError) else f"it is no {kind} key as PEM"
        raise CompressionError(f"{path}: cannot be used as {kind} key, {locked}; make one with: {command}") from error
    except Exception as error:
        raise CompressionError(f"{path}: cannot be used as {kind} key: {error}; make one with: {command}") from error
    if not isinstance(key, kinds[kind]):
        name = type(key).__name__.lstrip("_")
        raise CompressionError(f"{path}: expected an Ed25519 {kind} key, got {name}; make one with: {command}")
    return key


def _cryptography() -> tuple[dict[str, Callable[[bytes], Any]], dict[str, type]]:
    """What reads keys and what they are then, by kind."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError as error:
        raise CompressionError("signatures need cryptography: pip install 'cxr-compress[sign]'") from error
    parsers: dict[str, Callable[[bytes], Any]] = {
        "private": lambda data: load_pem_private_key(data, password=None),
        "public": load_pem_public_key,
    }
    return parsers, {"private": ed25519.Ed25519PrivateKey, "public": ed25519.Ed25519PublicKey}


def _read(path: str | Path, role: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CompressionError(f"could not read {role}, {path}: {reason}; check the path") from error
