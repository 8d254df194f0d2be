"""What a user writes: a task, a data module, strategies, each as the text of a file in the folder of the command."""

MY_TASK = '''
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def samples(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


class MyTask(pl.LightningModule):
    """Has its own optimizer with two groups, its own schedule and its own loaders."""

    def __init__(self, width: int = 8, max_lr: float = 0.1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.top = nn.Linear(width, 2)
        self.max_lr = max_lr

    def modules_to_freeze(self) -> nn.Module:
        return self.body

    def training_step(self, batch, index):
        x, label = batch
        loss = nn.functional.cross_entropy(self.top(self.body(x)), label)
        self.log("my_loss", loss)
        return loss

    def validation_step(self, batch, index) -> None:
        x, label = batch
        right = (self.top(self.body(x)).argmax(dim=1) == label).float().mean()
        self.log("my_accuracy", right, sync_dist=True, batch_size=len(x))

    def configure_optimizers(self):
        groups = [
            {"params": self.body.parameters(), "weight_decay": 0.1},
            {"params": self.top.parameters(), "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.max_lr)
        steps = self.trainer.estimated_stepping_batches
        rates = [self.max_lr / 10, self.max_lr]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(samples(64, 1), batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(samples(32, 2), batch_size=8)


class Plain(MyTask):
    """Leaves optimizer and data to the run."""

    configure_optimizers = pl.LightningModule.configure_optimizers
    train_dataloader = pl.LightningModule.train_dataloader
    val_dataloader = pl.LightningModule.val_dataloader
'''

MY_DATA = """
import pytorch_lightning as pl
from my_task import samples
from torch.utils.data import DataLoader


class Data(pl.LightningDataModule):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def setup(self, stage: str) -> None:
        self.train, self.val = samples(self.count, 1), samples(32, 2)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=8)
"""

MY_STRATEGIES = '''
from flash_strategies import Everything, FlashBaseFinetuning, LastLayers, Nothing, Phase


class Stepwise:
    """The last layer after some epochs, all of them after twice as many."""

    name = "stepwise"

    def __init__(self, every: int) -> None:
        self.every = every

    def phases(self, max_epochs):
        last, all_ = Phase("last", self.every, LastLayers(1)), Phase("all", 2 * self.every, Everything())
        return (Phase("frozen", 0, Nothing()), last, all_)


class TopDown(FlashBaseFinetuning):
    """As Lightning Flash's guide shows it: one more layer in each epoch, with a learning rate of its own."""

    def __init__(self) -> None:
        super().__init__(attr_names="body")

    def finetune_function(self, pl_module, epoch, optimizer, opt_idx):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.body[2], optimizer, lr=0.002)
        if epoch == 2:
            self.unfreeze_and_extend_param_group(pl_module.body[0], optimizer)
'''

THEIRS = """
from flash_strategies import Everything, Nothing, Phase


class Late:
    name = "late"

    def __init__(self, epoch):
        self.epoch = epoch

    def phases(self, max_epochs):
        return (Phase("frozen", 0, Nothing()), Phase("unfrozen", self.epoch, Everything()))


def late(metadata):
    return Late(metadata["epoch"])
"""
