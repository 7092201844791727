"""Training on a GPU gives the results of a CPU, with and without a CUDA graph."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from fmnist_model.network import load_weights, save_weights
from fmnist_model.training.captured_step import CapturedStep, _state_tensors
from fmnist_model.training.divergence import TrainingDiverged
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.optimizer_step import tensor_cores
from fmnist_model.training.recipe import TrainingRecipe
from tests.unit.fmnist_model.images.striped_images import stripes, vector

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RECIPE = TrainingRecipe(
    epochs=4,
    global_batch_size=60,
    learning_rate=0.04,
    warm_up=0.2,
    shift_pixels=2,
    weight_averaging=0.9,
    validation_images=0,
    seed=5,
)
NOT_AVERAGED = replace(RECIPE, weight_averaging=0.0)


def distance(run: TrainingRun, other: TrainingRun) -> float:
    """Distance between the weights of two runs, relative to the distance that the first moved from its initial ones."""
    initial = vector(TrainingRun(run.recipe, stripes(), CPU).network)
    one, two = (vector(each.network).cpu() for each in (run, other))
    return float((one - two).norm() / (one - initial).norm())


def trained(device: torch.device, *, cuda_graph: bool = True, recipe: TrainingRecipe = RECIPE) -> TrainingRun:
    run = TrainingRun(recipe, stripes(), device, validation=stripes(70), cuda_graph=cuda_graph)
    list(run.epochs())
    return run


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_losses_on_a_gpu_are_those_on_a_cpu(cuda_graph: bool):
    """The tolerance is for TF32 and Muon's bfloat16."""
    epochs = [next(TrainingRun(RECIPE, stripes(), device, cuda_graph=cuda_graph).epochs()) for device in (CPU, GPU)]
    np.testing.assert_allclose(epochs[1].step_losses, epochs[0].step_losses, rtol=0.02)


def test_snapshot_in_reused_memory_equals_a_new_one():
    run = TrainingRun(RECIPE, stripes(), GPU)
    epochs = run.epochs()
    next(epochs)
    early = run.snapshot()
    next(epochs)
    fresh, late = run.snapshot(), run.snapshot(into=early)
    assert (late.weights(), late.state()) == (fresh.weights(), fresh.state())


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_weights_on_a_gpu_are_those_on_a_cpu(cuda_graph: bool):
    assert distance(trained(CPU), trained(GPU, cuda_graph=cuda_graph)) < 0.2


@pytest.mark.parametrize("recipe", [RECIPE, NOT_AVERAGED], ids=["averaged", "not averaged"])
def test_losses_with_a_graph_are_those_without(recipe: TrainingRecipe):
    graph, plain = (
        next(TrainingRun(recipe, stripes(), GPU, cuda_graph=cuda_graph).epochs()) for cuda_graph in (True, False)
    )
    np.testing.assert_allclose(graph.step_losses, plain.step_losses, rtol=2e-3)


def test_step_is_recorded_only_on_a_gpu():
    runs = [trained(device, cuda_graph=graph) for device, graph in ((GPU, True), (GPU, False), (CPU, True))]
    assert [isinstance(run._captured, CapturedStep) for run in runs] == [True, False, False]


def test_recording_changes_no_weights_average_or_optimizer_state():
    run, untouched = TrainingRun(RECIPE, stripes(), GPU), TrainingRun(RECIPE, stripes(), GPU)
    run.prepare()
    assert torch.equal(vector(run.network), vector(untouched.network))
    assert torch.equal(vector(run._step.network), vector(untouched._step.network))
    states = [*_state_tensors(run._step)][12:]
    assert len(states) == 2 + 3 * 4  # one momentum per matrix, and two moments and a count per tensor of AdamW
    assert not any(state.any() for state in states)


