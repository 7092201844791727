"""One step of training: forward, backward, the optimizers, and an average of the weights."""

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

from fmnist_model.network import NeuralNetwork, logits_of
from fmnist_model.training.augmentation import scale
from fmnist_model.training.recipe import TrainingRecipe


class TrainingStep:
    """A network, its optimizers and an average of its weights, and what a step does to them."""

    def __init__(
        self,
        network: NeuralNetwork,
        recipe: TrainingRecipe,
        global_batch_size: int,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """Prepare to train a network, in place.

        Args:
            network: on the device where it is trained, the same on every rank.
            recipe: what to do.
            global_batch_size: images a step, over all ranks together.
            process_group: the ranks that train together; None for one alone.
        """
        self.network = network
        self.averages = recipe.weight_averaging > 0
        """Whether the weights are averaged."""
        self.average = copy.deepcopy(network) if self.averages else network
        """With the averaged weights; the network itself where there are none."""
        self.steps_averaged = 0
        """Steps that are in the average."""
        self.optimizers = _optimizers(network, recipe, process_group)
        self.peak_rate = recipe.learning_rate
        self._recipe = recipe
        self._group = process_group
        self._loss_scale = (dist.get_world_size(process_group) if process_group else 1) / global_batch_size
        self._trained: nn.Module = _Trained(network)
        if process_group is not None and dist.get_world_size(process_group) > 1:
            self._trained = DistributedDataParallel(
                self._trained, process_group=process_group, gradient_as_bucket_view=True
            )

    def train(self) -> None:
        """Bring the network into its training mode."""
        self._trained.train()

    def take(self, images: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        """Take one step.

        Args:
            images: uint8 `[m, 28, 28]`, this rank's part of the batch.
            labels: int64 `[m]`.
            learning_rate: of the hidden layers' matrices.

        Returns:
            This rank's summed loss and number of correct predictions, float64 `[2]`, on the device.
        """
        outcome = self.move(images, labels, learning_rate)
        if self.averages:
            self.follow(self.next_weight())
        return outcome

    def move(self, images: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        """What `take` does, but for the average."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["share"]
        logits = self._trained(scale(images))
        loss = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=self._recipe.label_smoothing)
        # DDP averages over ranks; slices differ by one image at most where the batch does not divide evenly.
        (loss * self._loss_scale).backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            return torch.stack([loss.detach(), logits.argmax(1).eq(labels).sum()]).double()

    def next_weight(self) -> float:
        """Weight of the newest weights in the average, in the next step; it counts as taken.

        In the first steps it is larger, or the random weights would stay in the average for long.
        """
        steps = self.steps_averaged
        self.steps_averaged += 1
        return 1 - min(self._recipe.weight_averaging, (1 + steps) / (10 + steps)) if steps else 1.0

    def follow(self, weight: float) -> None:
        """Let the averaged weights follow, `weight` of the way.

        `torch.optim.swa_utils.AveragedModel` has its count on the device or brings it there, and waits in every step.
        """
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.parameters()], [*self.network.parameters()], weight)

    def optimizer_states(self) -> list[dict[str, Any]]:
        """The state of each optimizer, as it is where one rank trains alone. To be called on all ranks at once."""
        return [
            self._whole_state(optimizer) if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer.state_dict()
            for optimizer in self.optimizers
        ]

    def _whole_state(self, optimizer: ZeroRedundancyOptimizer) -> dict[str, Any]:
        """What `consolidate_state_dict` makes on rank 0, by making a tensor byte by byte: 50 ms instead of 5."""
        parameters = optimizer.param_groups[0]["params"]
        state = {}
        for number, parameter in enumerate(parameters):
            own = optimizer.optim.state.get(parameter, {})  # of one rank, so that the sum is what it has
            momentum = own["momentum_buffer"].clone() if own else torch.zeros_like(parameter, requires_grad=False)
            dist.all_reduce(momentum, group=self._group)
            state[number] = {"momentum_buffer": momentum}
        group = optimizer.optim.param_groups[0] | {"params": [*range(len(parameters))]}
        return {"state": state, "param_groups": [group]}


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """Have NVIDIA's matrix units multiply float32 matrices while this is open: TF32, with 10 bits of mantissa."""
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
    """The network as it is trained, with the matrix products that the device is best at."""

    def __init__(self, network: NeuralNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.network, x)


def _optimizers(
    network: NeuralNetwork, recipe: TrainingRecipe, process_group: dist.ProcessGroup | None
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden layers' matrices, as its author advises, and AdamW for the output layer and the biases.

    Making a matrix orthogonal costs as much as half a step, so that of several ranks each does some of the matrices.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """
    *hidden, output = [layer for layer in network.linear_relu_stack if isinstance(layer, nn.Linear)]
    matrices = [{"params": [layer.weight for layer in hidden], "share": 1.0}]
    others = [*(layer.bias for layer in hidden), *output.parameters()]
    if process_group is not None and dist.get_world_size(process_group) > 1:
        muon: torch.optim.Optimizer = ZeroRedundancyOptimizer(
            matrices, torch.optim.Muon, process_group=process_group, weight_decay=recipe.weight_decay
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
