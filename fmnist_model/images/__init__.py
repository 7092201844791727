"""Decode image files into model input."""
