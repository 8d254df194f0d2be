"""A user's own loaders, dealt out to ranks: made anew from their public attributes, with samplers that know ranks."""

import inspect
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass

from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from flash_launch.data.dealt import DealtSampler
from flash_launch.data.sampling import EvalBatchSampler, TrainSampler, check_enough
from flash_launch.data.sharded_order import ShardedOrder, agreed_order
from flash_launch.errors import DataError

__all__ = ["ShardedLoader", "map_loaders", "shard_eval_loader", "shard_train_loader"]


@dataclass(frozen=True)
class ShardedLoader:
    """A loader, or a collection of them, that yields this rank's share."""

    loader: object
    """A DataLoader, or a list, tuple, dict or CombinedLoader of them, as it was given."""

    warnings: tuple[str, ...] = ()
    """What could not be done and should be told, a sentence each."""

    samplers: tuple[TrainSampler | ShardedOrder[object], ...] = ()
    """The samplers of the train loaders, for `start_at`."""

    starts_anywhere: bool = True
    """Whether these samplers are all there is to know of where the loaders are."""


def shard_train_loader(loader: object, *, rank: int, world_size: int, seed: int, single: bool = True) -> ShardedLoader:
    """This rank's share of a loader to train on.

    A loader that shuffles gets a TrainSampler, one that does not gets one that keeps the order; a sampler or batch
    sampler of the user's own is run in a ShardedOrder; a DistributedSampler of the right ranks is left alone. So is,
    with a warning, what cannot be dealt out from outside: an iterable data set, or an iterable that is no DataLoader.
    With `single=False` no last batch of one sample is left; see TrainSampler.

    Raises:
        DataError: a DistributedSampler for other ranks, a sampler without a length, a class of loader that cannot be
            made anew.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return ShardedLoader(loader, (_left_alone(loader),) if world_size > 1 else (), starts_anywhere=False)
    sampler, batch_size = loader.sampler, loader.batch_size
    if isinstance(sampler, DealtSampler):  # ours, which deal samples out themselves
        assert not isinstance(sampler.inner, EvalBatchSampler)
        return ShardedLoader(loader, samplers=(sampler.inner,))
    if (own_batches := _own_batches(loader)) is not None:
        _check_length(own_batches)
        batches: ShardedOrder[object] = ShardedOrder(own_batches, rank, world_size, seed)
        return ShardedLoader(_remade(loader, batch_sampler=batches), samplers=(batches,))
    if isinstance(sampler, DistributedSampler):
        if (sampler.num_replicas, sampler.rank) != (world_size, rank):
            raise DataError(
                f"the train loader's DistributedSampler is for rank {sampler.rank} of {sampler.num_replicas}, but this "
                f"is rank {rank} of {world_size}: leave the sampler out, it is put in for you"
            )
        return ShardedLoader(loader, starts_anywhere=False)
    order: TrainSampler | ShardedOrder[object]
    if _is_plain(loader):
        shuffle = isinstance(sampler, RandomSampler)
        assert isinstance(sampler, Sized)
        size = len(sampler)
        single = single or loader.drop_last
        order = TrainSampler(size, rank, world_size, seed, shuffle=shuffle, batch_size=batch_size or 1, single=single)
    else:
        _check_length(sampler)
        order = ShardedOrder(sampler, rank, world_size, seed, batch_size=batch_size)
    return ShardedLoader(
        _remade(loader, batch_size=batch_size, sampler=order, drop_last=loader.drop_last), samplers=(order,)
    )


def shard_eval_loader(loader: object, *, rank: int, world_size: int) -> ShardedLoader:
    """This rank's share of a loader to validate on: each sample once over all ranks, as many batches on every rank.

    A sampler of the user's own says which samples, and its batch sampler the size of the batches; `drop_last` and the
    padding of a DistributedSampler would falsify the metrics, and are left out.

    Raises:
        DataError: fewer samples than ranks; a loader with `batch_size=None` whose items the ranks do not divide evenly;
            a sampler whose order differs between ranks; a class of loader that cannot be made anew.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return ShardedLoader(loader, (_left_alone(loader),) if world_size > 1 else ())
    if isinstance(loader.sampler, DealtSampler):
        return ShardedLoader(loader)
    warnings = ("the validation loader's drop_last is left out: each sample counts",) if loader.drop_last else ()
    sampler: object = loader.sampler
    order: Sequence[int] | None = None
    batch_size = loader.batch_size
    if (own_batches := _own_batches(loader)) is not None:
        batches = agreed_order(own_batches, seed=0)
        batch_size = max(map(len, batches), default=1)
        order = [index for batch in batches for index in batch]
        size = len(order)
    elif _is_plain(loader) or isinstance(sampler, DistributedSampler):
        assert isinstance(loader.dataset, Sized)
        size = len(loader.dataset)
    else:
        assert isinstance(sampler, Iterable)
        order = agreed_order(sampler, seed=0)
        size = len(order)
    if batch_size is None:
        check_enough(size, world_size)
        if size % world_size:
            raise DataError(
                f"{size} batches of a validation loader with batch_size=None cannot be dealt out evenly to "
                f"{world_size} ranks: give it a batch size, or a number of batches that the ranks divide"
            )
        positions = range(rank, size, world_size)
        own = positions if order is None else [order[position] for position in positions]
        return ShardedLoader(_remade(loader, batch_size=None, sampler=own), warnings)
    dealt = EvalBatchSampler(size, batch_size, rank, world_size, order=order)
    return ShardedLoader(_remade(loader, batch_sampler=dealt), warnings)


