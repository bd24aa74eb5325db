"""The one table of stages: names and sections of their own; what cannot be a stage is one line."""

from __future__ import annotations

import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.pipeline.stage import Stage
from cxr_compress.pipeline.stages import STAGES, register_stage, stages_before
from cxr_compress.pipeline.stages.quantize import Quantize
from cxr_compress.recipe import fields


def test_stages_have_names_of_their_own_and_sections_that_recipes_have():
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    assert {stage.section for stage in STAGES} <= set(fields.SECTIONS)
    assert [stage.name for stage in stages_before(Quantize)] == names[: names.index("quantize")]


class Dim(Stage):
    """A stage of a plug-in, whose section nobody has registered."""

    name, section = "dim", "dim"


def test_stage_that_cannot_be_is_one_line():
    class Twice(Dim):
        name = "recover"

    with pytest.raises(CompressionError, match=r"a run has a stage 'recover' already: register .*Twice as another"):
        register_stage(Twice(), after="repair")
    with pytest.raises(CompressionError, match=r"the stage before 'dim' to be one of base, look, .*; got 'recovery'"):
        register_stage(Dim(), after="recovery")
    with pytest.raises(CompressionError, match="stage 'dim' reads section 'dim': call register_section first"):
        register_stage(Dim(), after="recover")
