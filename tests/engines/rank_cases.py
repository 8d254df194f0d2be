"""One rank of a suite: runs its cases one after the other, and writes what each found: `rank_cases.py SUITE FOLDER`."""

import faulthandler
import gc
import importlib
import json
import logging
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

SECONDS_PER_CASE = 60


def main() -> None:
    suite, folder = Path(sys.argv[1]), Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=SECONDS_PER_CASE))
    sys.path.insert(0, str(suite.parent))
    import deepspeed

    from flash_strategies import deepspeed_private

    deepspeed_private.without_shm_op()
    deepspeed.utils.logger.setLevel(logging.ERROR)
    module = importlib.import_module(suite.stem)
    for index, case in enumerate(json.loads((folder / "cases.json").read_text())):
        # what is there by now stays: transitions collect garbage, which takes 0.2 s with it and 0.03 s without
        gc.collect()
        gc.freeze()
        faulthandler.dump_traceback_later(SECONDS_PER_CASE, exit=True)
        print(f"case {case}", flush=True)
        target = folder / f"{index}.{rank}.pt"
        try:
            torch.save({"result": module.run_case(case)}, target)
        except BaseException:
            torch.save({"error": traceback.format_exc()}, target)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        faulthandler.cancel_dump_traceback_later()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # not through the exit handlers of three libraries: all is written


if __name__ == "__main__":
    main()
