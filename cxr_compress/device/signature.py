"""Sign a model file and check its signature: that it comes from whom it should, not only that it is whole.

A detached Ed25519 signature of the file's bytes, 64 bytes in model.tflite.sig; openssl makes and checks the same one:

    openssl genpkey -algorithm ed25519 -out private.pem
    openssl pkey -in private.pem -pubout -out public.pem
    openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in model.tflite -sigfile model.tflite.sig

The public key has to reach the device by another way than the model. Needs pip install 'cxr-compress[sign]'.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.files import write_bytes

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
