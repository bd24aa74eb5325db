"""The stages of a run in their order: the one table that runs, resumes, forecasts, searches and reports them."""

from __future__ import annotations

from collections.abc import Iterator

from cxr_compress.errors import CompressionError
from cxr_compress.pipeline.stage import Stage
from cxr_compress.pipeline.stages.deliver import DeliverCompressed, DeliverOriginal
from cxr_compress.pipeline.stages.original import LookAtOriginal, MakeOriginal
from cxr_compress.pipeline.stages.price import PriceLayers
from cxr_compress.pipeline.stages.prune_weights import PruneWeights
from cxr_compress.pipeline.stages.quantize import Quantize, TrainQuantized
from cxr_compress.pipeline.stages.remove_filters import RemoveFilters, RepairPruned, SelectFilters
from cxr_compress.pipeline.stages.score import Score
from cxr_compress.pipeline.stages.train import Finetune, Recover
from cxr_compress.recipe.fields import SECTIONS

STAGES: list[Stage] = [
    MakeOriginal(),
    LookAtOriginal(),
    DeliverOriginal(),
    PriceLayers(),
    SelectFilters(),
    RemoveFilters(),
    RepairPruned(),
    Recover(),
    PruneWeights(),
    Finetune(),
    Quantize(),
    TrainQuantized(),
    DeliverCompressed(),
    Score(),
]


def register_stage(stage: Stage, *, after: str) -> None:
    """Let runs have another stage; its section, if it has one, is registered before.

    Args:
        stage: it.
        after: name of the stage that it follows.

    Raises:
        CompressionError: there is a stage of that name already, none to follow, or no section of the recipe for it.
    """
    names = [known.name for known in STAGES]
    if stage.name in names:
        raise CompressionError(
            f"a run has a stage {stage.name!r} already: register {type(stage).__qualname__} as another"
        )
    if after not in names:
        raise CompressionError(
            f"expected the stage before {stage.name!r} to be one of {', '.join(names)}; got {after!r}"
        )
    if stage.section and stage.section not in SECTIONS:
        raise CompressionError(f"stage {stage.name!r} reads section {stage.section!r}: call register_section first")
    STAGES.insert(names.index(after) + 1, stage)


def stages_before(kind: type[Stage]) -> Iterator[Stage]:
    """The stages in front of one."""
    for stage in STAGES:
        if isinstance(stage, kind):
            return
        yield stage
