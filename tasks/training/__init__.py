"""Train a model: one module per step of the training flow, and what its workers run."""
