"""What a control group leaves for the end of the process."""

from pathlib import Path

import pytest
import torch.distributed as dist

from flash_strategies import agreement


def test_the_group_is_let_go_before_python_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered = []
    monkeypatch.setattr(agreement.atexit, "register", registered.append)
    monkeypatch.setattr(agreement, "_many", lambda: True)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        destroyed, used = agreement.ControlGroup(), agreement.ControlGroup()
        assert registered[0] is agreement._release_groups
        group = used.process_group
        assert group in dist.distributed_c10d._world.pg_map
        agreement._release_groups()
        assert used.process_group is destroyed.process_group is None
        assert group not in dist.distributed_c10d._world.pg_map
        assert dist.is_initialized()  # the user's own is the user's to destroy
        late = agreement.ControlGroup()
    finally:
        dist.destroy_process_group()
    agreement._release_groups()  # as where the user destroyed all groups
    assert late.process_group is None
