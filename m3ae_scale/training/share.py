"""Under tensor parallelism the ranks of one group need the same batch: one of them reads it, the others receive it."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from m3ae_scale.batch import Batch
from m3ae_scale.data.handoff import Parcel, unwrap, wrap
from m3ae_scale.errors import InputError
from m3ae_scale.parallel.groups import Groups


def on_device(batches: Iterable[Batch] | None, groups: Groups) -> Iterator[Batch]:
    """Yield each batch on this rank's device; `batches` is None on the ranks that receive.

    Raises InputError on all ranks of the group when the reading one does.
    """
    if groups.tensor is None:
        for batch in batches or ():
            yield batch.to(groups.device)
        return
    source = iter(batches) if batches is not None else None
    while (parcel := _broadcast(source, groups, groups.tensor)) is not None:
        yield unwrap(parcel)


def _broadcast(source: Iterator[Batch] | None, groups: Groups, tensor: dist.ProcessGroup) -> Parcel | None:
    """Send the next batch of the reading rank to its group as one buffer; None when there is none left."""
    parcel: Parcel | None = None
    told: list[Any] = [None, None]  # (layout, bytes) of the parcel; the reader's mistake
    if source is not None:
        try:
            batch = next(source, None)
            parcel = wrap(batch) if batch is not None else None
            told = [parcel and (parcel.layout, len(parcel.buffer)), None]
        except InputError as error:
            told = [None, str(error)]
    reader = dist.get_global_rank(tensor, 0)
    dist.broadcast_object_list(told, src=reader, group=tensor, device=groups.device)
    description, failure = told
    if failure is not None:
        raise InputError(failure)
    if description is None:
        return None
    layout, size = description
    if parcel is not None:
        buffer = parcel.buffer.to(groups.device)
    else:
        buffer = torch.empty(size, dtype=torch.uint8, device=groups.device)
    dist.broadcast(buffer, src=reader, group=tensor)
    return Parcel(buffer, layout)
