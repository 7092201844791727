"""The training step and the loop round it: plain PyTorch, on one process or as one rank of several.

The data set lies on the device as uint8; each rank takes its slice of one seeded permutation, and scaling and
augmentation happen on the device. The global batch and its random draws depend on seed and epoch alone, not on the
number of ranks, and an epoch needs no random state of the one before it.
"""

import copy
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fmnist_model.augmentation import Augmentation, scale
from fmnist_model.classes import CLASS_NAMES
from fmnist_model.dataset import LabelledImages
from fmnist_model.network import NeuralNetwork, logits_of
from fmnist_model.recipe import TrainingRecipe

_DIVERGED = 3 * math.log(len(CLASS_NAMES))
"""Mean loss of an epoch, in nats, above which nothing is being learned: three times that of guessing."""

_EVALUATION_BATCH = 1024


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
    validation_loss: float | None
    """Mean over the validation images, as they are, by the averaged weights, in nats; None where there are none."""
    validation_accuracy: float | None
    """Likewise."""
    learning_rate: float
    """Of the last step."""
    images: int
    """Trained on in this epoch."""
    seconds: float
    """Of training and validation."""
    step_losses: NDArray[np.float64]
    """`[steps of the epoch]`: mean over each step's images."""
    step_learning_rates: NDArray[np.float64]
    """Likewise."""


class TrainingDiverged(ArithmeticError):
    """The loss or a weight is no finite number any more, or the loss is larger than that of guessing."""


