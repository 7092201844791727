"""The model works on a machine without the rest of the project."""

import subprocess
import sys

TRAIN_AND_CLASSIFY = """
import sys

for library in (
    "PIL", "boto3", "deflate", "duckdb", "fsspec", "jinja2", "matplotlib", "prefect", "psutil", "pydantic", "ray",
    "rich", "safetensors", "tenacity", "torchvision",
):
    sys.modules[library] = None  # makes the import fail

import numpy as np
import torch

from fmnist_model.classifier import Classifier
from fmnist_model.dataset import LabelledImages
from fmnist_model.training.loop import TrainingRun
from fmnist_model.training.recipe import TrainingRecipe

data = LabelledImages(np.zeros((20, 28, 28), np.uint8), np.arange(20) % 10)
run = TrainingRun(TrainingRecipe(epochs=1, global_batch_size=20), data, torch.device("cpu"))
assert len(list(run.epochs())) == 1
assert len(Classifier(run.network, torch.device("cpu")).classify(data.images).classes) == 20
"""


def test_training_and_classifying_pixels_need_only_torch_numpy_and_pyarrow():
    command = [sys.executable, "-c", TRAIN_AND_CLASSIFY]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
