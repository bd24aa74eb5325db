"""Run a command in a process of its own, as a shell does."""

from __future__ import annotations

import subprocess
import sys

BLOCK_TENSORFLOW = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "tf_keras", "tensorflow_model_optimization"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
"""


def run_module(module: str, *arguments: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """Run `cxr_compress.cli.MODULE:main` as its console script would; `prelude` is code that runs first."""
    code = f"{prelude}\nimport sys\nfrom cxr_compress.cli.{module} import main\nsys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def errors_of(stderr: str) -> list[str]:
    """The lines of a command's stderr that tell neither of progress nor of what was assumed."""
    return [line for line in stderr.splitlines() if not line.endswith(" s") and ": note: " not in line]
