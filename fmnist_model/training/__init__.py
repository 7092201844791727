"""Train the network: recipe, augmentation, optimizer step and loop."""
