"""The flows, and the `fmnist` command that runs them."""
