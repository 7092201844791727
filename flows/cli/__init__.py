"""The `fmnist` command."""
