"""The images of a run: in color where the set has color, and gray where nobody says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr_compress.errors import DataError
from cxr_compress.pipeline.data import load_run_data
from cxr_compress.recipe import make_recipe
from tests.data.readers.test_isic import write_ham


def test_images_of_a_new_model_have_the_color_of_their_set_unless_the_recipe_says_another(tmp_path: Path) -> None:
    write_ham(tmp_path)
    recipe = make_recipe("tiny_chexnet", {"dataset": "isic", "input_size": 8})
    data = load_run_data(recipe, tmp_path, lambda *progress: None)
    assert data.spec.color == "rgb"
    assert data.train.images.shape[1:] == (8, 8, 3)
    with pytest.raises(DataError, match="expected a gray image, got color"):
        load_run_data(recipe.with_values(color="gray"), tmp_path, lambda *progress: None)
