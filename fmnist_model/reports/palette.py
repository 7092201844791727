"""Colours that the project's pictures share."""

INK, QUIET = "#1f2933", "#5f6c7b"
"""Of text, and of text and lines that stand back."""

WINNER, OTHER = "#c2410c", "#9db2c6"
"""What the eye should find first, and what surrounds it."""

SECOND = "#2f6690"
"""A line beside one in `WINNER`."""
