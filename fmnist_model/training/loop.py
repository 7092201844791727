"""The training loop: plain PyTorch, in one process or as one rank of several.

The images stay on the device as uint8, where they are scaled and augmented. The ranks divide each global batch among
themselves, and its content depends on seed and epoch alone, not on the number of ranks.
"""

import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fmnist_model.classes import IMAGE_SIZE
from fmnist_model.dataset import LabelledImages
from fmnist_model.network import NeuralNetwork
from fmnist_model.training.batches import EpochBatches
from fmnist_model.training.captured_step import CapturedStep
from fmnist_model.training.divergence import check_losses, check_outcome
from fmnist_model.training.optimizer_step import TrainingStep, tensor_cores
from fmnist_model.training.progress import EpochMetrics, StepProgress
from fmnist_model.training.ranks import Ranks
from fmnist_model.training.recipe import TrainingRecipe
from fmnist_model.training.schedule import learning_rate_at
from fmnist_model.training.snapshot import Snapshot
from fmnist_model.training.validation import ValidationSet

_log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.5
"""Minimum time between two progress reports."""

_STATE_KEYS = {"recipe", "epochs_done", "steps_per_epoch", "network", "optimizers"}


class TrainingRun:
    """A network in training: its weights, their average if any, the optimizers and the number of finished epochs."""

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
        """Start a run. To resume one, also call `load_state`.

        Args:
            recipe: everything that decides what is learned.
            data: training images, the same on every rank.
            device: where to train.
            process_group: the ranks that train together, or None for a process that trains alone.
            validation: images to evaluate after each epoch, the same on every rank.
            initial: network with the initial weights, or None for random weights from the recipe's seed.
            cuda_graph: whether to replay the steps as a CUDA graph if a single process trains on a GPU. Otherwise
                Python launches each kernel.
        """
        self.recipe = recipe
        self.epochs_done = 0
        self._device = device
        self._ranks = Ranks(process_group)
        self._batches = EpochBatches(data, recipe, self._ranks, device)
        self._validation = ValidationSet(validation, self._ranks, device) if validation else None
        network = _initial_network(recipe.seed, initial).to(device)
        self._step = TrainingStep(network, recipe, self._batches.batch_size, self._ranks)
        self._captures = cuda_graph and device.type == "cuda" and self._ranks.count == 1
        self._captured: CapturedStep | None = None
        self._gathered_states: list[dict[str, Any]] = []
        self._reported_at = time.perf_counter()

    @property
    def network(self) -> NeuralNetwork:
        """The network to validate, keep and use. It has averaged weights if the recipe averages them."""
        return self._step.average

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch."""
        return self._batches.steps_per_epoch

    def prepare(self) -> None:
        """Record the CUDA graph now, if this run uses one. Otherwise the next epoch records it."""
        if not self._captures or self._captured is not None:
            return
        size = self._batches.batch_size
        images = torch.zeros(size, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8, device=self._device)
        labels = torch.zeros(size, dtype=torch.int64, device=self._device)
        try:
            with tensor_cores(self._device):
                self._captured = CapturedStep(self._step, images, labels)
        except RuntimeError as error:
            self._captures = False
            _log.warning("Training without a CUDA graph, which is slower: %s", str(error).split("\n")[0])

    def epochs(self, on_step: Callable[[StepProgress], None] | None = None) -> Iterator[EpochMetrics]:
        """Train the remaining epochs, one at a time.

        Args:
            on_step: function to call with this rank's progress at most twice per second, and after the last step.

        Raises:
            TrainingDiverged: the loss became NaN, infinite or far larger than that of guessing, or a weight NaN or
                infinite. The message names epoch and step. That epoch does not count as done.
        """
        while self.epochs_done < self.recipe.epochs:
            yield self._train_epoch(on_step)

    def snapshot(self, into: Snapshot | None = None) -> Snapshot:
        """Copy the run's current state, to save it while training continues.

        With several ranks, you can only take a snapshot between two epochs.

        Args:
            into: an earlier snapshot of this run that you no longer need. Its memory is reused.
        """
        states = self._step.optimizer_states() if self._ranks.count == 1 else self._gathered_states
        state = {
            "recipe": asdict(self.recipe),
            "epochs_done": self.epochs_done,
            "steps_per_epoch": self.steps_per_epoch,
            # Without an average, these weights are those of `Snapshot.weights`.
            "network": self._step.network.state_dict() if self._step.averages else {},
            "optimizers": states,
        }
        return Snapshot(self.network, state, into)

    def load_state(self, weights: NeuralNetwork, state: bytes) -> Self:
        """Resume another run of the same recipe. Nothing in the saved state is executed.

        Args:
            weights: network with the weights from `Snapshot.weights`.
            state: bytes from `Snapshot.state`.

        Raises:
            ValueError: the bytes are not the state of a training run, or that run had another recipe or another number
                of steps per epoch.
        """
        loaded = self._read_state(state)
        self._captured = None  # the graph writes to the optimizers' state that is replaced here
        if self._step.averages:
            self._step.network.load_state_dict(loaded["network"])
        self.network.load_state_dict(weights.state_dict())
        for optimizer, saved in zip(self._step.optimizers, loaded["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            for group in optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = False  # the state may come from a device with a graph
        self.epochs_done = loaded["epochs_done"]
        self._step.steps_averaged = self.epochs_done * self.steps_per_epoch
        return self

    def _train_epoch(self, on_step: Callable[[StepProgress], None] | None) -> EpochMetrics:
        self._step.train()
        epoch = self.epochs_done + 1
        self.prepare()
        started = time.perf_counter()
        outcomes, rates = self._take_steps(epoch, started, on_step)
        if epoch < self.recipe.epochs:
            self._batches.draw(epoch + 1)  # on the CPU, while a GPU still works on the steps
        self._ranks.sum(outcomes)
        step_losses = outcomes[:, 0].cpu().numpy() / self._batches.batch_size
        check_losses(epoch, step_losses, self.recipe.learning_rate)
        validation_loss, validation_accuracy = (
            self._validation.evaluate(self.network) if self._validation else (None, None)
        )
        last_step = epoch * self.steps_per_epoch
        check_outcome(epoch, last_step, self.network, validation_loss, self.recipe.learning_rate)
        if self._ranks.count > 1:
            self._gathered_states = self._step.optimizer_states()  # now, since rank 0 takes snapshots alone
        self.epochs_done = epoch
        images = self.steps_per_epoch * self._batches.batch_size
        return EpochMetrics(
            epoch=epoch,
            loss=float(step_losses.mean()),
            accuracy=outcomes[:, 1].sum().item() / images,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=rates[-1],
            images=images,
            seconds=time.perf_counter() - started,
            step_losses=step_losses,
            step_learning_rates=np.array(rates),
        )

    def _take_steps(
        self, epoch: int, started: float, on_step: Callable[[StepProgress], None] | None
    ) -> tuple[Tensor, list[float]]:
        """Take an epoch's steps.

        Returns:
            This rank's summed loss and number of correct predictions in each step, float64 `[steps, 2]`, and each
            step's learning rate.
        """
        take = self._captured.take if self._captured else self._step.take
        steps, steps_before = self.steps_per_epoch, (epoch - 1) * self.steps_per_epoch
        images, labels = self._batches.of_epoch(epoch)
        outcomes = torch.zeros(steps, 2, dtype=torch.float64, device=self._device)
        rates = [
            learning_rate_at(self.recipe, steps_before + step, self.recipe.epochs * steps) for step in range(steps)
        ]
        with tensor_cores(self._device):
            for step, rate in enumerate(rates):
                outcomes[step] = take(images[step], labels[step], rate)
                now = time.perf_counter()
                is_last = epoch == self.recipe.epochs and step + 1 == steps
                if on_step and (is_last or now - self._reported_at > _PROGRESS_SECONDS):
                    self._reported_at = now
                    on_step(self._progress(epoch, outcomes[: step + 1], started))
        return outcomes, rates

    def _progress(self, epoch: int, outcomes: Tensor, started: float) -> StepProgress:
        steps, own = len(outcomes), self._batches.own
        images = max(1, steps * (own.stop - own.start))
        loss, correct = outcomes.sum(0).tolist()  # waits until a GPU has finished the steps
        seconds = time.perf_counter() - started
        return StepProgress(
            epoch=epoch,
            epochs=self.recipe.epochs,
            step=(epoch - 1) * self.steps_per_epoch + steps,
            steps=self.recipe.epochs * self.steps_per_epoch,
            global_batch_size=self._batches.batch_size,
            loss=loss / images,
            accuracy=correct / images,
            images_per_second=steps * self._batches.batch_size / seconds,
        )

    def _read_state(self, state: bytes) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = torch.load(io.BytesIO(state), map_location=self._device, weights_only=True)
        except Exception as error:  # noqa: BLE001 (torch.load raises whatever its unpickler and zip reader raise)
            raise ValueError(f"The training state can't be read: {error}") from None
        if not isinstance(loaded, dict) or not loaded.keys() >= _STATE_KEYS:
            raise ValueError("The training state can't be read: it was not saved by a training run.")
        if loaded["recipe"] != asdict(self.recipe):
            raise ValueError(f"The training state belongs to another recipe: {loaded['recipe']}.")
        if (steps := loaded["steps_per_epoch"]) != self.steps_per_epoch:
            raise ValueError(
                f"The training state belongs to a run of {steps} steps per epoch. With these images, an epoch has "
                f"{self.steps_per_epoch}."
            )
        return loaded


def _initial_network(seed: int, initial: NeuralNetwork | None) -> NeuralNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NeuralNetwork()
    if initial is not None:
        network.load_state_dict(initial.state_dict())
    return network
