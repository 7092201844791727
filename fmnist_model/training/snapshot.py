"""A copy of a training run's state, which another thread can save while training continues."""

import copy
import io
from typing import Any

import torch
from torch import Tensor
from torch.utils.serialization import config

from fmnist_model.network import NeuralNetwork, save_weights


class Snapshot:
    """A copy of everything that a resumed run needs."""

    def __init__(self, network: NeuralNetwork, state: dict[str, Any], into: "Snapshot | None" = None) -> None:
        """Copy the network and the state.

        Args:
            network: the network to keep, with averaged weights if the recipe averages them.
            state: everything else that a resumed run needs.
            into: an earlier snapshot whose memory to reuse. Allocating new memory costs more than everything else here,
                above all on a virtual machine.
        """
        self._network: NeuralNetwork = into._network if into else copy.deepcopy(network)
        if into:
            self._network.load_state_dict(network.state_dict())
        self._state: dict[str, Any] = _copied(state, into._state if into else None)
        self._file: io.BytesIO = into._file if into else io.BytesIO()

    def weights(self) -> bytes:
        """Return the network's weights as a safetensors file."""
        return save_weights(self._network)

    def state(self) -> bytes:
        """Return everything else, for `TrainingRun.load_state`.

        The file contains no CRC-32 checksums, since computing them would take two thirds of the time. Store your own
        checksum with it.
        """
        self._file.seek(0)
        with config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
            torch.save(self._state, self._file)
        self._file.truncate()
        return self._file.getvalue()


def _copied(value: Any, into: Any) -> Any:
    """Copy a value deeply, writing tensors over those of the same shape and type at the same places in `into`."""
    if isinstance(value, Tensor):
        same = isinstance(into, Tensor) and (value.shape, value.dtype) == (into.shape, into.dtype)
        return into.copy_(value) if same else value.detach().clone()
    if isinstance(value, dict):
        parts = into if isinstance(into, dict) else {}
        return {name: _copied(part, parts.get(name)) for name, part in value.items()}
    if isinstance(value, list):
        items = into if isinstance(into, list) and len(into) == len(value) else [None] * len(value)
        return [_copied(item, there) for item, there in zip(value, items, strict=True)]
    return copy.deepcopy(value)
