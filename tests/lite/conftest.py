"""Conversions that several tests look at, made once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_compress.device.runner import Runner
from cxr_compress.lite import QUANT_TYPES, LiteModel, convert
from tests.lite import nets


def run(content: bytes, images: np.ndarray) -> np.ndarray:
    """Real-valued outputs of a file, image by image, as a device computes them."""
    return Runner(content)(images)


def convert_all(model: Any, *, seed: int = 1) -> dict[str, LiteModel]:
    """All quant types, calibrated on 32 images."""
    images = nets.batch(32, model.input_shape[1], seed=seed)
    return convert(model, list(QUANT_TYPES), calibration=[images], calibration_steps=32)


@pytest.fixture(scope="session")
def chain() -> Any:
    return nets.chain()


@pytest.fixture(scope="session")
def chain_files(chain: Any) -> dict[str, LiteModel]:
    return convert_all(chain)


@pytest.fixture(scope="session")
def block() -> Any:
    return nets.dense_block()


@pytest.fixture(scope="session")
def block_files(block: Any) -> dict[str, LiteModel]:
    return convert_all(block)
