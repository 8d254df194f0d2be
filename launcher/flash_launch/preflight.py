"""The preflight: build everything once, on the CPU and without ranks, so that a user's mistake costs no start.

`python -m flash_launch.preflight` reads a RunConfig as YAML on standard input. Exit 2 with one message on standard
error for what the user can mend; else the last line of standard output is a JSON object: plan, messages, world_size.
"""

from __future__ import annotations

import json
import os
import sys
import warnings


def main() -> int:
    """Run the preflight; the exit code."""
    # whatever imports or the user's own code print must not be taken for the answer
    answer = os.dup(1)
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    from flash_launch.config import RunConfig
    from flash_launch.errors import FlashLaunchError

    try:
        config = RunConfig.from_yaml(sys.stdin.read())
        from flash_launch.assembly import assemble, plan_json, uses_cuda

        procs = config.procs_per_node or 1
        world_size = config.nodes * procs
        assembly = assemble(config, world_size=world_size, procs_per_node=procs, cuda=uses_cuda(config), read_data=True)
    except FlashLaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    messages = [*getattr(assembly.task, "notes", []), *assembly.data.notes]
    result = {"plan": plan_json(assembly), "messages": messages, "world_size": world_size}
    with os.fdopen(answer, "w", encoding="utf-8") as out:
        out.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
