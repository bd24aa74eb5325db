"""The search for the smallest model that keeps a tolerance, or for the best one of a given size."""

from cxr_compress.pipeline.search.bounds import Bound, bounds_of
from cxr_compress.pipeline.search.candidates import Candidate, grid
from cxr_compress.pipeline.search.plot import draw_search
from cxr_compress.pipeline.search.record import RECORD_NAME, Point, SearchRecord
from cxr_compress.pipeline.search.run import SearchResult, search
from cxr_compress.pipeline.search.runner import UNCUT, DevJudge, Runner, folder_name, shortened
from cxr_compress.pipeline.search.runs import CandidateRuns
from cxr_compress.pipeline.search.score import CandidateScore, score_on_dev
from cxr_compress.pipeline.search.spec import GOALS, SearchSpec
from cxr_compress.pipeline.search.start import search_recipe

__all__ = [
    "GOALS",
    "RECORD_NAME",
    "UNCUT",
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