class TrainingRun:
    """A network being trained: weights and their average, optimizers, and how many epochs are done."""

    def __init__(
        self,
        recipe: TrainingRecipe,
        data: LabelledImages,
        device: torch.device,
        process_group: dist.ProcessGroup | None = None,
        *,
        validation: LabelledImages | None = None,
        initial: NeuralNetwork | None = None,
    ) -> None:
        """Begin a run, or make the place into which `load_state` brings one back.

        Args:
            recipe: what to do.
            data: the images to learn from, the same on every rank.
            device: where to train.
            process_group: the ranks that train together; None for one alone.
            validation: images to evaluate each epoch with, the same on every rank.
            initial: weights to begin with; None: random ones by the recipe's seed.
        """
        self.recipe = recipe
        self.epochs_done = 0
        self._device = device
        self._group = process_group
        self._rank = dist.get_rank(process_group) if process_group else 0
        self._world_size = dist.get_world_size(process_group) if process_group else 1
        images = torch.from_numpy(data.images).to(device)
        self._augmentation = Augmentation(images, flip=recipe.flip, shift_pixels=recipe.shift_pixels)
        self._labels = torch.from_numpy(data.labels)
        self._validation = validation
        self._batch_size = min(recipe.global_batch_size, len(data))
        self.steps_per_epoch = len(data) // self._batch_size

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self._network = NeuralNetwork().to(device)
        if initial is not None:
            self._network.load_state_dict(initial.state_dict())
        self._average, self._steps_averaged = copy.deepcopy(self._network), 0
        self._trained: nn.Module = _Trained(self._network)
        if self._world_size > 1:
            self._trained = DistributedDataParallel(
                self._trained, process_group=process_group, gradient_as_bucket_view=True
            )
        self._optimizers = _optimizers(self._network, recipe, process_group)

    @property
    def network(self) -> NeuralNetwork:
        """The network with the averaged weights, which are those that are validated, kept and used."""
        return self._average

    def epochs(self, on_step: Callable[[StepProgress], None] | None = None) -> Iterator[EpochMetrics]:
        """Train the epochs that are left, one at a time.

        Args:
            on_step: told four times a second at most how far this rank is.

        Raises:
            TrainingDiverged: the loss became NaN, infinite or larger than that of guessing, or a weight NaN or
                infinite; the message names epoch and step. That epoch does not count as done.
        """
        while self.epochs_done < self.recipe.epochs:
            yield self._train_epoch(on_step)

    def _train_epoch(self, on_step: Callable[[StepProgress], None] | None) -> EpochMetrics:
        self._trained.train()
        epoch = self.epochs_done + 1
        began = told = time.perf_counter()
        images, labels = self._draw_epoch(epoch)
        # Summed loss and number of correct predictions of each step.
        outcomes = torch.zeros(self.steps_per_epoch, 2, dtype=torch.float64, device=self._device)
        rates = [self._learning_rate(epoch, step) for step in range(self.steps_per_epoch)]
        for step, rate in enumerate(rates):
            outcomes[step] = self._train_step(images[step], labels[step], rate)
            now = time.perf_counter()
            if on_step and (now - told > 0.25 or step + 1 == self.steps_per_epoch):
                told = now
                on_step(self._progress(epoch, outcomes[: step + 1], now - began))
        if self._world_size > 1:
            dist.all_reduce(outcomes, group=self._group)
        step_losses = outcomes[:, 0].cpu().numpy() / self._batch_size
        self._check_converging(epoch, step_losses)
        validation_loss, validation_accuracy = self._validate()
        self._check_finite(epoch, validation_loss)
        for optimizer in self._optimizers:
            if isinstance(optimizer, ZeroRedundancyOptimizer):
                optimizer.consolidate_state_dict()  # on rank 0, which saves it
        self.epochs_done = epoch
        return EpochMetrics(
            epoch=epoch,
            loss=float(step_losses.mean()),
            accuracy=outcomes[:, 1].sum().item() / (self.steps_per_epoch * self._batch_size),
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=rates[-1],
            images=self.steps_per_epoch * self._batch_size,
            seconds=time.perf_counter() - began,
            step_losses=step_losses,
            step_learning_rates=np.array(rates),
        )

    def _draw_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """This rank's slice of each of the epoch's batches: uint8 `[steps, m, 28, 28]` and int64 `[steps, m]`."""
        # Every rank draws for all images, so that the draws don't depend on the number of ranks.
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._labels), generator=generator)[: self.steps_per_epoch * self._batch_size]
        drawn = self._augmentation.draw(order, generator)
        mine = self._slice(self._batch_size)
        shape = (self.steps_per_epoch, mine.stop - mine.start)
        drawn = drawn.reshape(self.steps_per_epoch, self._batch_size, 3)[:, mine].reshape(-1, 3)
        labels = self._labels[order].reshape(self.steps_per_epoch, self._batch_size)[:, mine]
        return self._augmentation.take(drawn).reshape(*shape, 28, 28), labels.to(self._device)

    def _slice(self, count: int) -> slice:
        """Which of `count` things are this rank's."""
        return slice(count * self._rank // self._world_size, count * (self._rank + 1) // self._world_size)

    def _learning_rate(self, epoch: int, step: int) -> float:
        done, steps = (epoch - 1) * self.steps_per_epoch + step, self.recipe.epochs * self.steps_per_epoch
        warm_up = self.recipe.warm_up * steps
        if done < warm_up:
            return self.recipe.learning_rate * (done + 1) / (warm_up + 1)
        return self.recipe.learning_rate * (1 + math.cos(math.pi * (done - warm_up) / (steps - warm_up))) / 2

    def _train_step(self, images: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        """Take one step; this rank's summed loss and number of correct predictions, float64 `[2]`."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["share"]
        logits = self._trained(scale(images))
        loss = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.recipe.label_smoothing)
        # DDP averages over ranks; slices differ by one image at most where the batch does not divide evenly.
        (loss * (self._world_size / self._batch_size)).backward()  # type: ignore[no-untyped-call]
        for optimizer in self._optimizers:
            optimizer.step()
        with torch.no_grad():
            self._update_average()
            return torch.stack([loss.detach(), logits.argmax(1).eq(labels).sum()]).double()

    def _update_average(self) -> None:
        """Let the averaged weights follow; at first they keep less, or the random ones would stay in them for long.

        `torch.optim.swa_utils.AveragedModel` has its count on the device or brings it there, and waits in every step.
        """
        steps = self._steps_averaged
        kept = min(self.recipe.weight_averaging, (1 + steps) / (10 + steps)) if steps else 0.0
        torch._foreach_lerp_([*self._average.parameters()], [*self._network.parameters()], 1 - kept)
        self._steps_averaged += 1

    def _check_converging(self, epoch: int, losses: NDArray[np.float64]) -> None:
        before, advice = (epoch - 1) * self.steps_per_epoch, self._advice()
        if not np.isfinite(losses).all():
            first = int(np.argmin(np.isfinite(losses)))
            step = before + first + 1
            raise TrainingDiverged(f"The loss became {losses[first]} in epoch {epoch}, step {step}. {advice}")
        if losses.mean() > _DIVERGED:
            worst = int(losses.argmax())
            raise TrainingDiverged(
                f"The loss of epoch {epoch} is {losses.mean():.1f} on average, more than three times that of guessing; "
                f"it was highest, {losses[worst]:.1f}, in step {before + worst + 1}. {advice}"
            )

    def _check_finite(self, epoch: int, validation_loss: float | None) -> None:
        """What the last step made of the weights shows in the loss of no step."""
        step = epoch * self.steps_per_epoch
        if not all(parameters.isfinite().all() for parameters in self.network.parameters()):
            raise TrainingDiverged(f"The weights are not all finite after epoch {epoch}, step {step}. {self._advice()}")
        if validation_loss is not None and not math.isfinite(validation_loss):
            raise TrainingDiverged(
                f"The validation loss became {validation_loss} in epoch {epoch}, step {step}. {self._advice()}"
            )

    def _advice(self) -> str:
        return f"Lower the learning rate ({self.recipe.learning_rate}) or look at the data."

    def _validate(self) -> tuple[float | None, float | None]:
        if self._validation is None or not len(self._validation):
            return None, None
        mine = self._slice(len(self._validation))
        network = self.network.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self._device)
        with torch.inference_mode():
            for first in range(mine.start, mine.stop, _EVALUATION_BATCH):
                some = slice(first, min(first + _EVALUATION_BATCH, mine.stop))
                labels = torch.from_numpy(self._validation.labels[some]).to(self._device)
                logits = logits_of(network, scale(torch.from_numpy(self._validation.images[some]).to(self._device)))
                totals[0] += functional.cross_entropy(logits, labels, reduction="sum")
                totals[1] += logits.argmax(1).eq(labels).sum()
        if self._world_size > 1:
            dist.all_reduce(totals, group=self._group)
        loss, accuracy = (totals / len(self._validation)).tolist()
        return loss, accuracy

    def _progress(self, epoch: int, outcomes: Tensor, seconds: float) -> StepProgress:
        steps, mine = len(outcomes), self._slice(self._batch_size)
        images = max(1, steps * (mine.stop - mine.start))
        loss, correct = outcomes.sum(0).tolist()
        return StepProgress(
            epoch=epoch,
            epochs=self.recipe.epochs,
            step=(epoch - 1) * self.steps_per_epoch + steps,
            steps=self.recipe.epochs * self.steps_per_epoch,
            global_batch_size=self._batch_size,
            loss=loss / images,
            accuracy=correct / images,
            images_per_second=steps * self._batch_size / seconds,
        )

    def save_state(self) -> bytes:
        """Everything besides the averaged weights that a resumed run needs; read it back with `load_state`."""
        buffer = io.BytesIO()
        state = {
            "recipe": asdict(self.recipe),
            "epochs_done": self.epochs_done,
            "steps_per_epoch": self.steps_per_epoch,
            "network": self._network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def load_state(self, weights: NeuralNetwork, state: bytes) -> Self:
        """Go on where another run of the same recipe stood.

        Args:
            weights: a network with the averaged weights.
            state: what `save_state` returned there.

        Raises:
            ValueError: it was another recipe or number of images, or is no such state. Nothing in it is executed.
        """
        try:
            loaded: dict[str, Any] = torch.load(io.BytesIO(state), map_location=self._device, weights_only=True)
        except Exception as error:  # noqa: BLE001 (torch.load raises what its unpickler and zip reader happen to raise)
            raise ValueError(f"The training state can't be read: {error}") from None
        if not isinstance(loaded, dict) or not loaded.keys() >= _STATE:
            raise ValueError("The training state can't be read: it is none that a training run saved.")
        if loaded["recipe"] != asdict(self.recipe):
            raise ValueError(f"The training state is of another recipe: {loaded['recipe']}")
        if (steps := loaded["steps_per_epoch"]) != self.steps_per_epoch:
            raise ValueError(
                f"The training state is of a run of {steps} steps an epoch; on these images it is "
                f"{self.steps_per_epoch}."
            )
        self._network.load_state_dict(loaded["network"])
        self.network.load_state_dict(weights.state_dict())
        for optimizer, saved in zip(self._optimizers, loaded["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.epochs_done = loaded["epochs_done"]
        self._steps_averaged = self.epochs_done * self.steps_per_epoch
        return self


_STATE = {"recipe", "epochs_done", "steps_per_epoch", "network", "optimizers"}


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
