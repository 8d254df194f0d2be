"""One's own data: the loaders of a LightningDataModule, or of the task itself, dealt out to ranks."""

from collections.abc import Mapping

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.utilities.model_helpers import is_overridden

from flash_launch.data.distributed import ShardedLoader, map_loaders, shard_eval_loader, shard_train_loader
from flash_launch.data.run_data import RunData
from flash_launch.errors import DataError

__all__ = ["OwnData", "TaskData"]

# Hooks that Lightning calls on a data module if it has them, else on the task: taken over where the user wrote them.
_OPTIONAL_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "on_exception",
)


class _LoaderOwner(RunData):
    """What has loaders of its own: they are asked for when Lightning asks, then dealt out."""

    def __init__(self, owner: LightningDataModule | LightningModule, seed: int) -> None:
        super().__init__()
        self.owner, self.seed = owner, seed
        if not is_overridden("train_dataloader", owner):
            raise DataError(
                f"{type(owner).__name__} has no train_dataloader(): write one, or name other data with --data"
            )

    def train_dataloader(self) -> object:
        """This rank's share of the owner's train loaders."""
        rank, world_size = self.rank_and_world
        sharded = map_loaders(
            self.owner.train_dataloader(),
            lambda loader: shard_train_loader(
                loader, rank=rank, world_size=world_size, seed=self.seed, single=self.single_samples
            ),
        )
        self._use(*sharded.samplers, anywhere=sharded.starts_anywhere)
        return self._noted(sharded)

    def val_dataloader(self) -> object:
        """This rank's share of the owner's validation loaders; an empty list where it has none."""
        rank, world_size = self.rank_and_world
        if not is_overridden("val_dataloader", self.owner):
            return []
        loaders = self.owner.val_dataloader()
        if loaders is None:
            return []
        return self._noted(
            map_loaders(loaders, lambda loader: shard_eval_loader(loader, rank=rank, world_size=world_size))
        )

    def _noted(self, sharded: ShardedLoader) -> object:
        self.notes += [warning for warning in sharded.warnings if warning not in self.notes]
        return sharded.loader


class OwnData(_LoaderOwner):
    """A LightningDataModule of the user's own. Its attributes `num_classes` and `class_names` are used if it has them.

    Raises:
        DataError: it has no train_dataloader.
    """

    def __init__(self, module: LightningDataModule, seed: int) -> None:
        super().__init__(module, seed)
        self.module = module
        self.description = f"{type(module).__module__}:{type(module).__qualname__}"
        self.prepare_data_per_node = module.prepare_data_per_node
        classes: object = getattr(module, "num_classes", None)
        self.num_classes = classes if isinstance(classes, int) else None
        names: object = getattr(module, "class_names", None)
        self.class_names = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
        for hook in _OPTIONAL_HOOKS:
            if is_overridden(hook, module):
                setattr(self, hook, getattr(module, hook))

    def prepare_data(self) -> None:
        """The module's own."""
        self.module.trainer = self.trainer
        self.module.prepare_data()

    def setup(self, stage: str) -> None:
        """The module's own."""
        self.module.trainer = self.trainer
        self.module.setup(stage)

    def teardown(self, stage: str) -> None:
        """The module's own."""
        self.module.teardown(stage)

    def state_dict(self) -> dict[str, object]:
        """The module's own."""
        return dict(self.module.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """The module's own."""
        self.module.load_state_dict(dict(state_dict))


class TaskData(_LoaderOwner):
    """The loaders that a task of the user's own brings.

    Raises:
        DataError: it has no train_dataloader.
    """

    def __init__(self, task: LightningModule, seed: int) -> None:
        super().__init__(task, seed)
        self.description = f"the loaders of {type(task).__name__}"
        classes: object = getattr(task, "num_classes", None)
        self.num_classes = classes if isinstance(classes, int) else None
