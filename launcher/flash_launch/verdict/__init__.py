"""The verdict on a failed launch: which rank failed first, of what, and what to do. Pure functions of facts."""

from flash_launch.verdict.facts import AgentEnd, AttemptFacts, Progress, RankEnd, SlurmRecord
from flash_launch.verdict.judge import find_verdict
from flash_launch.verdict.told import Kind, Verdict

__all__ = ["AgentEnd", "AttemptFacts", "Kind", "Progress", "RankEnd", "SlurmRecord", "Verdict", "find_verdict"]
