"""On a GPU, training goes where it goes on a CPU, with the steps as a CUDA graph or begun one kernel at a time."""

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
from fmnist_model.training.captured_step import CapturedStep, _tensors
from fmnist_model.training.loop import TrainingDiverged, TrainingRun
from fmnist_model.training.optimizer_step import tensor_cores
from fmnist_model.training.recipe import TrainingRecipe
from tests.unit.fmnist_model.images.striped_images import stripes, vector

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

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


def moved(run: TrainingRun, other: TrainingRun) -> float:
    """How far two runs are from each other, as a share of the way that the first has gone."""
    begin = vector(TrainingRun(run.recipe, stripes(), CPU).network)
    one, two = (vector(each.network).cpu() for each in (run, other))
    return float((one - two).norm() / (one - begin).norm())


def trained(device: torch.device, *, cuda_graph: bool = True, recipe: TrainingRecipe = RECIPE) -> TrainingRun:
    run = TrainingRun(recipe, stripes(), device, validation=stripes(70), cuda_graph=cuda_graph)
    list(run.epochs())
    return run


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_losses_on_a_gpu_are_those_on_a_cpu(cuda_graph: bool):
    """To what TF32 and Muon's bfloat16 leave of them over the first epoch."""
    epochs = [next(TrainingRun(RECIPE, stripes(), device, cuda_graph=cuda_graph).epochs()) for device in (CPU, GPU)]
    np.testing.assert_allclose(epochs[1].step_losses, epochs[0].step_losses, rtol=0.02)


def test_snapshot_in_the_memory_of_an_earlier_one_is_like_one_of_its_own():
    run = TrainingRun(RECIPE, stripes(), GPU)
    epochs = run.epochs()
    next(epochs)
    early = run.snapshot()
    next(epochs)
    fresh, late = run.snapshot(), run.snapshot(into=early)
    assert (late.weights(), late.state()) == (fresh.weights(), fresh.state())


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_weights_on_a_gpu_are_those_on_a_cpu(cuda_graph: bool):
    assert moved(trained(CPU), trained(GPU, cuda_graph=cuda_graph)) < 0.2


@pytest.mark.parametrize("recipe", [RECIPE, NOT_AVERAGED], ids=["averaged", "not averaged"])
def test_graph_goes_where_kernels_begun_one_at_a_time_go(recipe: TrainingRecipe):
    run, plain = (
        next(TrainingRun(recipe, stripes(), GPU, cuda_graph=cuda_graph).epochs()) for cuda_graph in (True, False)
    )
    np.testing.assert_allclose(run.step_losses, plain.step_losses, rtol=2e-3)


def test_step_is_recorded_on_a_gpu_alone():
    runs = [trained(device, cuda_graph=graph) for device, graph in ((GPU, True), (GPU, False), (CPU, True))]
    assert [isinstance(run._captured, CapturedStep) for run in runs] == [True, False, False]


def test_recording_leaves_weights_average_and_optimizers_as_they_were():
    run, untouched = TrainingRun(RECIPE, stripes(), GPU), TrainingRun(RECIPE, stripes(), GPU)
    run.prepare()
    assert torch.equal(vector(run.network), vector(untouched.network))
    assert torch.equal(vector(run._step.network), vector(untouched._step.network))
    states = [*_tensors(run._step)][12:]
    assert len(states) == 2 + 3 * 4  # a momentum a matrix; two moments and a count for each of AdamW's
    assert not any(state.any() for state in states)


@pytest.mark.parametrize("recipe", [RECIPE, NOT_AVERAGED], ids=["averaged", "not averaged"])
def test_recording_in_the_midst_of_a_run_leaves_it_as_it_was(recipe: TrainingRecipe):
    run = TrainingRun(recipe, stripes(), GPU)
    next(run.epochs())
    before = [tensor.detach().clone() for tensor in _tensors(run._step)]
    run._captured = None
    run.prepare()
    assert all(torch.equal(tensor, value) for tensor, value in zip(_tensors(run._step), before, strict=True))


def test_same_seed_gives_the_same_weights():
    assert torch.equal(vector(trained(GPU).network), vector(trained(GPU).network))


def interrupted(device: torch.device) -> tuple[bytes, bytes]:
    """Weights and state after two of four epochs."""
    run = TrainingRun(RECIPE, stripes(), device, validation=stripes(70))
    for epoch in run.epochs():
        if epoch.epoch == 2:
            break
    return save_weights(run.network), run.snapshot().state()


def resumed(device: torch.device, weights: bytes, state: bytes) -> TrainingRun:
    run = TrainingRun(RECIPE, stripes(), device, validation=stripes(70))
    run.prepare()  # for a state that is then another
    run.load_state(load_weights(weights, "model.safetensors"), state)
    assert [epoch.epoch for epoch in run.epochs()] == [3, 4]
    return run


def test_resumed_run_ends_with_the_weights_of_an_undisturbed_one():
    assert torch.equal(vector(resumed(GPU, *interrupted(GPU)).network), vector(trained(GPU).network))


@pytest.mark.parametrize(("begun", "ended"), [(CPU, GPU), (GPU, CPU)], ids=["CPU to GPU", "GPU to CPU"])
def test_run_goes_on_on_another_device(begun: torch.device, ended: torch.device):
    assert moved(trained(begun), resumed(ended, *interrupted(begun))) < 0.2


def test_state_is_read_where_there_is_no_gpu():
    loaded = torch.load(io.BytesIO(interrupted(GPU)[1]), map_location=CPU, weights_only=True)
    assert loaded["epochs_done"] == 2


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_diverging_loss_is_told_by_step(cuda_graph: bool):
    run = TrainingRun(replace(RECIPE, learning_rate=1e16), stripes(), GPU, cuda_graph=cuda_graph)
    with pytest.raises(TrainingDiverged, match=r"The loss became (nan|inf) in epoch 1, step \d+\."):
        list(run.epochs())


@pytest.fixture
def own_precision() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_training_leaves_the_precision_of_others_alone(own_precision: None, precision: str):
    torch.backends.cuda.matmul.fp32_precision = precision
    trained(GPU)
    assert torch.backends.cuda.matmul.fp32_precision == precision


def test_matrix_units_multiply_while_it_is_open():
    matrix = torch.rand(512, 512, device=GPU, generator=torch.Generator(GPU).manual_seed(0))
    exact = (matrix.double() @ matrix.double()).float()

    def error() -> Tensor:
        return ((matrix @ matrix - exact).norm() / exact.norm()).cpu()

    with tensor_cores(GPU):
        assert 1e-5 < error() < 1e-3
    assert error() < 1e-6


def train_as_rank(rank: int, folder: Path) -> None:
    """Two processes share the GPU; NCCL wants one each, gloo does not."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    run = TrainingRun(RECIPE, stripes(), GPU, dist.group.WORLD, validation=stripes(70))
    losses = [epoch.step_losses for epoch in run.epochs()]
    torch.save({"weights": vector(run.network).cpu(), "losses": losses[0]}, folder / str(rank))
    dist.destroy_process_group()


def test_two_ranks_go_where_one_alone_goes(tmp_path: Path):
    torch.multiprocessing.spawn(train_as_rank, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(2))
    assert torch.equal(first["weights"], second["weights"])
    alone = next(TrainingRun(RECIPE, stripes(), GPU, cuda_graph=False).epochs())
    np.testing.assert_allclose(first["losses"], alone.step_losses, rtol=2e-3)
