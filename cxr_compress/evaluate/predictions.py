"""What a model said about each film, for others to analyse again: no file names, no patient ids."""

from __future__ import annotations

import csv
import hashlib
import io
import secrets

import numpy as np
from numpy.typing import NDArray

from cxr_compress.evaluate.score import Evaluation

_FIRST_COLUMNS = ("film", "patient")
PREDICTIONS_START = f"{','.join(_FIRST_COLUMNS)},".encode()  # which every such file begins with
_KEY_BYTES = 32
_HASH_BYTES = 8  # 16 hexadecimal digits: two of 100,000 patients share one with a chance below one in a billion


def predictions_csv(scored: Evaluation, *, key: bytes | None = None) -> str:
    """A CSV with a row per film: its number in the split, its hashed patient, its labels and its logits.

    Films of one patient carry the same hash, so intervals can be computed again. The hash is keyed with random bytes
    that are thrown away: ids of patients are short numbers, and a plain hash of them could be undone by trying all.
    Hence the hashes of two files differ; rows of two models on one split are paired by the film's number.

    Args:
        scored: The films.
        key: Of the hash; None for a random one. Keep one for yourself only to link files of your own.

    Returns:
        Columns ``film``, ``patient``, ``label_FINDING`` (empty where unknown) and ``logit_FINDING``; of classes that
        exclude one another also ``probability_CLASS`` and ``predicted``. Numbers have the digits that read back as the
        same float32.
    """
    secret = secrets.token_bytes(_KEY_BYTES) if key is None else key
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    exclusive = scored.shares is not None and scored.decisions is not None
    kinds = ("label", "logit", "probability") if exclusive else ("label", "logit")
    names = [f"{kind}_{finding}" for kind in kinds for finding in scored.findings]
    writer.writerow([*_FIRST_COLUMNS, *names, *(["predicted"] if exclusive else [])])
    for film, patient in enumerate(scored.patients):
        labels = ["" if np.isnan(label) else int(label) for label in scored.labels[film]]
        row = [film, _hashed(patient, secret), *labels, *_digits(scored.logits[film])]
        if scored.shares is not None and scored.decisions is not None:
            # Empty where the likeliest class of the model is none of those that were scored.
            called = [name for name, flag in zip(scored.findings, scored.decisions[film], strict=True) if flag]
            row += [*_digits(scored.shares[film]), "".join(called)]
        writer.writerow(row)
    return text.getvalue()


def _digits(values: NDArray[np.float32]) -> list[str]:
    return [np.format_float_positional(value, unique=True, trim="0") for value in values]


def _hashed(patient: str, key: bytes) -> str:
    return hashlib.blake2b(patient.encode("utf-8"), key=key, digest_size=_HASH_BYTES).hexdigest()