def map_loaders(loaders: object, shard: Callable[[object], ShardedLoader]) -> ShardedLoader:
    """The same for a loader, or for each in a list, tuple, dict or CombinedLoader of them."""
    if isinstance(loaders, CombinedLoader):
        parts = [shard(loader) for loader in loaders.flattened]
        loaders.flattened = [part.loader for part in parts]
        return _joined(loaders, parts)
    if isinstance(loaders, dict):
        of_keys = {key: map_loaders(loader, shard) for key, loader in loaders.items()}
        return _joined({key: part.loader for key, part in of_keys.items()}, list(of_keys.values()))
    if isinstance(loaders, list | tuple):
        parts = [map_loaders(loader, shard) for loader in loaders]
        return _joined([part.loader for part in parts], parts)
    return shard(loaders)


def _joined(loader: object, parts: Sequence[ShardedLoader]) -> ShardedLoader:
    warnings = tuple(warning for part in parts for warning in part.warnings)
    samplers = tuple(sampler for part in parts for sampler in part.samplers)
    return ShardedLoader(loader, warnings, samplers, all(part.starts_anywhere for part in parts))


def _own_batches(loader: DataLoader[object]) -> Iterable[list[int]] | None:
    """The batch sampler that the user gave; None where DataLoader made it."""
    return loader.batch_sampler if loader.batch_size is None else None


def _is_plain(loader: DataLoader[object]) -> bool:
    """Whether the order is one that DataLoader makes itself: all samples once, shuffled or not."""
    sampler = loader.sampler
    if type(sampler) is SequentialSampler:
        return True
    assert isinstance(loader.dataset, Sized)
    return type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == len(loader.dataset)


def _check_length(sampler: object) -> None:
    if not isinstance(sampler, Sized):
        raise DataError(
            f"the train loader's {type(sampler).__name__} has no __len__, so it cannot be dealt out to ranks"
        )


def _left_alone(loader: object) -> str:
    what = f"{type(loader.dataset).__name__} is an iterable data set" if isinstance(loader, DataLoader) else ""
    what = what or f"{type(loader).__name__} is no torch DataLoader"
    return f"{what}: it is not dealt out to ranks; let it yield each rank's share, as many batches on each, itself"


_KEPT = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
    "in_order",
)


def _remade(loader: DataLoader[object], **changed: object) -> DataLoader[object]:
    arguments = {name: getattr(loader, name) for name in _KEPT if hasattr(loader, name)} | changed
    if type(loader).__init__ is not DataLoader.__init__:
        parameters = inspect.signature(type(loader)).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        needed = {"dataset", *changed}
        unknown_to_us = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            and name not in {"dataset", *arguments}
        ]
        if unknown_to_us or not (takes_all or needed <= parameters.keys()):
            raise DataError(
                f"a loader of the class {type(loader).__name__} cannot be made anew for each rank, since its __init__ "
                f"does not take what torch's DataLoader takes ({', '.join(sorted(needed))}): use torch's DataLoader, "
                "or let it take **kwargs"
            )
        if not takes_all:
            arguments = {name: value for name, value in arguments.items() if name in parameters}
    make: Callable[..., DataLoader[object]] = type(loader)
    return make(dataset=loader.dataset, **arguments)
