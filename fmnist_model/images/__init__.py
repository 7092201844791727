"""Decode image files into model input."""

from typing import Final

TRANSFORM_VERSION: Final = 2
"""Version of the transform in `decode.py`. Predictions, models and datasets carry it.

2: reads the orientation alone, takes files with small flaws and more formats, scales deep pixels or rejects them, and
lets libjpeg scale. Grey pictures of 28x28 with 8 bits are decoded as before.
1: everything before, and records without a version.
"""
