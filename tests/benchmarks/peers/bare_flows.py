"""Define flows that start only the workers or actors of training and classification: the floor of a start.

They use nothing of this project and follow Prefect's and Ray's guides. They have no settings, checks, plan, data,
progress or logs. Each flow writes the time of its first step or first shard to a file.
"""

import os
import time
from pathlib import Path
from typing import Any

from prefect import flow

_WORKERS = 2


@flow
def bare_train(parameters: dict[str, str]) -> None:
    """Run one DDP step on random images with Ray Train's workers."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(os.environ["FMNIST_RAY_ADDRESS"], log_to_driver=False)
    trainer = TorchTrainer(
        _one_step,
        train_loop_config=parameters,
        scaling_config=ScalingConfig(num_workers=_WORKERS),
        run_config=RunConfig(storage_path=str(Path(parameters["stamp"]).parent / "bare")),
    )
    trainer.fit()


def _one_step(parameters: dict[str, str]) -> None:
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    network = prepare_model(_network())
    optimizer = torch.optim.AdamW(network.parameters())
    torch.nn.functional.cross_entropy(network(torch.rand(512, 784)), torch.zeros(512, dtype=torch.long)).backward()
    optimizer.step()
    if ray.train.get_context().get_world_rank() == 0:
        Path(parameters["stamp"]).write_text(str(time.time()))


@flow
def bare_classify(parameters: dict[str, str]) -> None:
    """Process one shard of random images on each of several actors."""
    import ray

    ray.init(os.environ["FMNIST_RAY_ADDRESS"], log_to_driver=False)
    actors = [ray.remote(_Classifier).remote() for _ in range(_WORKERS)]
    ray.wait([actor.classify.remote() for actor in actors])
    Path(parameters["stamp"]).write_text(str(time.time()))


class _Classifier:
    def __init__(self) -> None:
        self._network = _network()

    def classify(self) -> Any:
        import torch

        with torch.inference_mode():
            return self._network(torch.rand(10_000, 784)).argmax(1).numpy()


def _network() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
