"""The reference network, from https://pytorch.org/tutorials/beginner/basics/buildmodel_tutorial.html."""

from torch import nn


class TutorialNetwork(nn.Module):
    """The tutorial's class, unchanged."""

    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )

    def forward(self, x):
        x = self.flatten(x)
        logits = self.linear_relu_stack(x)
        return logits  # noqa: RET504 (unchanged)
