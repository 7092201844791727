"""Several ranks train like a single one."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from fmnist_model.dataset import LabelledImages, from_table
from fmnist_model.network import NeuralNetwork
from fmnist_model.training.divergence import TrainingDiverged
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.recipe import PRESETS, TrainingRecipe
from tests.unit.fmnist_model.images.striped_images import stripes, vector
from tests.unit.fmnist_model.training.toy_training import CPU, RECIPE, train

pytestmark = pytest.mark.slow  # four processes train

SHARED = {
    "batch that divides": replace(RECIPE, global_batch_size=60),
    "batch that does not divide": replace(RECIPE, global_batch_size=61),
    "augmented": replace(RECIPE, global_batch_size=61, flip=True, shift_pixels=2),
    "fewer images than ranks": replace(RECIPE, epochs=1, global_batch_size=1),
}
DIVERGING = replace(RECIPE, learning_rate=1e16)


def data_for(recipe: TrainingRecipe) -> LabelledImages:
    return stripes(20 if recipe.global_batch_size == 1 else 250)


def first_hundred_losses(data: Path, group: dist.ProcessGroup | None = None) -> Any:
    """Train by the preset `full` on a sixth of Fashion-MNIST, for as many steps as on the whole data set."""
    with np.load(data) as arrays:
        images = LabelledImages(arrays["images"], arrays["labels"])
    run = TrainingRun(replace(PRESETS["full"], epochs=360), images, CPU, group)
    epochs = islice(run.epochs(), -(-100 // run.steps_per_epoch))
    return np.concatenate([epoch.step_losses for epoch in epochs])[:100]


def own_momenta(run: TrainingRun) -> dict[int, Tensor]:
    """Momenta of the hidden layers' matrices that this rank updates, by number of the matrix."""
    optimizer: Any = run._step.optimizers[0]
    matrices = enumerate(optimizer.param_groups[0]["params"])
    return {
        number: optimizer.optim.state[matrix]["momentum_buffer"]
        for number, matrix in matrices
        if matrix in optimizer.optim.state
    }


def train_as_rank(rank: int, folder: Path, fashion_mnist: Path) -> None:
    """Run one of four processes: first all four train together, then ranks 0 and 1."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=4)
    for group in (dist.group.WORLD, dist.new_group([0, 1])):
        if isinstance(group, dist.ProcessGroup):
            for name, recipe in SHARED.items():
                run = TrainingRun(recipe, data_for(recipe), CPU, group)
                epochs = [(epoch.loss, epoch.accuracy, epoch.images) for epoch in run.epochs()]
                if rank == 0:
                    (folder / f"{name}-{dist.get_world_size(group)}-state").write_bytes(run.snapshot().state())
                torch.save(
                    {"weights": vector(run.network), "epochs": epochs, "momenta": own_momenta(run)},
                    folder / f"{name}-{dist.get_world_size(group)}-{rank}",
                )
            losses = first_hundred_losses(fashion_mnist, group)
            torch.save(losses, folder / f"losses-{dist.get_world_size(group)}-{rank}")
            with pytest.raises(TrainingDiverged):
                list(TrainingRun(DIVERGING, stripes(), CPU, group).epochs())
            (folder / f"diverged-{dist.get_world_size(group)}-{rank}").touch()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def fashion_mnist(data_store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first file of Fashion-MNIST's training images, as NumPy arrays."""
    file = tmp_path_factory.mktemp("data") / "train.npz"
    [part, *_] = sorted(Path(data_store.removeprefix("file://")).glob("datasets/*/train/*.parquet"))
    data = from_table([pq.read_table(part)], str(part))
    np.savez(file, images=data.images, labels=data.labels)
    return file


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> Path:
    """A folder with the results of each rank, of two and of four processes."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(train_as_rank, (folder, fashion_mnist), nprocs=4)
    return folder


@pytest.fixture(scope="module")
def single() -> dict[str, tuple[Tensor, list[tuple[float, float, int]]]]:
    outcomes = {}
    for name, recipe in SHARED.items():
        run, epochs = train(recipe, data_for(recipe))
        outcomes[name] = (vector(run.network), [(epoch.loss, epoch.accuracy, epoch.images) for epoch in epochs])
    return outcomes


@pytest.fixture(scope="module")
def single_losses(fashion_mnist: Path) -> Any:
    return first_hundred_losses(fashion_mnist)


@pytest.mark.parametrize("world_size", [2, 4])
def test_first_hundred_losses_are_those_of_a_single_rank(ranks: Path, single_losses: Any, world_size: int):
    losses = torch.load(ranks / f"losses-{world_size}-0", weights_only=False)
    assert len(losses) == 100
    np.testing.assert_allclose(losses, single_losses, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in SHARED if name != "fewer images than ranks"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_weights_are_close_to_those_of_a_single_rank(ranks: Path, single: Any, world_size: int, name: str):
    """They can't be equal: where a small batch has no gradient, Muon amplifies the rounding errors of bfloat16."""
    weights, expected = torch.load(ranks / f"{name}-{world_size}-0")["weights"], single[name][0]
    initial = vector(TrainingRun(SHARED[name], data_for(SHARED[name]), CPU).network)
    assert (weights - expected).norm() < 0.2 * (expected - initial).norm()


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_metrics_are_those_of_a_single_rank(ranks: Path, single: Any, world_size: int, name: str):
    epochs = torch.load(ranks / f"{name}-{world_size}-0")["epochs"]
    np.testing.assert_allclose(epochs, single[name][1], rtol=1e-3)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_end_with_the_same_weights(ranks: Path, world_size: int, name: str):
    first, *others = (torch.load(ranks / f"{name}-{world_size}-{rank}")["weights"] for rank in range(world_size))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_single_rank_loads_the_state_of_several(ranks: Path, world_size: int, name: str):
    """An elastic run may have fewer or more workers after a restart."""
    saved = (ranks / f"{name}-{world_size}-state").read_bytes()
    run = TrainingRun(SHARED[name], data_for(SHARED[name]), CPU).load_state(NeuralNetwork(), saved)
    muon = run._step.optimizers[0]
    momenta = [muon.state[weight]["momentum_buffer"] for weight in muon.param_groups[0]["params"]]
    assert [list(momentum.shape) for momentum in momenta] == [[512, 784], [512, 512]]
    assert all(momentum.any() for momentum in momenta)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_saved_state_has_the_momenta_of_every_rank(ranks: Path, world_size: int, name: str):
    saved = torch.load(ranks / f"{name}-{world_size}-state", weights_only=True)["optimizers"][0]["state"]
    by_rank = [torch.load(ranks / f"{name}-{world_size}-{rank}")["momenta"] for rank in range(world_size)]
    assert sorted(number for own in by_rank for number in own) == [0, 1]
    for own in by_rank:
        for number, momentum in own.items():
            assert torch.equal(saved[number]["momentum_buffer"], momentum)


@pytest.mark.parametrize("world_size", [2, 4])
def test_divergence_is_raised_on_every_rank(ranks: Path, world_size: int):
    assert all((ranks / f"diverged-{world_size}-{rank}").exists() for rank in range(world_size))
