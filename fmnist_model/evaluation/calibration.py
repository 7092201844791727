"""Probabilities that mean what they say: temperature scaling.

Source: Guo et al., On Calibration of Modern Neural Networks (arXiv:1706.04599), section 4.2.
"""

import math

from torch import Tensor

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
"""Where all images are classified rightly, or at random, the best temperature would be 0 or infinite."""

_HALVINGS = 40
"""Of the range of the temperature's logarithm: to 11 digits of the temperature."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature by which to divide the logits, so that the log loss on these images is least.

    The log loss is convex in the inverse temperature, so its minimum is where its slope changes sign: found by
    bisection, in float64.

    Args:
        logits: `[n, 10]`, of images that the network was not trained on.
        labels: int64 `[n]`, their classes, on the same device.

    Returns:
        0.05 to 20; 1 where no temperature is better than another.

    Raises:
        ValueError: there is no image, or a logit is not finite.
    """
    if not len(labels):
        raise ValueError("There is no image to fit the temperature on.")
    if not logits.isfinite().all():
        raise ValueError("The temperature can't be fitted: the network's logits are not all finite.")
    logits = logits.double()
    margins = logits - logits.gather(1, labels[:, None])  # so that the log loss is the mean of logsumexp(margins / T)

    def slope(inverse: float) -> float:
        """Of the log loss, by the inverse temperature."""
        return ((margins * inverse).softmax(1) * margins).sum(1).mean().item()

    if slope(1.0) == 0:
        return 1.0
    low, high = math.log(1 / HIGHEST_TEMPERATURE), math.log(1 / LOWEST_TEMPERATURE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)
