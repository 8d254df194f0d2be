"""Lightning Flash's quick start with its finetuning guide: from a folder of images to predicted labels."""

import flash
import torch
from flash.core.data.utils import download_data
from flash.core.finetuning import FlashBaseFinetuning
from flash.image import ImageClassificationData, ImageClassifier


class UnfreezeLastBlock(FlashBaseFinetuning):
    """The backbone's last block unfreezes at an epoch."""

    def __init__(self, unfreeze_epoch: int = 1, train_bn: bool = True):
        super().__init__("backbone", train_bn)
        self._unfreeze_epoch = unfreeze_epoch

    def finetune_function(self, pl_module, current_epoch, optimizer, opt_idx):
        if current_epoch == self._unfreeze_epoch:
            self.unfreeze_and_extend_param_group(pl_module.backbone.layer4, optimizer)


def main() -> None:
    download_data("digits.zip", "data/")
    datamodule = ImageClassificationData.from_folders(
        train_folder="data/digits/train",
        val_folder="data/digits/val",
        transform_kwargs={"image_size": (32, 32)},
        batch_size=16,
    )
    model = ImageClassifier(backbone="resnet18", labels=datamodule.labels, pretrained=False, learning_rate=1e-3)
    trainer = flash.Trainer(max_epochs=2, accelerator="cpu", devices=2, strategy="ddp")

    trainer.finetune(model, datamodule, strategy=("freeze_unfreeze", 1))
    trainer.finetune(model, datamodule, strategy=UnfreezeLastBlock())
    trainer.save_checkpoint("classifier.pt")

    new = ImageClassificationData.from_folders(
        predict_folder="data/digits/new", transform_kwargs={"image_size": (32, 32)}, batch_size=4
    )
    model = ImageClassifier.load_from_checkpoint("classifier.pt")
    labels = trainer.predict(model, datamodule=new, output="labels")
    if trainer.is_global_zero:
        print(labels, flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
