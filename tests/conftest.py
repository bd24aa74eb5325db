"""What every test shares: the hypothesis profile, real data when it is there, absl flags parsed once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every machine: a red run can be repeated, a green one means the same everywhere.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent


def find_data() -> Path | None:
    """The folder of real X-rays: ``$CXR_DATA``, else ``../shared/data`` beside the checkout, else None."""
    named = os.environ.get("CXR_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def cxr_data() -> Path:
    """The folder of real X-rays; tests that need it skip by name where it is missing."""
    folder = find_data()
    if folder is None:
        pytest.skip("real X-rays not found: set CXR_DATA to a folder that holds kermany224/, nih_mini/, ...")
    return folder


@pytest.fixture(scope="session")
def densenet121():
    """One DenseNet121 with 14 logits at 224 px and a living signal, shared by the tests that need the real thing."""
    from cxr_compress.models import chexnet
    from tests.nets import enliven

    return enliven(chexnet())
