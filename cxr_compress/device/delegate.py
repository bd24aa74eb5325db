"""Loads a TFLite delegate, the library that hands a model to an accelerator such as Coral's Edge TPU."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from cxr_compress.errors import RuntimeUnavailableError

EDGETPU_OP = "edgetpu-custom-op"  # what edgetpu_compiler leaves in place of all that it has mapped
# Source: tensorflow/lite/delegates/external/external_delegate_interface.h.
_ENTRIES = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")
_INSTALL = (
    "give the path of a library for this processor; Coral's is installed with apt-get install libedgetpu1-std from "
    "packages.cloud.google.com/apt"
)
_NO_DEVICE = (
    "plug the accelerator in and see that this user may use it (group plugdev for USB, apex for PCIe), or leave "
    "--delegate out to run on the processor"
)


def load_delegate(library: str, module: str) -> Any:
    """Load a library into a TFLite runtime.

    Loading runs code of the library: give none that you would not start as a program.

    Args:
        library: its file name, looked for as the system does, or a path: "libedgetpu.so.1".
        module: of the runtime, "ai_edge_litert" or "tflite_runtime".

    Raises:
        RuntimeUnavailableError: there is no such library, it is no delegate, or it finds no device.
    """
    _check(library)
    load = importlib.import_module(f"{module}.interpreter").load_delegate
    try:
        return load(library)
    except (ValueError, OSError, RuntimeError) as error:
        # The text starts with "Failed to load delegate from"; libedgetpu says nothing more where it finds no device.
        said = " ".join(str(error).partition(library)[2].split()).rstrip(".")
        raise RuntimeUnavailableError(
            f"the delegate {library} finds no device{f' ({said})' if said else ''}: {_NO_DEVICE}"
        ) from error


def _check(library: str) -> None:
    """Look into the library first: the runtimes leave a broken object behind where an entry is missing."""
    try:
        found = ctypes.CDLL(library)
    except OSError as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise RuntimeUnavailableError(f"the delegate {library} cannot be loaded ({text}): {_INSTALL}") from error
    missing = [name for name in _ENTRIES if not hasattr(found, name)]
    if missing:
        raise RuntimeUnavailableError(f"{library} is no TFLite delegate: it has no function {missing[0]}; {_INSTALL}")
