"""What a script's ranks find in their environment about Weights & Biases: the run's id, the same over all attempts."""

from collections.abc import Mapping

from flash_launch.run_folder import RunFolder
from flash_launch.script.config import ScriptConfig
from flash_launch.tracking.mode import resolve_mode
from flash_launch.tracking.record import ARRAY, identify

__all__ = ["tracking_environment"]


def tracking_environment(config: ScriptConfig, folder: RunFolder, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that wandb.init reads: who the run is, and that it is resumed. Never a key.

    Rank 0 is the run. The other ranks have no run id (see running.py): one that records, too, is a run of the group.
    """
    mode = resolve_mode(config.wandb, environment)
    if mode == "disabled":
        return {"WANDB_MODE": mode}
    identity = identify(folder, config, environment)
    values = {
        "WANDB_MODE": mode,
        "WANDB_DIR": str(folder.path),
        "WANDB_RUN_ID": identity.id,
        "WANDB_RESUME": "allow",
        "WANDB_PROJECT": identity.project,
        "WANDB_ENTITY": identity.entity,
        "WANDB_NAME": config.wandb_name or environment.get("WANDB_NAME") or folder.path.name,
        "WANDB_RUN_GROUP": config.wandb_group
        or environment.get("WANDB_RUN_GROUP")
        or environment.get(ARRAY)
        or folder.path.name,
        "WANDB_JOB_TYPE": config.wandb_job_type,
        "WANDB_TAGS": config.wandb_tags,
    }
    return {name: value for name, value in values.items() if value}
