"""Colors of all charts."""

INK, QUIET = "#1f2933", "#5f6c7b"
"""Text, and secondary text and lines."""

WINNER, OTHER = "#c2410c", "#9db2c6"
"""What the eye should find first, and what surrounds it."""

SECOND = "#2f6690"
"""A second line or bar next to one in `WINNER`."""
