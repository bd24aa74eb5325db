"""The device part stands alone: no TensorFlow, no other room of the package, and it starts fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cxr_compress.device
from tests.device.images import draw_image, png
from tests.device.reference import INT8_MODEL

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "tf_keras", "tensorflow_model_optimization"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_device_classifies_an_image_with_tensorflow_blocked(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png(draw_image(0)))
    code = BLOCKER + (
        "from cxr_compress.device import Classifier\n"
        "findings = Classifier(sys.argv[1]).predict(sys.argv[2])\n"
        "import json; print(json.dumps(findings.to_dict()))\n"
    )
    done = run_python(code, str(INT8_MODEL), str(tmp_path / "image.png"))
    assert (done.returncode, done.stderr) == (0, "")
    assert [entry["label"] for entry in json.loads(done.stdout)["findings"]] == ["opacity", "large heart"]


def test_blocker_control_tensorflow_import_fails() -> None:
    assert "blocked: tensorflow" in run_python(BLOCKER + "import tensorflow").stderr


def test_device_modules_import_nothing_of_the_package_but_the_ground_floor() -> None:
    names = [path.stem for path in Path(cxr_compress.device.__file__).parent.glob("*.py") if path.stem != "__init__"]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module('cxr_compress.device.' + name)\n"
        "print(*sorted(name for name in sys.modules if name.startswith('cxr_compress')))\n"
    )
    rooms = {name.split(".")[1] for name in run_python(code).stdout.split() if "." in name}
    assert rooms <= {"device", "errors", "files", "quant_types"}


def test_import_device_loads_neither_numpy_nor_opencv() -> None:
    code = "import sys, cxr_compress.device; print('numpy' in sys.modules, 'cv2' in sys.modules)"
    assert run_python(code).stdout == "False False\n"


@pytest.mark.parametrize("name", cxr_compress.device.__all__)
def test_device_public_name_resolves(name: str) -> None:
    assert getattr(cxr_compress.device, name) is not None


def test_device_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Clasifier'"):
        _ = cxr_compress.device.Clasifier


def test_dir_shows_what_people_need_and_loads_nothing() -> None:
    code = "import sys, cxr_compress, cxr_compress.device as d; print(*dir(cxr_compress)); print(*dir(d))"
    package, device = (line.split() for line in run_python(BLOCKER + code).stdout.splitlines())
    assert {"Classifier", "CompressionError", "Recipe", "__version__", "device", "lite", "structured"} <= set(package)
    assert {"Classifier", "read_model", "verify_model"} <= set(device)
    assert not {"importlib", "Any", "annotations"} & {*package, *device}
