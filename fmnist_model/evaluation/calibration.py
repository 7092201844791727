"""Calibrate probabilities by temperature scaling.

Source: Guo et al., On Calibration of Modern Neural Networks (arXiv:1706.04599), section 4.2.
"""

import math

from torch import Tensor

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
"""Bounds of the temperature. If all images are classified correctly, or at random, the best would be 0 or infinite."""

_BISECTION_STEPS = 40
"""Number of times to halve the range of the temperature's logarithm. This gives 11 digits of the temperature."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature that minimizes the log loss of the logits divided by it.

    The log loss is convex in the inverse temperature, so its minimum is where its slope changes sign. Bisection in
    float64 finds it.

    Args:
        logits: logits of images that the network was not trained on, `[n, 10]`.
        labels: their classes, int64 `[n]`, on the same device.

    Returns:
        A temperature from 0.05 to 20. It is 1 if all temperatures are equally good.

    Raises:
        ValueError: `logits` is empty, or a logit is not finite.
    """
    if not len(labels):
        raise ValueError("The temperature can't be fitted without images.")
    if not logits.isfinite().all():
        raise ValueError("The temperature can't be fitted, because the network's logits are not all finite.")
    logits = logits.double()
    margins = logits - logits.gather(1, labels[:, None])  # so that the log loss is the mean of logsumexp(margins / T)

    def slope(inverse: float) -> float:
        """Return the slope of the log loss at an inverse temperature."""
        return ((margins * inverse).softmax(1) * margins).sum(1).mean().item()

    if slope(1.0) == 0:
        return 1.0
    low, high = math.log(1 / HIGHEST_TEMPERATURE), math.log(1 / LOWEST_TEMPERATURE)
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)
