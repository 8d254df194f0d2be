"""Whether a metric is to be high or low: by the table of known names, or as the user says, NAME:min or NAME:max."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flash_launch.errors import ConfigError

__all__ = ["MetricGoal", "higher_is_better"]

_LOW_WORDS = """
    loss error err nll bce ce mse rmse msle rmsle mae mape smape wmape perplexity ppl bpb bpc bpd wer cer ter mer der
    eer fid kid lpips fvd kl kld ece brier regret divergence ade fde epe chamfer hausdorff
"""
_HIGH_WORDS = """
    acc accuracy f1 fbeta auc auroc auprc aupr ap map mar iou miou jaccard dice precision recall sensitivity
    specificity ndcg mrr hits bleu sacrebleu chrf rouge rougel meteor cider spice psnr ssim msssim r2 mcc kappa em
    exact pearson spearman correlation reward clipscore pesq stoi pck
"""
_LOW, _HIGH = frozenset(_LOW_WORDS.split()), frozenset(_HIGH_WORDS.split())


@dataclass(frozen=True)
class MetricGoal:
    """A metric, and which way is better."""

    name: str
    """As the task logs it."""
    higher: bool
    """Higher is better."""

    @classmethod
    def parse(cls, text: str) -> "MetricGoal":
        """NAME, NAME:min or NAME:max.

        Raises:
            ConfigError: no name, or one that the table does not know and that says no direction.
        """
        name, _, way = text.rpartition(":")
        if name and way in ("min", "max"):
            return cls(name, way == "max")
        if not text.strip() or way in ("min", "max"):
            raise ConfigError(f"--keep-best was given {text!r}: give the name of a metric, such as val_accuracy")
        higher = higher_is_better(text)
        if higher is None:
            raise ConfigError(
                f"--keep-best was given {text}, and whether that is better high or low is not known by its name: give "
                f"--keep-best {text}:max or --keep-best {text}:min"
            )
        return cls(text, higher)

    def check_logged(self, logged: Sequence[str], epoch: int) -> None:
        """Check that there is such a metric once an epoch has ended.

        Raises:
            ConfigError: there is none; names those that there are.
        """
        if self.name not in logged:
            raise ConfigError(
                f"--keep-best {self.name}: nothing of that name was logged by the end of epoch {epoch}, so no "
                f"checkpoint would be the best. Logged were: {', '.join(sorted(logged)) or 'no metrics'}. Give one of "
                "these, or log it in validation_step"
            )


def higher_is_better(name: str) -> bool | None:
    """By a metric's name; None: it is not known, or says both."""
    words = [word for part in re.split(r"[^A-Za-z0-9]+", name) for word in _words(part)]
    low, high = [word in _LOW for word in words], [word in _HIGH for word in words]
    if any(low) and any(high):  # the last word is what it is: a dice loss is a loss, an error of a map may be either
        return False if words[-1] in ("loss", "error", "err") else None
    return True if any(high) else False if any(low) else None


def _words(part: str) -> list[str]:
    """Lower-case words of `valAccuracy`, `mAP50` or `f1`; numbers at the end, and what Lightning adds, are left out."""
    if not part or part.isdigit():
        return []
    for whole in (part.lower(), part.lower().rstrip("0123456789")):
        if whole in _LOW | _HIGH:
            return [whole]
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)]
    return [word for word in words if word not in ("epoch", "dataloader", "idx")]
