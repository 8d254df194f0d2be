"""The preflight: build everything once, on the CPU and without ranks, so that a user's mistake costs no start.

`python -m flash_launch.preflight [CHECKPOINT]` reads a RunConfig as YAML on standard input; CHECKPOINT is the folder of
the one to go on from. The last line of standard output is a JSON object: plan, messages and world_size; or, with exit
code 2, error: one message about what the user can mend.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
import warnings
from pathlib import Path


def main() -> int:
    """Run the preflight; the exit code."""
    # whatever imports or the user's own code print must not be taken for the answer
    answer = os.dup(1)
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    faulthandler.enable()
    sys.dont_write_bytecode = True  # nothing is left behind in the folder of the user's own task
    from flash_launch.errors import FlashLaunchError

    try:
        result = examine(sys.stdin.read(), sys.argv[1] if len(sys.argv) > 1 else None)
    except FlashLaunchError as error:
        result = {"error": str(error)}
    except BaseException as error:
        # not left to the guard, which ends a rank by an alarm: here nobody waits for it
        from flash_launch.tasks.own import users_fault

        fault = users_fault(error)
        if fault is None:
            traceback.print_exc()
            os._exit(1)
        result = {"error": f"the preflight met an error in the code of the task: {fault}"}
    with os.fdopen(answer, "w", encoding="utf-8") as out:
        out.write(json.dumps(result) + "\n")
    return 2 if "error" in result else 0


def examine(text: str, checkpoint: str | None = None) -> dict[str, object]:
    """What a RunConfig as YAML comes to: plan, messages and world_size.

    Args:
        text: the YAML.
        checkpoint: folder of the checkpoint to go on from.

    Raises:
        FlashLaunchError: anything that the user can mend.
    """
    from flash_launch.assembly import assemble, uses_cuda
    from flash_launch.config import RunConfig
    from flash_launch.run_plan import plan_json

    config = RunConfig.from_yaml(text)
    procs = config.procs_per_node or 1
    world_size = (config.nodes or 1) * procs
    assembly = assemble(config, world_size=world_size, procs_per_node=procs, cuda=uses_cuda(config), read_data=True)
    messages = list(assembly.notes)
    if checkpoint is not None:
        from flash_launch.checkpoint.fitting import check_fits

        messages = check_fits(assembly, Path(checkpoint))  # the others were told at the start, and are of its weights
    return {"plan": plan_json(assembly), "messages": messages, "world_size": world_size}


if __name__ == "__main__":
    sys.exit(main())
