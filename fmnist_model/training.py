"""The training step and the loop round it: plain PyTorch, on one process or as one rank of several.

The data set lies on the device as uint8; each rank takes its slice of one seeded permutation, and scaling and
augmentation happen on the device. The global batch and its random draws depend on seed and epoch alone, not on the
number of ranks, and an epoch needs no random state of the one before it.
"""

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fmnist_model.augmentation import AugmentationDraws, scale
from fmnist_model.dataset import LabelledImages
from fmnist_model.network import NeuralNetwork
from fmnist_model.recipe import TrainingRecipe


@dataclass(frozen=True)
class StepProgress:
    """Where a rank stands in the middle of an epoch. Loss and accuracy are this rank's own, since the epoch began."""

    epoch: int
    """The one under way, 1 for the first."""
    epochs: int
    step: int
    """Steps done, of the whole run."""
    steps: int
    global_batch_size: int
    """Images a step, over all ranks together."""
    loss: float
    accuracy: float
    images_per_second: float
    """Of all ranks together."""


@dataclass(frozen=True)
class EpochMetrics:
    """An epoch's outcome, over all ranks."""

    epoch: int
    loss: float
    """Mean over the epoch's training images, as they were augmented."""
    accuracy: float
    """Likewise."""
    learning_rate: float
    """Of the last step."""
    images: int
    """Trained on in this epoch."""
    seconds: float


class TrainingDiverged(ArithmeticError):
    """The loss is no longer a finite number."""


class TrainingRun:
    """A network being trained: weights, optimizer, schedule, and how many epochs are done."""

    def __init__(
        self,
        recipe: TrainingRecipe,
        data: LabelledImages,
        device: torch.device,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """Begin a run, or make the place into which `load_state` brings one back.

        Args:
            recipe: what to do.
            data: the whole training set, the same on every rank.
            device: where to train.
            process_group: the ranks that train together; None for one alone.
        """
        self.recipe = recipe
        self.epochs_done = 0
        self._device = device
        self._group = process_group
        self._rank = dist.get_rank(process_group) if process_group else 0
        self._world_size = dist.get_world_size(process_group) if process_group else 1
        self._images = torch.from_numpy(data.images).to(device)
        self._labels = torch.from_numpy(data.labels).to(device)
        self._batch_size = min(recipe.global_batch_size, len(data))
        self.steps_per_epoch = len(data) // self._batch_size

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = NeuralNetwork().to(device)
        self._trained: nn.Module = self.network
        if self._world_size > 1:
            self._trained = DistributedDataParallel(self.network, process_group=process_group)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        total_steps = recipe.epochs * self.steps_per_epoch
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            max_lr=recipe.learning_rate,
            total_steps=total_steps,
            pct_start=0.25 if total_steps != 4 else 0.3,  # OneCycleLR divides by pct_start * total_steps - 1
            cycle_momentum=False,
        )

    def epochs(self, on_step: Callable[[StepProgress], None] | None = None) -> Iterator[EpochMetrics]:
        """Train the epochs that are left, one at a time.

        Args:
            on_step: told four times a second at most how far this rank is.

        Raises:
            TrainingDiverged: the loss became NaN or infinite; the message names epoch and step.
        """
        while self.epochs_done < self.recipe.epochs:
            yield self._train_epoch(on_step)

    def _train_epoch(self, on_step: Callable[[StepProgress], None] | None) -> EpochMetrics:
        self._trained.train()
        epoch = self.epochs_done + 1
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._labels), generator=generator).to(self._device)
        totals = torch.zeros(3, dtype=torch.float64, device=self._device)  # loss, correct, images: of this rank
        began = told = time.perf_counter()
        for step in range(1, self.steps_per_epoch + 1):
            totals += self._train_step(order[(step - 1) * self._batch_size : step * self._batch_size], generator)
            now = time.perf_counter()
            if on_step and (now - told > 0.25 or step == self.steps_per_epoch):
                told = now
                on_step(self._progress(epoch, step, totals, now - began))
        if self._world_size > 1:
            dist.all_reduce(totals, group=self._group)
        loss, correct, images = totals.tolist()
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"The loss became {loss} in epoch {epoch}, before step {epoch * self.steps_per_epoch}. "
                f"Lower the learning rate ({self.recipe.learning_rate}) or the batch size."
            )
        self.epochs_done = epoch
        return EpochMetrics(
            epoch=epoch,
            loss=loss / images,
            accuracy=correct / images,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            images=int(images),
            seconds=time.perf_counter() - began,
        )

    def _train_step(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        # Every rank draws for the whole batch and applies its slice, so that the draws don't depend on the world size.
        draws = AugmentationDraws.draw(
            len(batch), generator, flip=self.recipe.flip, shift_pixels=self.recipe.shift_pixels
        )
        mine = slice(len(batch) * self._rank // self._world_size, len(batch) * (self._rank + 1) // self._world_size)
        images, labels = draws.apply(scale(self._images[batch[mine]]), mine), self._labels[batch[mine]]
        self._optimizer.zero_grad(set_to_none=True)
        logits = self._trained(images)
        loss = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.recipe.label_smoothing)
        # DDP averages over ranks; slices differ by one image at most where the batch does not divide evenly.
        (loss * (self._world_size / len(batch))).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
        with torch.no_grad():
            correct = logits.argmax(1).eq(labels).sum()
            return torch.stack([loss.detach().double(), correct.double(), correct.new_tensor(len(labels)).double()])

    def _progress(self, epoch: int, step: int, totals: Tensor, seconds: float) -> StepProgress:
        loss, correct, images = totals.tolist()
        return StepProgress(
            epoch=epoch,
            epochs=self.recipe.epochs,
            step=(epoch - 1) * self.steps_per_epoch + step,
            steps=self.recipe.epochs * self.steps_per_epoch,
            global_batch_size=self._batch_size,
            loss=loss / max(images, 1),
            accuracy=correct / max(images, 1),
            images_per_second=step * self._batch_size / seconds,
        )

    def save_state(self) -> bytes:
        """Everything besides the weights that a resumed run needs; read it back with `load_state`."""
        buffer = io.BytesIO()
        state = {
            "recipe": asdict(self.recipe),
            "epochs_done": self.epochs_done,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def load_state(self, weights: NeuralNetwork, state: bytes) -> Self:
        """Go on where another run of the same recipe stood.

        Args:
            weights: a network with its weights.
            state: what `save_state` returned there.

        Raises:
            ValueError: it was another recipe or number of images, or is no such state. Nothing in it is executed.
        """
        try:
            loaded: dict[str, Any] = torch.load(io.BytesIO(state), map_location=self._device, weights_only=True)
        except Exception as error:  # noqa: BLE001 (torch.load raises what its unpickler and zip reader happen to raise)
            raise ValueError(f"The training state can't be read: {error}") from None
        if not isinstance(loaded, dict) or not {"recipe", "epochs_done", "optimizer", "schedule"} <= loaded.keys():
            raise ValueError("The training state can't be read: it is none that a training run saved.")
        if loaded["recipe"] != asdict(self.recipe):
            raise ValueError(f"The training state is of another recipe: {loaded['recipe']}")
        if (steps := loaded["schedule"]["total_steps"]) != self._schedule.total_steps:
            raise ValueError(
                f"The training state is of a run of {steps} steps; on these images it is {self._schedule.total_steps}."
            )
        self.network.load_state_dict(weights.state_dict())
        self._optimizer.load_state_dict(loaded["optimizer"])
        self._schedule.load_state_dict(loaded["schedule"])
        self.epochs_done = loaded["epochs_done"]
        return self
