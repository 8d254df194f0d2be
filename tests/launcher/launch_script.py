"""A launcher for the tests that send it signals: `launch_script.py RUN_FOLDER NODES PROCS MODE`."""

import sys
from pathlib import Path

from flash_launch.executors.local import run_local
from flash_launch.run_folder import RunFolder

folder, nodes, procs, mode = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
script = str(Path(__file__).with_name("rank_script.py"))
worker = (script, mode, str(folder))
result = run_local(RunFolder(folder), nodes=nodes, procs_per_node=procs, worker=worker)
print(result.verdict.render() if result.verdict else "no verdict")
sys.exit(result.exit_code)
