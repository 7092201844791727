"""The training step and the loop round it: plain PyTorch, on one process or as one rank of several.

The data set lies on the device as uint8; each rank takes its slice of one seeded permutation, and scaling and
augmentation happen on the device. The global batch and its random draws depend on seed and epoch alone, not on the
number of ranks, and an epoch needs no random state of the one before it.
"""

import copy
import io
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.serialization import config

from fmnist_model.classes import CLASS_NAMES, IMAGE_SIZE
from fmnist_model.dataset import LabelledImages
from fmnist_model.network import NeuralNetwork, logits_of, save_weights
from fmnist_model.training.augmentation import Augmentation, scale
from fmnist_model.training.captured_step import CapturedStep
from fmnist_model.training.optimizer_step import TrainingStep, tensor_cores
from fmnist_model.training.recipe import TrainingRecipe

_log = logging.getLogger(__name__)

_DIVERGED = 3 * math.log(len(CLASS_NAMES))
"""Mean loss of an epoch, in nats, above which nothing is being learned: three times that of guessing."""

_EVALUATION_BATCH = 1024

_TOLD_SECONDS = 0.5
"""Between two reports of progress, at least."""


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


class Snapshot:
    """What a run was at one time: all that a resumed run needs. Saving it may be left to another thread.

    The next one may be taken into its memory: memory that a process gives back and takes again costs more than all else
    that there is to a snapshot, on a virtual machine above all.
    """

    def __init__(self, network: NeuralNetwork, rest: dict[str, Any], into: "Snapshot | None" = None) -> None:
        self._network: NeuralNetwork = into._network if into else copy.deepcopy(network)
        if into:
            self._network.load_state_dict(network.state_dict())
        self._rest: dict[str, Any] = _copied(rest, into._rest if into else None)
        self._file: io.BytesIO = into._file if into else io.BytesIO()

    def weights(self) -> bytes:
        """The weights that are kept and used, as safetensors: averaged, where the recipe says so."""
        return save_weights(self._network)

    def state(self) -> bytes:
        """Everything besides; read it back with `TrainingRun.load_state`.

        Without a checksum, which takes two thirds of the time that it takes to write these bytes: keep one beside them.
        """
        self._file.seek(0)
        with config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
            torch.save(self._rest, self._file)
        self._file.truncate()
        return self._file.getvalue()


