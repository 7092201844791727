"""Ranks together go where one alone goes, however many they are."""

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
from fmnist_model.training.loop import TrainingDiverged, TrainingRun
from fmnist_model.training.recipe import PRESETS, TrainingRecipe
from tests.unit.fmnist_model.images.striped_images import stripes, vector
from tests.unit.fmnist_model.training.toy_training import CPU, RECIPE, train

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
    """Of the preset `full` on a sixth of Fashion-MNIST, and with as many steps as on the whole."""
    with np.load(data) as arrays:
        images = LabelledImages(arrays["images"], arrays["labels"])
    run = TrainingRun(replace(PRESETS["full"], epochs=360), images, CPU, group)
    epochs = islice(run.epochs(), -(-100 // run.steps_per_epoch))
    return np.concatenate([epoch.step_losses for epoch in epochs])[:100]


def own_momenta(run: TrainingRun) -> dict[int, Tensor]:
    """Of the hidden layers' matrices that this rank alone does, by number."""
    optimizer: Any = run._step.optimizers[0]
    matrices = enumerate(optimizer.param_groups[0]["params"])
    return {
        number: optimizer.optim.state[matrix]["momentum_buffer"]
        for number, matrix in matrices
        if matrix in optimizer.optim.state
    }


def train_as_rank(rank: int, folder: Path, fashion_mnist: Path) -> None:
    """What each of four processes runs: first all four of them train together, then ranks 0 and 1."""
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
    """The first part of its training images."""
    file = tmp_path_factory.mktemp("data") / "train.npz"
    [part, *_] = sorted(Path(data_store.removeprefix("file://")).glob("datasets/*/train/*.parquet"))
    data = from_table([pq.read_table(part)], str(part))
    np.savez(file, images=data.images, labels=data.labels)
    return file


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> Path:
    """A folder with what each rank of two and of four processes was left with."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(train_as_rank, (folder, fashion_mnist), nprocs=4)
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[Tensor, list[tuple[float, float, int]]]]:
    outcomes = {}
    for name, recipe in SHARED.items():
        run, epochs = train(recipe, data_for(recipe))
        outcomes[name] = (vector(run.network), [(epoch.loss, epoch.accuracy, epoch.images) for epoch in epochs])
    return outcomes


@pytest.fixture(scope="module")
def losses_alone(fashion_mnist: Path) -> Any:
    return first_hundred_losses(fashion_mnist)


@pytest.mark.parametrize("world_size", [2, 4])
def test_first_hundred_losses_are_those_of_one_alone(ranks: Path, losses_alone: Any, world_size: int):
    together = torch.load(ranks / f"losses-{world_size}-0", weights_only=False)
    assert len(together) == 100
    np.testing.assert_allclose(together, losses_alone, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in SHARED if name != "fewer images than ranks"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_go_where_one_alone_goes(ranks: Path, alone: Any, world_size: int, name: str):
    """Within what Muon makes of rounding: directions of which a small batch says nothing move by bfloat16's noise."""
    together, single = torch.load(ranks / f"{name}-{world_size}-0")["weights"], alone[name][0]
    begin = vector(TrainingRun(SHARED[name], data_for(SHARED[name]), CPU).network)
    assert (together - single).norm() < 0.2 * (single - begin).norm()


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_report_the_curve_of_one_alone(ranks: Path, alone: Any, world_size: int, name: str):
    together = torch.load(ranks / f"{name}-{world_size}-0")["epochs"]
    np.testing.assert_allclose(together, alone[name][1], rtol=1e-3)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_end_with_the_same_weights(ranks: Path, world_size: int, name: str):
    first, *others = (torch.load(ranks / f"{name}-{world_size}-{rank}")["weights"] for rank in range(world_size))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_state_that_ranks_together_saved_is_taken_up_by_one_alone(ranks: Path, world_size: int, name: str):
    """As an elastic run does whose workers are fewer or more after a restart."""
    saved = (ranks / f"{name}-{world_size}-state").read_bytes()
    run = TrainingRun(SHARED[name], data_for(SHARED[name]), CPU).load_state(NeuralNetwork(), saved)
    muon = run._step.optimizers[0]
    momenta = [muon.state[weight]["momentum_buffer"] for weight in muon.param_groups[0]["params"]]
    assert [list(momentum.shape) for momentum in momenta] == [[512, 784], [512, 512]]
    assert all(momentum.any() for momentum in momenta)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_saved_momenta_are_those_of_the_ranks_that_have_them(ranks: Path, world_size: int, name: str):
    saved = torch.load(ranks / f"{name}-{world_size}-state", weights_only=True)["optimizers"][0]["state"]
    of_ranks = [torch.load(ranks / f"{name}-{world_size}-{rank}")["momenta"] for rank in range(world_size)]
    assert sorted(number for own in of_ranks for number in own) == [0, 1]
    for own in of_ranks:
        for number, momentum in own.items():
            assert torch.equal(saved[number]["momentum_buffer"], momentum)


@pytest.mark.parametrize("world_size", [2, 4])
def test_divergence_is_told_on_every_rank(ranks: Path, world_size: int):
    assert all((ranks / f"diverged-{world_size}-{rank}").exists() for rank in range(world_size))
