"""The finetuning guide: its code blocks in their order, as they are printed but for their import lines."""

import flash_launch as flash
from flash_launch.core.data.utils import download_data
from flash_launch.image import ImageClassificationData, ImageClassifier

download_data("https://pl-flash-data.s3.amazonaws.com/hymenoptera_data.zip", "data/")

datamodule = ImageClassificationData.from_files(
    train_files=["data/hymenoptera_data/val/bees/65038344_52a45d090d.jpg"],
    train_targets=[0],
    batch_size=1,
    num_workers=0,
)

model = ImageClassifier(backbone="resnet18", num_classes=2)
trainer = flash.Trainer(max_epochs=1)

# ----
trainer.finetune(model, datamodule, strategy="no_freeze")

# ----
trainer.finetune(model, datamodule, strategy="freeze")

# ----
trainer.finetune(model, datamodule, strategy=("freeze_unfreeze", 7))

# ----
trainer.finetune(model, datamodule, strategy=("unfreeze_milestones", ((3, 8), 2)))

# ----
from flash_launch.core.finetuning import FlashBaseFinetuning  # noqa: E402


# Create a finetuning callback
class FeatureExtractorFreezeUnfreeze(FlashBaseFinetuning):
    def __init__(self, unfreeze_epoch: int = 5, train_bn: bool = True):
        # this will set self.attr_names as ["backbone"]
        super().__init__("backbone", train_bn)
        self._unfreeze_epoch = unfreeze_epoch

    def finetune_function(self, pl_module, current_epoch, optimizer, opt_idx):
        # unfreeze any module you want by overriding this function

        # When ``current_epoch`` is 5, backbone will start to be trained.
        if current_epoch == self._unfreeze_epoch:
            self.unfreeze_and_extend_param_group(
                pl_module.backbone,
                optimizer,
            )


# Pass the callback to trainer.finetune
trainer.finetune(model, datamodule, strategy=FeatureExtractorFreezeUnfreeze(unfreeze_epoch=5))
