"""A training step as a CUDA graph, because Python launches the kernels of a small network too slowly for a GPU."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

import torch
from torch import Tensor

from fmnist_model.training.optimizer_step import TrainingStep

_WARM_UP_STEPS = 3
"""Steps before recording. Libraries allocate memory and optimizers create their state at the first use."""


class CapturedStep:
    """A step that is recorded once and replayed with one call, instead of some hundred kernel launches.

    A graph repeats the numbers that it was recorded with, and `torch.optim.Muon` takes the learning rate as a number.
    So the graph is recorded at the highest rate of the schedule, and then scales the change of the weights down to the
    step's own rate. Both optimizers change the weights in proportion to the rate.
    """

    def __init__(self, step: TrainingStep, images: Tensor, labels: Tensor) -> None:
        """Record a step without changing its weights or its optimizers' state.

        Args:
            step: a step of a single process on a CUDA device. The graph writes to its current tensors, so record a new
                graph after replacing its optimizers' state.
            images: any batch, uint8 `[m, 28, 28]`, on the device. Every step must have this shape.
            labels: any labels, int64 `[m]`, on the device.
        """
        self._step = step
        self._images, self._labels = images.clone(), labels.clone()
        self._share, self._weight = torch.ones(2, device=images.device).unbind()
        self._graph = torch.cuda.CUDAGraph()
        for group in (group for optimizer in step.optimizers for group in optimizer.param_groups):
            if "capturable" in group:
                group["capturable"] = True
        with _state_restored(step):
            stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(images.device))
            with torch.cuda.stream(stream), warnings.catch_warnings():
                # PyTorch warns that capturable optimizers are slow outside a graph. These are a few steps.
                warnings.filterwarnings("ignore", ".*without (CUDA|accelerator) graph capture")
                for _ in range(_WARM_UP_STEPS):
                    self._record()
            torch.cuda.current_stream(images.device).wait_stream(stream)
            with torch.cuda.graph(self._graph, stream=stream):
                self._outcome = self._record()

    def take(self, images: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        """Do what `TrainingStep.take` does. The next call overwrites the tensor that this one returns."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._share.fill_(learning_rate / self._step.peak_rate)
        if self._step.averages:
            self._weight.fill_(self._step.next_average_weight())
        self._graph.replay()
        return self._outcome

    def _record(self) -> Tensor:
        newest: list[Tensor] = [*self._step.network.parameters()]
        with torch.no_grad():
            before = [parameter.clone() for parameter in newest]
        outcome = self._step.update_weights(self._images, self._labels, self._step.peak_rate)
        with torch.no_grad():
            torch._foreach_sub_(newest, before)
            torch._foreach_mul_(newest, self._share)
            torch._foreach_add_(newest, before)
            if self._step.averages:
                average: list[Tensor] = [*self._step.average.parameters()]
                change = torch._foreach_sub(newest, average)
                torch._foreach_mul_(change, self._weight)
                torch._foreach_add_(average, change)
        return outcome


@contextmanager
def _state_restored(step: TrainingStep) -> Iterator[None]:
    """Restore the weights, their average and the optimizers' state in place on exit. State that is new becomes zero."""
    with torch.no_grad():
        before = [tensor.clone() for tensor in _state_tensors(step)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip_longest(_state_tensors(step), before):
                tensor.zero_() if value is None else tensor.copy_(value)


def _state_tensors(step: TrainingStep) -> Iterator[Tensor]:
    yield from step.network.parameters()
    if step.averages:
        yield from step.average.parameters()
    for optimizer in step.optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
