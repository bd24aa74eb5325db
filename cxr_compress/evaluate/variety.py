"""Whether images without labels show what the original model knows: what it says of them against its training images.

Layers that are refitted on images of one class alone (what a screening clinic has) give wrong answers to the other,
the more the more such images there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr_compress.metrics.answers import AnswerStatistics

# A share is odd where so few of so many images would be drawn once in a hundred times, and it is a third or less.
_ODD, _FEW = 0.01, 1 / 3
# Where nothing is known of the training images: so few may as well be mistakes of the model.
_HARDLY_ANY = 3
_NARROW = 0.5  # of the spread, or of the directions, on the training images
_DO = "what is refitted on these images can break what they do not show"


@dataclass(frozen=True)
class Variety:
    """What the original model says of the images that everything is fitted on.

    Attributes:
        findings: (k,) names.
        found: of these images.
        known: of its training images, as its file records them; None where it records nothing.
        assumed: what was taken for granted about the model, in words.
    """

    findings: tuple[str, ...]
    found: AnswerStatistics
    known: AnswerStatistics | None
    assumed: str

    @property
    def problem(self) -> str:
        """Why nothing should be built on it; "" where nothing speaks against it."""
        constant = [name for name, spread in zip(self.findings, self.found.std, strict=True) if not spread]
        if not constant:
            return ""
        return (
            f"the original model gives each of {self.found.images} images the same answer for {', '.join(constant)}: "
            "most likely they all show the same, or were prepared in another way than the model was trained (--preset)"
        )

    def line(self) -> str:
        """One line: what was assumed, and what the model says."""
        each = zip(self.findings, self.found.above, self.found.mean, self.found.std, strict=True)
        said = "; ".join(
            f"{name} {round(above * self.found.images)} above the threshold, logits {mean:.2f} +- {std:.2f}"
            for name, above, mean, std in each
        )
        of_training = "its file records nothing of training images"
        if self.known is not None:
            shares = ", ".join(f"{share:.0%}" for share in self.known.above)
            of_training = f"of {self.known.images} of its training images {shares} were above"
        return f"original model: {self.assumed}; of {self.found.images} images it says: {said} ({of_training})"

    def warnings(self) -> list[str]:
        """What these images lack, with numbers and what to do, a sentence each."""
        return [*self._one_sided(), *(self._narrow(self.known) if self.known is not None else ())]

    def _one_sided(self) -> Iterator[str]:
        """Of findings of which one side is hardly there."""
        for lacking, word, add in ((True, "above", "with"), (False, "below", "without")):
            names = [name for column, name in enumerate(self.findings) if self._lacks(column, positives=lacking)]
            if names:
                counts = [self._count(self.findings.index(name), positives=lacking) for name in names]
                few, listed = "none", ", ".join(names)
                if max(counts):
                    few = "only " + ", ".join(map(str, counts))
                    listed += " in this order" if len(names) > 1 else ""
                yield (
                    f"{few} of {self.found.images} images {'is' if max(counts) <= 1 else 'are'} {word} the threshold "
                    f"for {listed}{self._expected(names, positives=lacking)}: {_DO}; add images {add} the finding"
                )

    def _count(self, column: int, *, positives: bool) -> int:
        above = round(self.found.above[column] * self.found.images)
        return above if positives else self.found.images - above

    def _lacks(self, column: int, *, positives: bool) -> bool:
        """Whether a side of a finding is absent, or so rare that chance is no reason, beside the training images."""
        count = self._count(column, positives=positives)
        if self.known is None:
            return count < _HARDLY_ANY
        usual = self.known.above[column] if positives else 1 - self.known.above[column]
        return count < _FEW * usual * self.found.images and _at_most(count, self.found.images, usual) < _ODD

    def _expected(self, names: Sequence[str], *, positives: bool) -> str:
        if self.known is None:
            return " (of its training images the model file records nothing)"
        shares = [self.known.above[self.findings.index(name)] for name in names]
        usual = ", ".join(f"{share if positives else 1 - share:.0%}" for share in shares)
        return f"; of its training images {usual} were"

    def _narrow(self, known: AnswerStatistics) -> Iterator[str]:
        """Of logits and features that spread less than those of the training images."""
        for name, spread, usual in zip(self.findings, self.found.std, known.std, strict=True):
            if spread < _NARROW * usual:
                yield f"the logits for {name} spread by {spread:.2f}, on training images by {usual:.2f}: {_DO}"
        pairs = {
            "spread": (self.found.features_spread, known.features_spread),
            "span": (self.found.features_rank, known.features_rank),
        }
        for verb, (here, there) in pairs.items():
            if here is not None and there is not None and here < _NARROW * there:
                what = f"{here:.3g} directions, on" if verb == "span" else f"{here:.3g}, on"
                yield f"the pooled features {verb} {what} training images {there:.3g}: {_DO}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "assumed": self.assumed,
            "findings": list(self.findings),
            "images": self.found.images,
            "found": self.found.to_dict(),
            "known": None if self.known is None else self.known.to_dict(),
            "warnings": self.warnings(),
            "problem": self.problem,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Variety:
        """Build what `to_dict` gave."""
        known = fields["known"]
        return cls(
            tuple(fields["findings"]),
            AnswerStatistics.from_dict(fields["found"]),
            None if known is None else AnswerStatistics.from_dict(known),
            str(fields["assumed"]),
        )


def _at_most(count: int, images: int, share: float) -> float:
    """The chance of so few or fewer of so many images, each with this chance."""
    if not 0 < share < 1:
        return float(share <= 0 or count >= images)
    logs = (
        math.lgamma(images + 1)
        - math.lgamma(k + 1)
        - math.lgamma(images - k + 1)
        + k * math.log(share)
        + (images - k) * math.log(1 - share)
        for k in range(count + 1)
    )
    return min(1.0, math.fsum(math.exp(log) for log in logs))
