"""Small shared libraries that speak the interface of TFLite delegates; a C compiler makes them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

# What a library does that finds no accelerator: it says why, and gives nothing.
NO_DEVICE = """
typedef void (*Report)(const char*);
void* tflite_plugin_create_delegate(char** keys, char** values, unsigned long count, Report report) {
  report("no accelerator is plugged in");
  return 0;
}
void tflite_plugin_destroy_delegate(void* delegate) {}
"""
# A delegate that looks at the model and takes no operator, or refuses; the struct is TfLiteDelegate of its common.h.
WATCHING = """
#include <stdint.h>
#include <stdio.h>
typedef struct Delegate {
  void* data;
  int (*prepare)(void* context, struct Delegate* delegate);
  void *from_buffer, *to_buffer, *free_buffer;
  int64_t flags;
  void* opaque;
} Delegate;
static int prepare(void* context, Delegate* delegate) {
  fprintf(stderr, "the delegate was asked\\n");
  return VERDICT;
}
static Delegate one = {0, prepare, 0, 0, 0, 0, 0};
void* tflite_plugin_create_delegate(char** keys, char** values, unsigned long count, void* report) { return &one; }
void tflite_plugin_destroy_delegate(void* delegate) {}
"""


def build(folder: Path, source: str, name: str, **defines: int) -> Path:
    """Compile a library; skips where there is no C compiler for this processor."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler (cc) is needed to build a delegate")
    (folder / "source.c").write_text(source)
    library = folder / name
    options = [f"-D{key}={value}" for key, value in defines.items()]
    subprocess.run([compiler, "-shared", "-fPIC", *options, "-o", library, folder / "source.c"], check=True)
    try:
        ctypes.CDLL(str(library))
    except OSError:
        pytest.skip("the C compiler here makes libraries of another processor than Python's")
    return library
