"""Classify images: one module per step of the classification flow, and what its actors run."""