@pytest.mark.parametrize("recipe", [RECIPE, NOT_AVERAGED], ids=["averaged", "not averaged"])
def test_recording_again_during_a_run_changes_nothing(recipe: TrainingRecipe):
    run = TrainingRun(recipe, stripes(), GPU)
    next(run.epochs())
    before = [tensor.detach().clone() for tensor in _state_tensors(run._step)]
    run._captured = None
    run.prepare()
    assert all(torch.equal(tensor, value) for tensor, value in zip(_state_tensors(run._step), before, strict=True))


def test_same_seed_gives_the_same_weights():
    assert torch.equal(vector(trained(GPU).network), vector(trained(GPU).network))


def interrupted(device: torch.device) -> tuple[bytes, bytes]:
    """Train two of four epochs, and return weights and state."""
    run = TrainingRun(RECIPE, stripes(), device, validation=stripes(70))
    for epoch in run.epochs():
        if epoch.epoch == 2:
            break
    return save_weights(run.network), run.snapshot().state()


def resumed(device: torch.device, weights: bytes, state: bytes) -> TrainingRun:
    run = TrainingRun(RECIPE, stripes(), device, validation=stripes(70))
    run.prepare()  # record a graph that the loaded state makes invalid
    run.load_state(load_weights(weights, "model.safetensors"), state)
    assert [epoch.epoch for epoch in run.epochs()] == [3, 4]
    return run


def test_resumed_run_ends_with_the_weights_of_an_undisturbed_one():
    assert torch.equal(vector(resumed(GPU, *interrupted(GPU)).network), vector(trained(GPU).network))


@pytest.mark.parametrize(("first", "second"), [(CPU, GPU), (GPU, CPU)], ids=["CPU to GPU", "GPU to CPU"])
def test_run_resumes_on_another_device(first: torch.device, second: torch.device):
    assert distance(trained(first), resumed(second, *interrupted(first))) < 0.2


def test_state_from_a_gpu_loads_on_a_cpu():
    loaded = torch.load(io.BytesIO(interrupted(GPU)[1]), map_location=CPU, weights_only=True)
    assert loaded["epochs_done"] == 2


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_divergence_names_epoch_and_step(cuda_graph: bool):
    run = TrainingRun(replace(RECIPE, learning_rate=1e16), stripes(), GPU, cuda_graph=cuda_graph)
    with pytest.raises(TrainingDiverged, match=r"epoch 1, step \d+\."):
        list(run.epochs())


@pytest.fixture
def precision_restored() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_training_restores_the_global_precision(precision_restored: None, precision: str):
    torch.backends.cuda.matmul.fp32_precision = precision
    trained(GPU)
    assert torch.backends.cuda.matmul.fp32_precision == precision


def test_tensor_cores_multiply_only_within_the_context():
    matrix = torch.rand(512, 512, device=GPU, generator=torch.Generator(GPU).manual_seed(0))
    exact = (matrix.double() @ matrix.double()).float()

    def error() -> Tensor:
        return ((matrix @ matrix - exact).norm() / exact.norm()).cpu()

    with tensor_cores(GPU):
        assert 1e-5 < error() < 1e-3
    assert error() < 1e-6


def train_as_rank(rank: int, folder: Path) -> None:
    """Train as one of two processes that share the GPU. NCCL would need one GPU per process, gloo doesn't."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    run = TrainingRun(RECIPE, stripes(), GPU, dist.group.WORLD, validation=stripes(70))
    losses = [epoch.step_losses for epoch in run.epochs()]
    torch.save({"weights": vector(run.network).cpu(), "losses": losses[0]}, folder / str(rank))
    dist.destroy_process_group()


def test_two_ranks_train_like_a_single_one(tmp_path: Path):
    torch.multiprocessing.spawn(train_as_rank, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(2))
    assert torch.equal(first["weights"], second["weights"])
    single = next(TrainingRun(RECIPE, stripes(), GPU, cuda_graph=False).epochs())
    np.testing.assert_allclose(first["losses"], single.step_losses, rtol=2e-3)
