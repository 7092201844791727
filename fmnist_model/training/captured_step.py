"""A training step as a CUDA graph, for networks so small that a GPU would wait for Python to begin each kernel."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

import torch
from torch import Tensor

from fmnist_model.training.optimizer_step import TrainingStep

_WARM_UP_STEPS = 3
"""Before a graph is recorded: libraries take memory, and optimizers make their state, at the first use."""


class CapturedStep:
    """A step recorded once and replayed with one call: some hundred kernels of a few microseconds each.

    A graph repeats the numbers with which it was recorded, and `torch.optim.Muon` takes the learning rate as a number.
    So it is recorded at the highest rate of the schedule, and the weights are then brought back to the share of the way
    that the step's own rate asks for: both optimizers go a way that is proportional to it.
    """

    def __init__(self, step: TrainingStep, images: Tensor, labels: Tensor) -> None:
        """Record a step, which stays as it was.

        Args:
            step: of one process alone, on a CUDA device. The graph writes to the tensors that it has now: make another
                when its optimizers' state is replaced.
            images: uint8 `[m, 28, 28]` of any content, on the device; each step's have this shape.
            labels: int64 `[m]`, likewise.
        """
        self._step = step
        self._images, self._labels = images.clone(), labels.clone()
        self._share, self._weight = torch.ones(2, device=images.device).unbind()
        self._graph = torch.cuda.CUDAGraph()
        for group in (group for optimizer in step.optimizers for group in optimizer.param_groups):
            if "capturable" in group:
                group["capturable"] = True
        with _left_as_it_was(step):
            stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(images.device))
            with torch.cuda.stream(stream), warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*without (CUDA|accelerator) graph capture")  # these are few
                for _ in range(_WARM_UP_STEPS):
                    self._record()
            torch.cuda.current_stream(images.device).wait_stream(stream)
            with torch.cuda.graph(self._graph, stream=stream):
                self._outcome = self._record()

    def take(self, images: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        """What `TrainingStep.take` does; the next step overwrites what is returned."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._share.fill_(learning_rate / self._step.peak_rate)
        if self._step.averages:
            self._weight.fill_(self._step.next_weight())
        self._graph.replay()
        return self._outcome

    def _record(self) -> Tensor:
        newest: list[Tensor] = [*self._step.network.parameters()]
        with torch.no_grad():
            before = [parameter.clone() for parameter in newest]
        outcome = self._step.move(self._images, self._labels, self._step.peak_rate)
        with torch.no_grad():
            torch._foreach_sub_(newest, before)
            torch._foreach_mul_(newest, self._share)
            torch._foreach_add_(newest, before)
            if self._step.averages:
                average: list[Tensor] = [*self._step.average.parameters()]
                ahead = torch._foreach_sub(newest, average)
                torch._foreach_mul_(ahead, self._weight)
                torch._foreach_add_(average, ahead)
        return outcome


@contextmanager
def _left_as_it_was(step: TrainingStep) -> Iterator[None]:
    """Undo, in place, what steps do to the weights, their average and the optimizers' state, which begins as zeros."""
    with torch.no_grad():
        before = [tensor.clone() for tensor in _tensors(step)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip_longest(_tensors(step), before):
                tensor.zero_() if value is None else tensor.copy_(value)


def _tensors(step: TrainingStep) -> Iterator[Tensor]:
    yield from step.network.parameters()
    if step.averages:
        yield from step.average.parameters()
    for optimizer in step.optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
