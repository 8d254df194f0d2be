"""How a command gets onto other nodes: by ssh, or by one srun inside of a Slurm job. Errors are told per host."""

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from flash_launch.doctor.asking import Answer, ask
from flash_launch.doctor.wire import HOST_VARIABLE, pack, unpack
from flash_launch.executors.hosts import Host
from flash_launch.executors.ssh_connection import by_hand, explain_connection, ssh_argv

__all__ = [
    "Remote",
    "SrunRemote",
    "SshRemote",
    "explain_python",
    "explain_ssh",
    "remote_environment",
    "remote_python",
    "srun_argv",
]

_AT_ONCE = 32


class Remote(Protocol):
    """Runs a command on hosts."""

    def run_on(self, hosts: Sequence[str], argv: Sequence[str], given: str, timeout: float) -> dict[str, Answer]:
        """Run `argv` on all hosts at the same time, `given` as its standard input, and wait at most `timeout` seconds.

        An answer whose `problem` is not empty is a host where the command did not run to its end.
        """
        ...


@dataclass(frozen=True)
class SshRemote:
    """By ssh as a run uses it: with the user's own keys and settings, and never a question."""

    known: Mapping[str, Host]
    """The hosts by their names here."""
    environment: Mapping[str, str]
    """Variables for the command; the same on all hosts."""

    def run_on(self, hosts: Sequence[str], argv: Sequence[str], given: str, timeout: float) -> dict[str, Answer]:
        """See Remote."""

        def run(host: str) -> Answer:
            answer = ask(self.argv(host, argv), timeout=timeout, given=given)
            if answer.code is None:
                fix = (
                    f"try by hand: {by_hand(self.known[host])} true; a shared folder that hangs there holds it up, too"
                )
                return Answer(None, answer.out, answer.err, f"{host}: {answer.problem}", fix)
            if answer.code == 0:
                return answer
            problem, fix = explain_ssh(self.known[host], answer.code, answer.err, argv[0])
            return Answer(answer.code, answer.out, answer.err, problem, fix)

        with ThreadPoolExecutor(min(_AT_ONCE, len(hosts)) or 1) as pool:
            return dict(zip(hosts, pool.map(run, hosts), strict=True))

    def argv(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line of ssh for one host; what the shell there sees is quoted, word by word."""
        variables = {**self.environment, HOST_VARIABLE: host}
        return ssh_argv(self.known[host], ["env", *(f"{name}={value}" for name, value in variables.items()), *argv])


@dataclass(frozen=True)
class SrunRemote:
    """By one srun over the nodes of the Slurm job that this is part of."""

    def run_on(self, hosts: Sequence[str], argv: Sequence[str], given: str, timeout: float) -> dict[str, Answer]:
        """See Remote."""
        answer = ask(srun_argv(hosts, argv), timeout=timeout, given=given)
        messages = unpack(answer.out)
        said = [line.strip() for line in answer.err.splitlines() if line.strip()]
        found = {}
        for host in hosts:
            if host in messages:
                found[host] = Answer(0, pack(host, messages[host]), answer.err)
                continue
            of_host = [line for line in said if host in line]
            told = (of_host or said or ["it said nothing"])[-1]
            problem, fix = explain_python(host, answer.err, argv[0])
            found[host] = Answer(
                answer.code if answer.code else None,
                problem=problem or f"{host} gave no answer ({answer.problem or told})",
                fix=fix or f"try by hand: srun --overlap -N1 -n1 -w {host} hostname",
            )
        return found


def srun_argv(hosts: Sequence[str], argv: Sequence[str]) -> list[str]:
    """The command line of srun: one task on each of the hosts, beside what runs there."""
    count = len(hosts)
    return [
        "srun",
        f"--nodes={count}",
        f"--ntasks={count}",
        "--ntasks-per-node=1",
        f"--nodelist={','.join(hosts)}",
        "--overlap",
        "--kill-on-bad-exit=0",
        "--quiet",
        "--",
        *argv,
    ]


def explain_ssh(host: Host, code: int, err: str, python: str) -> tuple[str, str]:
    """Why a command did not run on a host, and what to do: by ssh's exit code and what it wrote."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}"
    if code == 255:
        problem, fix = explain_connection(host, err)
        return f"{host}: {problem}", fix
    problem, fix = explain_python(str(host), err, python)
    return problem or f"the checks failed on {host}: {last}", fix or f"try by hand: {by_hand(host)} {python} -V"


def explain_python(host: str, err: str, python: str) -> tuple[str, str]:
    """The same for what went wrong with Python there; empty texts if it was something else."""
    missing = ("No such file or directory", "not found", "Not a directory")
    if any(python in line and any(mark in line for mark in missing) for line in err.splitlines()):
        fix = "use a virtual environment in a folder that all nodes share, or make one at the same path there"
        return f"{host} has no {python}", fix
    if "No module named" in err and "flash_launch" in err:
        fix = f"install the same version there: {python} -m pip install flash-launch"
        return f"{host} has another version of flash-launch than this one, or none", fix
    if "Permission denied" in err and python in err:
        return f"{host} may not run {python}", f"ls -l {python} there"
    return "", ""


def remote_environment() -> dict[str, str]:
    """The variables that a command on another host needs to find the same code."""
    return {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}


def remote_python() -> list[str]:
    """The command line that answers a request on another node."""
    return [sys.executable, "-m", "flash_launch.doctor", "--wire"]
