"""The network is that of the tutorial, and loads only weights that fit it."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import fmnist_model
from fmnist_model.errors import InvalidWeights
from fmnist_model.network import NeuralNetwork, load_weights, save_weights
from fmnist_model.weights import PARAMETER_SHAPES
from tests.unit.fmnist_model.tutorial_network import TutorialNetwork


class Planted:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def network() -> NeuralNetwork:
    torch.manual_seed(1)
    return NeuralNetwork().eval()


@pytest.fixture
def weights(network: NeuralNetwork) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_network_is_importable_from_the_package():
    assert fmnist_model.NeuralNetwork is NeuralNetwork


def test_unknown_attribute_of_the_package_is_refused():
    with pytest.raises(AttributeError, match="NeuralNetwrok"):
        _ = fmnist_model.NeuralNetwrok


def test_importing_the_package_does_not_import_torch():
    code = "import sys, fmnist_model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_state_dict_has_the_tutorials_keys_in_its_order(network: NeuralNetwork):
    assert list(network.state_dict()) == list(TutorialNetwork().state_dict())


def test_parameters_have_the_tutorials_shapes(network: NeuralNetwork):
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in TutorialNetwork().state_dict().items()}


def test_expected_shapes_are_those_of_the_network(network: NeuralNetwork):
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == PARAMETER_SHAPES


def test_printed_structure_is_the_tutorials(network: NeuralNetwork):
    assert str(network) == str(TutorialNetwork()).replace("TutorialNetwork", "NeuralNetwork")


def test_seeded_initial_weights_are_the_tutorials():
    torch.manual_seed(7)
    reference = TutorialNetwork().state_dict()
    torch.manual_seed(7)
    assert all(torch.equal(tensor, reference[name]) for name, tensor in NeuralNetwork().state_dict().items())


@pytest.mark.parametrize("shape", [(1, 28, 28), (7, 28, 28), (7, 1, 28, 28), (0, 28, 28)])
def test_network_with_the_tutorials_weights_returns_its_logits(network: NeuralNetwork, shape: tuple[int, ...]):
    reference = TutorialNetwork()
    network.load_state_dict(reference.state_dict())
    batch = torch.rand(shape)
    assert torch.equal(network(batch), reference(batch))


@pytest.mark.parametrize("shape", [(7, 28, 28), (7, 1, 28, 28)])
def test_tutorial_with_the_networks_weights_returns_its_logits(network: NeuralNetwork, shape: tuple[int, ...]):
    reference = TutorialNetwork()
    reference.load_state_dict(network.state_dict())
    batch = torch.rand(shape)
    assert torch.equal(reference(batch), network(batch))


def test_channel_dimension_changes_no_logit(network: NeuralNetwork):
    batch = torch.rand(5, 28, 28)
    assert torch.equal(network(batch), network(batch[:, None]))


def test_network_returns_logits_instead_of_probabilities(network: NeuralNetwork):
    assert network(torch.rand(5, 28, 28)).min() < 0


def test_saved_weights_load_unchanged(network: NeuralNetwork):
    loaded = load_weights(save_weights(network), "model.safetensors")
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_same_weights_are_saved_as_the_same_bytes(network: NeuralNetwork):
    assert save_weights(network) == save_weights(load_weights(save_weights(network), "model.safetensors"))


def test_saved_weights_of_the_tutorial_load_unchanged():
    reference = TutorialNetwork()
    loaded = load_weights(save_weights(reference), "tutorial.safetensors")
    batch = torch.rand(3, 28, 28)
    assert torch.equal(loaded(batch), reference(batch))


def test_loaded_network_is_in_evaluation_mode(network: NeuralNetwork):
    assert not load_weights(save_weights(network), "model.safetensors").training


def test_half_precision_weights_load_as_float32(weights: dict[str, Tensor]):
    loaded = load_weights(save({name: tensor.half() for name, tensor in weights.items()}), "model.safetensors")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_tensor_of_another_shape_is_refused_by_name(weights: dict[str, Tensor]):
    weights["linear_relu_stack.4.weight"] = torch.zeros(11, 512)
    with pytest.raises(InvalidWeights, match=r"linear_relu_stack\.4\.weight.*\[11, 512\].*\[10, 512\]"):
        load_weights(save(weights), "a.safetensors")


def test_transposed_tensor_is_refused_by_name(weights: dict[str, Tensor]):
    weights["linear_relu_stack.0.weight"] = torch.zeros(784, 512)
    with pytest.raises(InvalidWeights, match=r"linear_relu_stack\.0\.weight.*\[784, 512\]"):
        load_weights(save(weights), "a.safetensors")


def test_missing_tensor_is_refused_by_name(weights: dict[str, Tensor]):
    del weights["linear_relu_stack.2.bias"]
    with pytest.raises(InvalidWeights, match=r"a\.safetensors.*linear_relu_stack\.2\.bias"):
        load_weights(save(weights), "a.safetensors")


def test_extra_tensor_is_refused_by_name(weights: dict[str, Tensor]):
    weights["linear_relu_stack.6.bias"] = torch.zeros(10)
    with pytest.raises(InvalidWeights, match=r"a\.safetensors.*linear_relu_stack\.6\.bias"):
        load_weights(save(weights), "a.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_tensor_that_is_not_finite_is_refused_by_name(weights: dict[str, Tensor], value: float):
    weights["linear_relu_stack.2.weight"][5, 7] = value
    with pytest.raises(InvalidWeights, match=r"a\.safetensors.*linear_relu_stack\.2\.weight.*finite"):
        load_weights(save(weights), "a.safetensors")


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64, torch.bfloat16])
def test_tensors_of_an_unexpected_type_are_refused(weights: dict[str, Tensor], kind: torch.dtype):
    with pytest.raises(InvalidWeights, match=r"a\.safetensors.*type.*float32"):
        load_weights(save({name: tensor.to(kind) for name, tensor in weights.items()}), "a.safetensors")


@pytest.mark.parametrize("data", [b"", b"\0", b"not weights at all", b"\xff" * 64, b"{}" + b" " * 62])
def test_file_of_another_format_is_refused_by_name(data: bytes):
    with pytest.raises(InvalidWeights, match=r"a\.safetensors"):
        load_weights(data, "a.safetensors")


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.999])
def test_truncated_file_is_refused_by_name(network: NeuralNetwork, kept: float):
    data = save_weights(network)
    with pytest.raises(InvalidWeights, match=r"a\.safetensors"):
        load_weights(data[: int(len(data) * kept)], "a.safetensors")


def test_pickle_is_refused(tmp_path: Path):
    with pytest.raises(InvalidWeights, match=r"a\.safetensors"):
        load_weights(pickle.dumps(Planted(tmp_path / "planted")), "a.safetensors")


@pytest.mark.parametrize("saved_by", ["pickle", "torch"])
def test_planted_pickle_is_never_executed(tmp_path: Path, saved_by: str):
    planted, source = tmp_path / "planted", tmp_path / "weights"
    if saved_by == "pickle":
        source.write_bytes(pickle.dumps(Planted(planted)))
    else:
        torch.save(Planted(planted), source)
    with pytest.raises(InvalidWeights):
        load_weights(source.read_bytes(), "a.safetensors")
    assert not planted.exists()
    torch.load(source, weights_only=False) if saved_by == "torch" else pickle.loads(source.read_bytes())  # noqa: S301
    assert planted.exists(), "the pickle does nothing, so this test proves nothing"
