"""Prediction tables: plans, shard records, and the Delta tables that readers see (docs/predictions.md)."""
