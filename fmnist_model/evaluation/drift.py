"""Measure how far the mix of predicted classes moved from one batch to the next."""

from collections.abc import Sequence

import numpy as np

MOVED_SOME, MOVED_MUCH = 0.1, 0.25
"""The usual thresholds of the index. Below the first, the mix is stable. From the second, the population has changed.

Source: N. Siddiqi, Credit Risk Scorecards, Wiley 2006, chapter 11.
"""


def population_stability_index(before: Sequence[int], after: Sequence[int]) -> float:
    """Compute the population stability index of two class mixes: the sum over classes of (p - q) ln(p / q).

    A class without images counts as half an image, because the logarithm would otherwise be infinite.

    Args:
        before: images per class, whose shares are q.
        after: images per class in the same order, whose shares are p.

    Returns:
        0 if both mixes are the same, otherwise more.

    Raises:
        ValueError: a mix has no images, or the mixes have different numbers of classes.
    """
    if len(before) != len(after):
        raise ValueError(f"The mixes have {len(before)} and {len(after)} classes. Both need the same classes.")
    if not sum(before) or not sum(after):
        raise ValueError(f"The mixes have {sum(before)} and {sum(after)} images. Both need at least one.")
    q, p = (np.maximum(np.asarray(counts, float), 0.5) / sum(counts) for counts in (before, after))
    return float(((p - q) * np.log(p / q)).sum())
