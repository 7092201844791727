"""Maintenance of prediction tables: compact, delete rows, and remove leftovers."""
