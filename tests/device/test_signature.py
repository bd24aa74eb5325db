"""Signing: the right key and file pass, any other is one clear line; openssl agrees."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cxr_compress.device import modelfile
from cxr_compress.device.modelfile import sign_file, verify_signature
from cxr_compress.errors import CompressionError, ModelFileError
from tests.device.reference import INT8_MODEL

cryptography = pytest.importorskip("cryptography", reason="the extra sign is not installed")

from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: E402

PEM, PRIVATE = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
PUBLIC = serialization.PublicFormat.SubjectPublicKeyInfo
OPEN = serialization.NoEncryption()


def write_keys(folder: Path, seed: int, name: str = "key") -> tuple[Path, Path]:
    """A pair of PEM files of a key that the seed decides."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    private, public = folder / f"{name}.pem", folder / f"{name}_public.pem"
    private.write_bytes(key.private_bytes(PEM, PRIVATE, OPEN))
    public.write_bytes(key.public_key().public_bytes(PEM, PUBLIC))
    return private, public


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A signed model, and the key's private and public file."""
    path = tmp_path / "model.tflite"
    path.write_bytes(INT8_MODEL.read_bytes())
    private, public = write_keys(tmp_path, 1)
    assert sign_file(path, private) == tmp_path / "model.tflite.sig"
    return path, private, public


def test_verify_signature_of_the_signed_file_passes(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, private, public = signed
    verify_signature(path, public)
    first = (tmp_path / "model.tflite.sig").read_bytes()
    assert len(first) == 64
    sign_file(path, private)
    assert (tmp_path / "model.tflite.sig").read_bytes() == first  # Ed25519 draws nothing
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(first)
    (tmp_path / "model.tflite.sig").unlink()
    verify_signature(path, public, elsewhere)


def test_verify_signature_changed_file_is_refused(signed: tuple[Path, Path, Path]) -> None:
    path, _, public = signed
    data = path.read_bytes()
    for place in (0, len(data) // 2, len(data) - 1):
        broken = bytearray(data)
        broken[place] ^= 1
        path.write_bytes(bytes(broken))
        with pytest.raises(ModelFileError, match=r"its signature is not by the key key_public\.pem, or the file was"):
            verify_signature(path, public)
    path.write_bytes(data + b"\0")
    with pytest.raises(ModelFileError, match="or the file was changed since"):
        verify_signature(path, public)


def test_verify_signature_of_another_key_is_refused(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, other = write_keys(tmp_path, 2, "other")
    with pytest.raises(ModelFileError, match=r"its signature is not by the key other_public\.pem"):
        verify_signature(signed[0], other)


def test_verify_signature_missing_or_cut_says_so(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    given = tmp_path / "model.tflite.sig"
    given.write_bytes(given.read_bytes()[:40])
    with pytest.raises(ModelFileError, match=r"model\.tflite\.sig: expected a signature of 64 bytes, got 40; copy it"):
        verify_signature(signed[0], signed[2])
    given.unlink()
    with pytest.raises(ModelFileError, match=r"model\.tflite: has no signature model\.tflite\.sig; copy it along"):
        verify_signature(signed[0], signed[2])


def test_keys_that_cannot_be_used_say_why_and_how_to_make_one(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, private, public = signed
    with pytest.raises(
        CompressionError, match=r"cannot be used as private key, it is no private key as PEM; .*genpkey"
    ):
        sign_file(path, public)
    with pytest.raises(
        CompressionError, match=r"it is no public key as PEM; make one with: openssl pkey -in .*-pubout"
    ):
        verify_signature(path, private)
    with pytest.raises(CompressionError, match=r"could not read the private key, .*nowhere\.pem: No such file"):
        sign_file(path, tmp_path / "nowhere.pem")
    with pytest.raises(CompressionError, match="could not read the file to sign"):
        sign_file(tmp_path / "nowhere.tflite", private)
    elliptic = ec.generate_private_key(ec.SECP256R1())
    other = tmp_path / "elliptic.pem"
    other.write_bytes(elliptic.private_bytes(PEM, PRIVATE, OPEN))
    with pytest.raises(CompressionError, match="expected an Ed25519 private key, got "):
        sign_file(path, other)
    locked = ed25519.Ed25519PrivateKey.generate()
    other.write_bytes(locked.private_bytes(PEM, PRIVATE, serialization.BestAvailableEncryption(b"secret")))
    with pytest.raises(CompressionError, match="cannot be used as private key, it has a password"):
        sign_file(path, other)


def test_without_cryptography_one_line_says_what_to_install(
    signed: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(CompressionError, match=r"signatures need cryptography: pip install 'cxr-compress\[sign\]'"):
        verify_signature(signed[0], signed[2])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_makes_the_keys_and_checks_the_signature_as_the_help_says(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"a model")
    run(modelfile.MAKE_KEY, tmp_path)
    run(modelfile.MAKE_PUBLIC_KEY, tmp_path)
    sign_file(tmp_path / "model.tflite", tmp_path / "private.pem")
    verify_signature(tmp_path / "model.tflite", tmp_path / "public.pem")
    check = next(line for line in (modelfile.__doc__ or "").splitlines() if "pkeyutl" in line)
    assert "Verified Successfully" in run(check, tmp_path).stdout
    (tmp_path / "model.tflite").write_bytes(b"another")
    assert subprocess.run(check.split(), cwd=tmp_path, capture_output=True, check=False).returncode != 0


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, check=True)