def _copied(value: Any, into: Any) -> Any:
    """A deep copy; tensors go into those at the same places in `into`, where they fit."""
    if isinstance(value, Tensor):
        same = isinstance(into, Tensor) and (value.shape, value.dtype) == (into.shape, into.dtype)
        return into.copy_(value) if same else value.detach().clone()
    if isinstance(value, dict):
        parts = into if isinstance(into, dict) else {}
        return {name: _copied(part, parts.get(name)) for name, part in value.items()}
    if isinstance(value, list):
        items = into if isinstance(into, list) and len(into) == len(value) else [None] * len(value)
        return [_copied(item, there) for item, there in zip(value, items, strict=True)]
    return copy.deepcopy(value)


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
    """A network being trained: weights, their average if any, optimizers, and how many epochs are done."""

    def __init__(
        self,
        recipe: TrainingRecipe,
        data: LabelledImages,
        device: torch.device,
        process_group: dist.ProcessGroup | None = None,
        *,
        validation: LabelledImages | None = None,
        initial: NeuralNetwork | None = None,
        cuda_graph: bool = True,
    ) -> None:
        """Begin a run, or make the place into which `load_state` brings one back.

        Args:
            recipe: what to do.
            data: the images to learn from, the same on every rank.
            device: where to train.
            process_group: the ranks that train together; None for one alone.
            validation: images to evaluate each epoch with, the same on every rank.
            initial: weights to begin with; None: random ones by the recipe's seed.
            cuda_graph: replay the steps as a CUDA graph where one process trains on a GPU; False: begin each kernel
                from Python, as several do.
        """
        self.recipe = recipe
        self.epochs_done = 0
        self._told = time.perf_counter()
        self._device = device
        self._group = process_group
        self._rank = dist.get_rank(process_group) if process_group else 0
        self._world_size = dist.get_world_size(process_group) if process_group else 1
        images = torch.from_numpy(data.images).to(device)
        self._augmentation = Augmentation(images, flip=recipe.flip, shift_pixels=recipe.shift_pixels)
        self._labels = torch.from_numpy(data.labels)
        self._drawn: tuple[int, Tensor, Tensor] | None = None
        self._batch_size = min(recipe.global_batch_size, len(data))
        self.steps_per_epoch = len(data) // self._batch_size
        self._validation: tuple[Tensor, Tensor] | None = None
        if validation:
            self._validation = (
                torch.from_numpy(validation.images).to(device),
                torch.from_numpy(validation.labels).to(device),
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = NeuralNetwork().to(device)
        if initial is not None:
            network.load_state_dict(initial.state_dict())
        self._step = TrainingStep(network, recipe, self._batch_size, process_group)
        self._captures = cuda_graph and device.type == "cuda" and self._world_size == 1
        self._captured: CapturedStep | None = None
        self._shared_states: list[dict[str, Any]] = []

    @property
    def network(self) -> NeuralNetwork:
        """The network that is validated, kept and used: with averaged weights, where the recipe says so."""
        return self._step.average

    def prepare(self) -> None:
        """Record the step as a CUDA graph, where it is to be one; the next epoch does it otherwise."""
        if self._captures and self._captured is None:
            images = torch.zeros(self._batch_size, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8, device=self._device)
            labels = torch.zeros(self._batch_size, dtype=torch.int64, device=self._device)
            try:
                with tensor_cores(self._device):
                    self._captured = CapturedStep(self._step, images, labels)
            except RuntimeError as error:
                self._captures = False
                _log.warning(
                    "The steps are not replayed as a CUDA graph, and take longer: %s", str(error).split("\n")[0]
                )

    def epochs(self, on_step: Callable[[StepProgress], None] | None = None) -> Iterator[EpochMetrics]:
        """Train the epochs that are left, one at a time.

        Args:
            on_step: told twice a second at most how far this rank is, and after the last step.

        Raises:
            TrainingDiverged: the loss became NaN, infinite or larger than that of guessing, or a weight NaN or
                infinite; the message names epoch and step. That epoch does not count as done.
        """
        while self.epochs_done < self.recipe.epochs:
            yield self._train_epoch(on_step)

    def _train_epoch(self, on_step: Callable[[StepProgress], None] | None) -> EpochMetrics:
        self._step.train()
        epoch = self.epochs_done + 1
        self.prepare()
        began = time.perf_counter()
        take = self._captured.take if self._captured else self._step.take
        images, labels = self._gather(*self._draw(epoch))
        # Summed loss and number of correct predictions of each step.
        outcomes = torch.zeros(self.steps_per_epoch, 2, dtype=torch.float64, device=self._device)
        rates = [self._learning_rate(epoch, step) for step in range(self.steps_per_epoch)]
        with tensor_cores(self._device):
            for step, rate in enumerate(rates):
                outcomes[step] = take(images[step], labels[step], rate)
                now = time.perf_counter()
                is_last = epoch == self.recipe.epochs and step + 1 == self.steps_per_epoch
                if on_step and (is_last or now - self._told > _TOLD_SECONDS):
                    self._told = now
                    on_step(self._progress(epoch, outcomes[: step + 1], began))
        if epoch < self.recipe.epochs:
            self._draw(epoch + 1)  # while a GPU still has steps to do
        if self._world_size > 1:
            dist.all_reduce(outcomes, group=self._group)
        step_losses = outcomes[:, 0].cpu().numpy() / self._batch_size
        self._check_converging(epoch, step_losses)
        validation_loss, validation_accuracy = self._validate()
        self._check_finite(epoch, validation_loss)
        if self._world_size > 1:
            self._shared_states = self._step.optimizer_states()  # for a snapshot, which is of rank 0 alone
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

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        """What this rank trains on in an epoch: `[steps * m, 3]`, as `Augmentation.draw`, and int64 `[steps, m]`."""
        if self._drawn is None or self._drawn[0] != epoch:
            # Every rank draws for all images, so that the draws don't depend on the number of ranks.
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self._labels), generator=generator)[: self.steps_per_epoch * self._batch_size]
            drawn = self._augmentation.draw(order, generator)
            mine = self._slice(self._batch_size)
            drawn = drawn.reshape(self.steps_per_epoch, self._batch_size, 3)[:, mine].reshape(-1, 3)
            labels = self._labels[order].reshape(self.steps_per_epoch, self._batch_size)[:, mine]
            self._drawn = epoch, drawn, labels
        return self._drawn[1:]

    def _gather(self, drawn: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The images as drawn: uint8 `[steps, m, 28, 28]`; and their labels, on the device."""
        images = self._augmentation.take(drawn).reshape(*labels.shape, IMAGE_SIZE, IMAGE_SIZE)
        return images, labels.to(self._device)

    def _slice(self, count: int) -> slice:
        """Which of `count` things are this rank's."""
        return slice(count * self._rank // self._world_size, count * (self._rank + 1) // self._world_size)

    def _learning_rate(self, epoch: int, step: int) -> float:
        done, steps = (epoch - 1) * self.steps_per_epoch + step, self.recipe.epochs * self.steps_per_epoch
        warm_up = self.recipe.warm_up * steps
        if done < warm_up:
            return self.recipe.learning_rate * (done + 1) / (warm_up + 1)
        return self.recipe.learning_rate * (1 + math.cos(math.pi * (done - warm_up) / (steps - warm_up))) / 2

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
        if not torch.stack([parameters.isfinite().all() for parameters in self.network.parameters()]).all():
            raise TrainingDiverged(f"The weights are not all finite after epoch {epoch}, step {step}. {self._advice()}")
        if validation_loss is not None and not math.isfinite(validation_loss):
            raise TrainingDiverged(
                f"The validation loss became {validation_loss} in epoch {epoch}, step {step}. {self._advice()}"
            )

    def _advice(self) -> str:
        return f"Lower the learning rate ({self.recipe.learning_rate}) or look at the data."

    def _validate(self) -> tuple[float | None, float | None]:
        if self._validation is None:
            return None, None
        images, labels = self._validation
        mine = self._slice(len(labels))
        network = self.network.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self._device)
        with torch.inference_mode():
            for first in range(mine.start, mine.stop, _EVALUATION_BATCH):
                some = slice(first, min(first + _EVALUATION_BATCH, mine.stop))
                logits = logits_of(network, scale(images[some]))
                totals[0] += functional.cross_entropy(logits, labels[some], reduction="sum")
                totals[1] += logits.argmax(1).eq(labels[some]).sum()
        if self._world_size > 1:
            dist.all_reduce(totals, group=self._group)
        loss, accuracy = (totals / len(labels)).tolist()
        return loss, accuracy

    def _progress(self, epoch: int, outcomes: Tensor, began: float) -> StepProgress:
        steps, mine = len(outcomes), self._slice(self._batch_size)
        images = max(1, steps * (mine.stop - mine.start))
        loss, correct = outcomes.sum(0).tolist()
        seconds = time.perf_counter() - began  # not before: a GPU has its steps done only now
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

    def snapshot(self, into: Snapshot | None = None) -> Snapshot:
        """What the run is now, to be saved while it goes on; of one rank of several, only after an epoch.

        Args:
            into: an earlier snapshot of this run that is saved, or not needed: its memory becomes the new one's.
        """
        states = self._step.optimizer_states() if self._world_size == 1 else self._shared_states
        state = {
            "recipe": asdict(self.recipe),
            "epochs_done": self.epochs_done,
            "steps_per_epoch": self.steps_per_epoch,
            # Without an average, the weights that are kept beside this are these.
            "network": self._step.network.state_dict() if self._step.averages else {},
            "optimizers": states,
        }
        return Snapshot(self.network, state, into)

    def load_state(self, weights: NeuralNetwork, state: bytes) -> Self:
        """Go on where another run of the same recipe stood.

        Args:
            weights: a network with what `Snapshot.weights` returned there.
            state: what `Snapshot.state` returned there.

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
        self._captured = None  # it writes to the state that is replaced
        if self._step.averages:
            self._step.network.load_state_dict(loaded["network"])
        self.network.load_state_dict(weights.state_dict())
        for optimizer, saved in zip(self._step.optimizers, loaded["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            for group in optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = False  # or it would be as where the state was saved
        self.epochs_done = loaded["epochs_done"]
        self._step.steps_averaged = self.epochs_done * self.steps_per_epoch
        return self


_STATE = {"recipe", "epochs_done", "steps_per_epoch", "network", "optimizers"}
