"""The steps of a classification."""
