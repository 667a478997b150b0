"""Numbers of texts and answers, made by the same native code that serves the decisions.

Shapes: matrices have a row a text. Reading starts at `text_features`.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mainspring._native import route_features, route_names, route_signals

Floats = npt.NDArray[np.float64]

BUCKET_COUNT = 65_536
"""Buckets that grams are hashed into."""


def text_features(texts: Sequence[str]) -> tuple[Any, Floats]:
    """What texts look like.

    Returns:
        Counts of the grams in each text (sparse, texts x `BUCKET_COUNT`), and the surface features
        (texts x 10).
    """
    surface, lengths, buckets, counts = route_features(list(texts))
    width = len(route_names()[0])
    rows = np.frombuffer(surface, "<f4").reshape(len(texts), width).astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, "<u4"), dtype=np.int64)])
    grams = sparse.csr_matrix(
        (
            np.frombuffer(counts, "<u4").astype(np.float64),
            np.frombuffer(buckets, "<u2").astype(np.int64),
            starts,
        ),
        shape=(len(texts), BUCKET_COUNT),
    )
    grams.sort_indices()
    return grams, rows


def answer_signals(evidence: Sequence[dict[str, Any]]) -> Floats:
    """What the checks of answers find (answers x signals)."""
    found = route_signals(json.dumps(list(evidence)).encode())
    return np.frombuffer(found, "<f8").reshape(len(evidence), len(route_names()[1])).copy()


def document_rarity(grams: Any, *, document_count_min: int) -> Floats:
    """How rare each bucket is among the texts; 0 for one in fewer than `document_count_min`.

    Source:
        The smoothed inverse document frequency of scikit-learn 1.9, `TfidfTransformer`.
    """
    documents = np.bincount(grams.indices, minlength=BUCKET_COUNT).astype(np.float64)
    rarity = np.log((1.0 + grams.shape[0]) / (1.0 + documents)) + 1.0
    rarity[documents < document_count_min] = 0.0
    return np.asarray(rarity.astype(np.float32), dtype=np.float64)


def weighted(grams: Any, rarity: Floats) -> Any:
    """The grams with sublinear counts times rarity, each text at length 1."""
    values = grams.copy()
    values.data = (1.0 + np.log(values.data)) * rarity[values.indices]
    lengths = np.sqrt(np.asarray(values.multiply(values).sum(axis=1)).ravel())
    lengths[lengths == 0.0] = 1.0
    return sparse.diags(1.0 / lengths) @ values
