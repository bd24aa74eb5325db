"""A model and single layers of it as one ZIP that a device times: what `cxr_benchmark --layers` reads.

The archive holds plain .tflite files and an index in JSON; nothing in it is executed but by the TFLite runtime. Members
are stored in fixed order with fixed times, so that the same content gives the same bytes.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cxr_compress.device.cost_table import LayerUse
from cxr_compress.device.interpreter import FLATBUFFER_IDENTIFIER
from cxr_compress.errors import ModelFileError
from cxr_compress.files import first_bytes

PACK_FORMAT = 1
MAX_PACK_BYTES = 1 << 30

_INDEX, _MODEL, _IDLE = "index.json", "model.tflite", "idle.tflite"
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, NotImplementedError, OSError)
_AGAIN = "copy it again, or make a new one"


@dataclass(frozen=True)
class Probe:
    """One layer alone.

    Attributes:
        kind: name of its kind of kernel.
        inputs: length of the kernel's input axis.
        outputs: length of its output axis; 1 for a depthwise kernel.
        content: the flatbuffer.
    """

    kind: str
    inputs: int
    outputs: int
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class MoveProbe:
    """A layer without a kernel alone: the elements it reads and writes, and its flatbuffer."""

    elements: int
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class ProbePack:
    """What is needed to find out where a model's time goes.

    Attributes:
        model: flatbuffer of the original model.
        idle: flatbuffer that computes next to nothing: what a run costs in any case.
        probes: single layers at several widths.
        moves: element-wise layers of several sizes.
        uses: every use of a kernel in the original model.
        moved: elements that its layers without a kernel read or write.
        quant_type: of all the flatbuffers.
    """

    model: bytes = field(repr=False)
    idle: bytes = field(repr=False)
    probes: tuple[Probe, ...]
    moves: tuple[MoveProbe, ...]
    uses: tuple[LayerUse, ...]
    moved: int
    quant_type: str

    def to_bytes(self) -> bytes:
        """The pack as a ZIP; equal packs give equal bytes.

        Raises:
            ModelFileError: it would exceed `MAX_PACK_BYTES`.
        """
        names = [f"probe_{number:04}.tflite" for number in range(len(self.probes))]
        move_names = [f"move_{number:04}.tflite" for number in range(len(self.moves))]
        index = {
            "format": PACK_FORMAT,
            "quant_type": self.quant_type,
            "moved": self.moved,
            "uses": [asdict(use) for use in self.uses],
            "probes": [
                {"file": name, "kind": probe.kind, "inputs": probe.inputs, "outputs": probe.outputs}
                for name, probe in zip(names, self.probes, strict=True)
            ],
            "moves": [
                {"file": name, "elements": move.elements} for name, move in zip(move_names, self.moves, strict=True)
            ],
        }
        members = {_IDLE: self.idle, _INDEX: json.dumps(index, indent=1).encode(), _MODEL: self.model}
        members.update(zip(names, (probe.content for probe in self.probes), strict=True))
        members.update(zip(move_names, (move.content for move in self.moves), strict=True))
        size = sum(map(len, members.values()))
        if size > MAX_PACK_BYTES:
            raise ModelFileError(f"the probe pack would take {size:,} bytes, at most {MAX_PACK_BYTES:,} are allowed")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(members):
                member = zipfile.ZipInfo(name, _FIXED_TIME)
                member.create_system = 3  # Unix, on every machine, so that the bytes do not depend on it
                member.external_attr = 0o644 << 16
                archive.writestr(member, members[name])
        return buffer.getvalue()


def read_pack(source: str | Path | bytes) -> ProbePack:
    """Read a probe pack from a file or its bytes.

    Raises:
        ModelFileError: missing, no probe pack, cut short, changed, or made by a newer version; the message starts with
            the path, where one was given.
    """
    if isinstance(source, bytes):
        return _unpack(source)
    path = Path(source)
    try:
        if path.is_file() and path.stat().st_size > MAX_PACK_BYTES:
            raise ModelFileError(f"{path}: is larger than a probe pack can be ({MAX_PACK_BYTES:,} bytes)")
        first_bytes(path, MAX_PACK_BYTES)
        return _unpack(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such probe pack; check the path") from error
    except IsADirectoryError as error:
        raise ModelFileError(f"{path}: is a folder, expected a probe pack (.zip)") from error
    except OSError as error:
        raise ModelFileError(f"{path}: could not be read: {error.strerror or error}") from error
    except ModelFileError as error:
        text = str(error)
        raise ModelFileError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from error


def _unpack(data: bytes) -> ProbePack:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if _INDEX not in archive.namelist():
                raise ModelFileError(f"is no probe pack: it has no {_INDEX}; make one with cxr_compress --probe_pack")
            _check_members(archive)
            return _from_index(_load_index(archive.read(_INDEX)), archive)
    except _ZIP_ERRORS as error:
        raise ModelFileError(f"is no probe pack, or cut short ({_one_line(error)}); {_AGAIN}") from error


def _check_members(archive: zipfile.ZipFile) -> None:
    """Refuse what could unpack to more than the file itself holds."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise ModelFileError(f"is no probe pack as it was written: its members are compressed; {_AGAIN}")


def _load_index(text: bytes) -> dict[str, Any]:
    try:
        index = json.loads(text)
        version = index["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"is damaged: {_INDEX} cannot be read ({_one_line(error)}); {_AGAIN}") from error
    if version != PACK_FORMAT:
        raise ModelFileError(
            f"is a probe pack of format {version!r}, expected {PACK_FORMAT}: update cxr_compress on this machine, or "
            "make a new pack"
        )
    return dict(index)


def _from_index(index: dict[str, Any], archive: zipfile.ZipFile) -> ProbePack:
    try:
        probes = tuple(
            Probe(str(row["kind"]), int(row["inputs"]), int(row["outputs"]), _member(archive, row["file"]))
            for row in index["probes"]
        )
        moves = tuple(MoveProbe(int(row["elements"]), _member(archive, row["file"])) for row in index["moves"])
        return ProbePack(
            model=_member(archive, _MODEL),
            idle=_member(archive, _IDLE),
            probes=probes,
            moves=moves,
            uses=tuple(LayerUse(str(use["kind"]), int(use["inputs"]), int(use["outputs"])) for use in index["uses"]),
            moved=int(index["moved"]),
            quant_type=str(index["quant_type"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"is damaged: {_INDEX} does not match ({_one_line(error)}); {_AGAIN}") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    content = archive.read(name)  # zipfile verifies its checksum
    if content[4:8] != FLATBUFFER_IDENTIFIER:
        raise ModelFileError(f"is damaged: {name} is no .tflite; {_AGAIN}")
    return content


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
