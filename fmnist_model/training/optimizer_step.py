"""One step of training: forward, backward, the optimizers, and the average of the weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fmnist_model.network import NeuralNetwork, compute_logits
from fmnist_model.training.augmentation import scale
from fmnist_model.training.ranks import Ranks
from fmnist_model.training.recipe import TrainingRecipe


class TrainingStep:
    """A network with its optimizers and the average of its weights, and the step that updates them."""

    def __init__(self, network: NeuralNetwork, recipe: TrainingRecipe, global_batch_size: int, ranks: Ranks) -> None:
        """Prepare to train a network in place.

        Args:
            network: on the device where it is trained, the same on every rank.
            recipe: optimizers' settings, label smoothing and weight averaging.
            global_batch_size: images per step, over all ranks together.
            ranks: the ranks that train together.
        """
        self.network = network
        self.averages = recipe.weight_averaging > 0
        """Whether the weights are averaged."""
        self.average = copy.deepcopy(network) if self.averages else network
        """The network with averaged weights, or `network` itself if they are not averaged."""
        self.steps_averaged = 0
        """Number of steps in the average."""
        self.optimizers = _make_optimizers(network, recipe, ranks)
        self.peak_rate = recipe.learning_rate
        """Highest learning rate of the schedule."""
        self._recipe = recipe
        self._ranks = ranks
        self._loss_scale = ranks.count / global_batch_size
        self._trained: nn.Module = _Trained(network)
        if ranks.count > 1:
            self._trained = DistributedDataParallel(
                self._trained, process_group=ranks.group, gradient_as_bucket_view=True
            )

    def train(self) -> None:
        """Switch the network to training mode."""
        self._trained.train()

    def take(self, images: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        """Take one step.

        Args:
            images: this rank's part of the batch, uint8 `[m, 28, 28]`.
            labels: their classes, int64 `[m]`.
            learning_rate: learning rate of the hidden layers' matrices.

        Returns:
            This rank's summed loss, in nats, and number of correct predictions, float64 `[2]`, on the device.
        """
        outcome = self.update_weights(images, labels, learning_rate)
        if self.averages:
            self.update_average(self.next_average_weight())
        return outcome

    def update_weights(self, images: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        """Do what `take` does, except for updating the average."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["share"]
        logits = self._trained(scale(images))
        loss = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=self._recipe.label_smoothing)
        # DDP averages over ranks. If the batch doesn't divide evenly, their slices differ by one image.
        (loss * self._loss_scale).backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            return torch.stack([loss.detach(), logits.argmax(1).eq(labels).sum()]).double()

    def next_average_weight(self) -> float:
        """Count one more step in the average, and return the weight of its new weights, 0 to 1.

        It is larger in the first steps. Otherwise the average would be dominated by the random initial weights.
        """
        steps = self.steps_averaged
        self.steps_averaged += 1
        return 1 - min(self._recipe.weight_averaging, (1 + steps) / (10 + steps)) if steps else 1.0

    def update_average(self, weight: float) -> None:
        """Move the average towards the current weights, by `weight` of the distance.

        `torch.optim.swa_utils.AveragedModel` would synchronize with the device in every step to read its step count.
        """
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.parameters()], [*self.network.parameters()], weight)

    def optimizer_states(self) -> list[dict[str, Any]]:
        """Return the optimizers' states in the form they have on a single rank. All ranks must call this together."""
        return [
            self._gather_state(optimizer) if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer.state_dict()
            for optimizer in self.optimizers
        ]

    def _gather_state(self, optimizer: ZeroRedundancyOptimizer) -> dict[str, Any]:
        """Gather the states of all ranks.

        `consolidate_state_dict` does the same on rank 0 in 50 ms instead of 5, because it builds a tensor byte by byte.
        """
        parameters = optimizer.param_groups[0]["params"]
        state = {}
        for number, parameter in enumerate(parameters):
            # One rank has the momentum and the others add zeros, so the sum is the momentum.
            own = optimizer.optim.state.get(parameter, {})
            momentum = own["momentum_buffer"].clone() if own else torch.zeros_like(parameter, requires_grad=False)
            dist.all_reduce(momentum, group=self._ranks.group)
            state[number] = {"momentum_buffer": momentum}
        group = optimizer.optim.param_groups[0] | {"params": [*range(len(parameters))]}
        return {"state": state, "param_groups": [group]}


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """Let NVIDIA's tensor cores multiply float32 matrices within this context, as TF32 with a mantissa of 10 bits."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


class _Trained(nn.Module):
    """The network with the fastest matrix products of its device. DDP needs a module to wrap."""

    def __init__(self, network: NeuralNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return compute_logits(self.network, x)


def _make_optimizers(network: NeuralNetwork, recipe: TrainingRecipe, ranks: Ranks) -> list[torch.optim.Optimizer]:
    """Make Muon for the hidden layers' matrices, and AdamW for the output layer and the biases.

    This split follows Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. Orthogonalizing
    the matrices costs as much as half a step, so several ranks divide them among themselves.
    """
    *hidden, output = [layer for layer in network.linear_relu_stack if isinstance(layer, nn.Linear)]
    matrices = [{"params": [layer.weight for layer in hidden], "share": 1.0}]
    others = [*(layer.bias for layer in hidden), *output.parameters()]
    if ranks.count > 1:
        muon: torch.optim.Optimizer = ZeroRedundancyOptimizer(
            matrices, torch.optim.Muon, process_group=ranks.group, weight_decay=recipe.weight_decay
        )
    else:
        muon = torch.optim.Muon(matrices, weight_decay=recipe.weight_decay)
    adamw = torch.optim.AdamW(
        [{"params": others, "share": recipe.output_learning_rate_share}],
        betas=(0.9, 0.95),
        weight_decay=recipe.output_weight_decay,
        fused=True,
    )
    return [muon, adamw]
