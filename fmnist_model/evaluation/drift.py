"""How far the mix of predicted classes moved from one batch to the next."""

from collections.abc import Sequence

import numpy as np

MOVED_SOME, MOVED_MUCH = 0.1, 0.25
"""The customary limits: below the first nothing to speak of, from the second on a population of another kind.

Source: N. Siddiqi, Credit Risk Scorecards, Wiley 2006, chapter 11.
"""


def population_stability_index(before: Sequence[int], after: Sequence[int]) -> float:
    """Population stability index of two mixes: the sum over classes of (p - q) ln(p / q); 0 where they are the same.

    A class that one of them lacks counts there as half an image, or the logarithm would be infinite.

    Args:
        before: images a class, q.
        after: likewise, in the same order, p.

    Raises:
        ValueError: one of them has no images, or they have not the same classes.
    """
    if len(before) != len(after) or not sum(before) or not sum(after):
        raise ValueError("a mix needs images, and two need the same classes")
    q, p = (np.maximum(np.asarray(counts, float), 0.5) / sum(counts) for counts in (before, after))
    return float(((p - q) * np.log(p / q)).sum())
