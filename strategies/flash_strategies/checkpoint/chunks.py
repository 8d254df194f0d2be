"""Slices of flattened tensors on disk: every rank writes its own, any rank reads any range, by DCP and safetensors.

torch.distributed.checkpoint plans who writes and reads what; its Hugging Face storage keeps the slices in safetensors
files, each with its offset in the file's header, so that nothing that is read back is pickled.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from flash_strategies.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Slice:
    """A range of one flattened tensor."""

    key: str
    """Name of the whole."""
    start: int
    """Position of the first element in the flattened whole."""
    tensor: torch.Tensor
    """The elements, one-dimensional; to be written, or to be filled in place."""
    whole: int
    """Elements of the whole."""


def share(slices: Iterable[Slice], rank: int, world_size: int) -> Iterator[Slice]:
    """This rank's share of slices that all ranks hold alike: all ranks together write each element once.

    The slices are cut as if they lay one behind the other, so that every rank writes as much.
    """
    listed = list(slices)
    total = sum(one.tensor.numel() for one in listed)
    low, high = total * rank // world_size, total * (rank + 1) // world_size
    offset = 0
    for one in listed:
        begin, end = max(low - offset, 0), min(high - offset, one.tensor.numel())
        if begin < end:
            yield Slice(one.key, one.start + begin, one.tensor[begin:end], one.whole)
        offset += one.tensor.numel()


def staged(slices: Iterable[Slice]) -> list[Slice]:
    """Copies in CPU memory, which training may leave behind."""
    return [
        Slice(one.key, one.start, one.tensor.detach().to("cpu", copy=True), one.whole)
        for one in slices
        if one.tensor.numel()
    ]


def write_chunks(folder: Path, slices: Sequence[Slice], group: dist.ProcessGroup | None = None) -> None:
    """Write slices of all ranks into a folder; every rank must call it, with its own.

    Args:
        folder: is made if it is not there; the same for all ranks, on storage that they share.
        slices: in CPU memory; a rank has at most one slice of a key.
        group: gloo group of the ranks; None where there is one rank only.

    Raises:
        CheckpointError: a rank could not write; names the rank and what it met.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _told(f"{folder} cannot be written"):
        save({}, storage_writer=writer, planner=_SavePlanner(slices), process_group=group, no_dist=group is None)


def read_chunks(folder: Path, slices: Sequence[Slice], group: dist.ProcessGroup | None = None) -> None:
    """Fill slices from what `write_chunks` wrote, whoever wrote it; every rank must call it, with its own.

    Types are converted where they differ.

    Raises:
        CheckpointError: a file cannot be read, or does not hold what is asked for.
    """
    with _told(f"{folder} cannot be read"):
        reader = HuggingFaceStorageReader(str(folder))
        load({}, storage_reader=reader, planner=_LoadPlanner(slices), process_group=group, no_dist=group is None)


@contextmanager
def _told(what: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.distributed\.checkpoint.*")
        warnings.filterwarnings("ignore", message=".*torch.distributed is.*")
        try:
            yield
        except CheckpointException as error:
            rank, (cause, _) = min(error.failures.items())
            if isinstance(cause, CheckpointError):
                raise cause from error
            raise CheckpointError(f"{what}, rank {rank} met {type(cause).__name__}: {cause}") from error


class _SavePlanner(SavePlanner):
    """Plans the slices as shards of one-dimensional tensors."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        self._slices = {one.key: one for one in slices}
        assert len(self._slices) == len(slices), "a rank has one slice of a key"

    def set_up_planner(
        self, state_dict: object, storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        """Nothing: the slices are known."""

    def create_local_plan(self) -> SavePlan:
        """An item per slice."""
        return SavePlan([_write_item(one) for one in self._slices.values()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """The ranks' plans as they are: nothing is written twice."""
        found: dict[str, TensorStorageMetadata] = {}
        for plan in all_plans:
            for item in plan.items:
                data = item.tensor_data
                assert data is not None
                found.setdefault(item.index.fqn, TensorStorageMetadata(data.properties, data.size, []))
                found[item.index.fqn].chunks.append(data.chunk)
        return all_plans, Metadata(dict(found))

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """The storage's plan as it is."""
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """The slice's elements."""
        return self._slices[write_item.index.fqn].tensor


def _write_item(one: Slice) -> WriteItem:
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(torch.Size([one.start]), torch.Size([one.tensor.numel()])),
        properties=TensorProperties.create_from_tensor(one.tensor),
        size=torch.Size([one.whole]),
    )
    return WriteItem(MetadataIndex(one.key, torch.Size([one.start])), WriteItemType.SHARD, tensor_data=data)


class _LoadPlanner(LoadPlanner):
    """Plans which stored shards overlap with the slices that are asked for."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        self._slices = list(slices)
        self._metadata: dict[str, TensorStorageMetadata] = {}

    def set_up_planner(
        self, state_dict: object, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take what the files' headers say."""
        assert metadata is not None
        self._metadata = cast("dict[str, TensorStorageMetadata]", metadata.state_dict_metadata)

    def create_local_plan(self) -> LoadPlan:
        """An item per overlap.

        Raises:
            CheckpointError: a tensor is missing, has another size, or has a hole.
        """
        return LoadPlan([item for number in range(len(self._slices)) for item in self._items(number)])

    def _items(self, number: int) -> Iterator[ReadItem]:
        one = self._slices[number]
        stored = self._metadata.get(one.key)
        if stored is None:
            raise CheckpointError(f"there is no {one.key} in the checkpoint's files")
        if stored.size[0] != one.whole:
            raise CheckpointError(
                f"{one.key} has {stored.size[0]:,} elements in the checkpoint and {one.whole:,} in the model"
            )
        end, covered = one.start + one.tensor.numel(), 0
        for chunk in stored.chunks:
            begin, stop = max(one.start, chunk.offsets[0]), min(end, chunk.offsets[0] + chunk.sizes[0])
            if begin >= stop:
                continue
            covered += stop - begin
            yield ReadItem(
                LoadItemType.TENSOR,
                dest_index=MetadataIndex(str(number)),
                dest_offsets=torch.Size([begin - one.start]),
                storage_index=MetadataIndex(one.key, chunk.offsets),
                storage_offsets=torch.Size([begin - chunk.offsets[0]]),
                lengths=torch.Size([stop - begin]),
            )
        if covered != one.tensor.numel():
            raise CheckpointError(
                f"{one.key} has {covered:,} of the {one.tensor.numel():,} elements from {one.start:,} on in the "
                "checkpoint's files: a file of another rank is missing or was cut"
            )

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """The ranks' plans as they are."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Never called: there are only tensors."""
        raise AssertionError(read_item)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """The part of the slice that the stored shard fills."""
        one = self._slices[int(read_item.dest_index.fqn)]
        begin = read_item.dest_offsets[0]
        return one.tensor[begin : begin + read_item.lengths[0]]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Nothing: it was filled in place."""
