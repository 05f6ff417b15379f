"""Hands a Batch from a loader process to the trainer as one buffer: one shared-memory file, one page-locked block.

A Batch has some 25 tensors; sent one by one, each takes a file descriptor in both processes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from m3ae_scale.batch import Batch, map_tensors

_ALIGN = 64  # bytes


@dataclass(frozen=True)
class Parcel:
    """A Batch in one buffer."""

    buffer: Tensor  # (bytes,) uint8
    layout: Batch  # the Batch with tensors on "meta": types and shapes without data

    def pin_memory(self) -> "Parcel":
        """Return the parcel in page-locked memory; DataLoader calls this by name."""
        return Parcel(self.buffer.pin_memory(), self.layout)


def wrap(batch: Batch) -> Parcel:
    """Copy the tensors of `batch` into one buffer, which in a loader process lies in shared memory at once."""
    tensors = _tensors(batch)
    size = sum(map(_room, tensors))
    if get_worker_info() is None:
        buffer = torch.empty(size, dtype=torch.uint8)
    else:  # as torch's own collate does: sending a private one would copy it again
        buffer = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
    parcel = Parcel(buffer, map_tensors(batch, lambda tensor: tensor.to("meta")))
    for view, tensor in zip(_tensors(unwrap(parcel)), tensors, strict=True):
        view.copy_(tensor)
    return parcel


def unwrap(parcel: Parcel) -> Batch:
    """Return the Batch whose tensors are views of the buffer."""
    start = 0

    def view(tensor: Tensor) -> Tensor:
        nonlocal start
        data = parcel.buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        start += _room(tensor)
        return data

    return map_tensors(parcel.layout, view)


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, note)
    return found


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGN) * _ALIGN
