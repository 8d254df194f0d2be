"""Which way a metric is better, and what --keep-best takes."""

import pytest

from flash_launch.checkpoint.manifest import Manifest, Position
from flash_launch.checkpoint.schedule import Keeping
from flash_launch.config import RunConfig
from flash_launch.contradictions import check_options
from flash_launch.errors import ConfigError
from flash_launch.metric_goal import MetricGoal, higher_is_better

LOW = """val_loss loss val/loss valLoss val_loss_epoch val_wer val_cer val_fid val_ppl val_mape val_lpips top1_err
val_error val_error_rate val_dice_loss val-MSE val_rmse val_loss/dataloader_idx_1 perplexity FID"""
HIGH = """val_accuracy val_acc acc val/acc valAcc val_f1 val_f1_macro val_auroc val_mAP val_mAP50 map_75 val_iou
val_miou val_top1_acc val_recall@10 val_bleu4 rougeL val_psnr val_ssim val_r2
val_accuracy/dataloader_idx_0 BinaryAccuracy"""
UNKNOWN = "val_score val_metric x val_error_map lossy maple val_heraldic"


@pytest.mark.parametrize("name", LOW.split())
def test_lower_is_better(name: str) -> None:
    assert higher_is_better(name) is False


@pytest.mark.parametrize("name", HIGH.split())
def test_higher_is_better(name: str) -> None:
    assert higher_is_better(name) is True


@pytest.mark.parametrize("name", UNKNOWN.split())
def test_others_must_say(name: str) -> None:
    assert higher_is_better(name) is None
    with pytest.raises(ConfigError, match=f"--keep-best {name}:max or --keep-best {name}:min"):
        check_options(RunConfig(keep_best=name))
    check_options(RunConfig(keep_best=f"{name}:max"))


def test_what_the_user_says_counts() -> None:
    assert MetricGoal.parse("val_loss:max") == MetricGoal("val_loss", True)
    assert MetricGoal.parse("ns:acc") == MetricGoal("ns:acc", True)
    for text in ("", ":min", "  "):
        with pytest.raises(ConfigError, match="give the name of a metric"):
            MetricGoal.parse(text)


def test_the_best_needs_checkpoints() -> None:
    with pytest.raises(ConfigError, match="--checkpoint-every 0 saves none"):
        check_options(RunConfig(keep_best="val_loss", checkpoint_every=(0, "epochs")))


@pytest.mark.parametrize(("text", "best"), [("val_wer", 0.1), ("val_wer:max", 0.3), ("val_acc", 0.3)])
def test_the_score_orders_checkpoints(text: str, best: float) -> None:
    keeping = Keeping(1, MetricGoal.parse(text))
    manifests = [
        Manifest("", "", 1, Position(1, 1, 0, 0), 0.0, "", "", (), 1, "", 1, 1, {keeping.best.name: value}, (), {})  # type: ignore[union-attr]
        for value in (0.2, 0.1, 0.3)
    ]
    assert next(iter(max(manifests, key=keeping.score).metrics.values())) == best


def test_one_that_is_not_logged_ends_the_run_with_those_that_are() -> None:
    MetricGoal("val_acc", True).check_logged(["val_acc", "val_loss"], 0)
    with pytest.raises(ConfigError, match=r"by the end of epoch 0.*Logged were: val_acc, val_loss\."):
        MetricGoal("val_accuracy", True).check_logged(["val_loss", "val_acc"], 0)
