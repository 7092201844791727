"""What is scheduled, triggered or typed: the flows and the `fmnist` command."""
