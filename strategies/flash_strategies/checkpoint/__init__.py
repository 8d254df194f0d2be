"""State by parameter name on disk: what a live engine holds, written by every rank, read by any engine on any ranks."""

from flash_strategies.checkpoint.chunks import read_chunks, write_chunks
from flash_strategies.checkpoint.engine_state import EngineState, GroupState, put_back, take_out

__all__ = ["EngineState", "GroupState", "put_back", "read_chunks", "take_out", "write_chunks"]
