"""Regular expressions over layer paths, as users give them."""

from __future__ import annotations

import re
from collections.abc import Callable

from cxr_compress.errors import CompressionError


def path_matcher(pattern: str, option: str) -> Callable[[str], bool]:
    """Whether a layer's whole path matches a pattern; `option` names for the user where the pattern came from.

    Raises:
        CompressionError: the pattern is not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CompressionError(
            f"{option}: expected regular expressions over layer paths, got {pattern!r}: {error}; put a backslash in "
            "front of characters that stand for themselves"
        ) from error
    return lambda path: compiled.fullmatch(path) is not None
