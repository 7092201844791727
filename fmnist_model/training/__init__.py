"""Train the network: recipe, augmentation, optimizer step and training loop."""
