"""The search for the smallest model that keeps a tolerance, or for the best one of a given size."""

from cxr_compress.pipeline.search.choose import SearchResult, search
from cxr_compress.pipeline.search.record import (
    ORIGINAL,
    RECORD_NAME,
    DevJudge,
    Point,
    Runner,
    SearchRecord,
    draw_search,
    folder_name,
    shortened,
)
from cxr_compress.pipeline.search.runs import CandidateRuns, search_recipe
from cxr_compress.pipeline.search.score import CandidateScore, score_on_dev
from cxr_compress.pipeline.search.spec import GOALS, Bound, Candidate, SearchSpec, bounds_of, grid

__all__ = [
    "GOALS",
    "ORIGINAL",
    "RECORD_NAME",
    "Bound",
    "Candidate",
    "CandidateRuns",
    "CandidateScore",
    "DevJudge",
    "Point",
    "Runner",
    "SearchRecord",
    "SearchResult",
    "SearchSpec",
    "bounds_of",
    "draw_search",
    "folder_name",
    "grid",
    "score_on_dev",
    "search",
    "search_recipe",
    "shortened",
]
