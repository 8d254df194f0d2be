"""A whole examination: of this machine, or of several nodes and against each other."""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flash_launch.cluster.allocation import find_allocation
from flash_launch.doctor.asking import Answer
from flash_launch.doctor.findings import Finding, finding_from_json, warn
from flash_launch.doctor.later import Later
from flash_launch.doctor.meeting import Peer
from flash_launch.doctor.nodes import (
    ClockWindow,
    check_clocks,
    check_equal,
    check_meeting,
    check_shared_folder,
    check_unanswered,
    merge_findings,
)
from flash_launch.doctor.options import DoctorOptions
from flash_launch.doctor.probe import NodeFacts, Request, node_facts_from_json, probe
from flash_launch.doctor.remote import Remote, SrunRemote, SshRemote, remote_environment, remote_python
from flash_launch.doctor.slurm_state import check_slurm, gather_slurm
from flash_launch.doctor.versions import code_digest, gather_packages
from flash_launch.doctor.wire import unpack
from flash_launch.errors import ConfigError

__all__ = ["examine", "examine_nodes"]

_FOLDER_SECONDS = 15.0
_PROBE_SECONDS, _QUICK_SECONDS, _MEET_SECONDS = 120.0, 45.0, 10.0


@dataclass(frozen=True)
class _Answered:
    """What a node said."""

    facts: NodeFacts
    findings: list[Finding]
    clock: ClockWindow


def examine(options: DoctorOptions, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Do what the options ask for.

    Raises:
        ConfigError: more nodes than the Slurm job has.
    """
    output = str(options.output_dir.absolute())
    if options.hosts:
        known = {str(host): host for host in options.hosts}
        request = Request(output, len(known), several=len(known) > 1, quick=options.quick, ask_slurm=False)
        request = replace(request, hosts=tuple(host.name for host in options.hosts))
        return examine_nodes(list(known), SshRemote(known, remote_environment()), request)
    nodes = _nodes_of_job(options, environment)
    if len(nodes) > 1:
        request = Request(output, len(nodes), several=True, quick=options.quick, ask_slurm=False)
        request = replace(request, hosts=nodes, by_name=True)
        slurm = check_slurm(gather_slurm(environment), asked=True, nodes=len(nodes))  # asked once, not by every node
        return [*slurm, *examine_nodes(nodes, SrunRemote(), request)]
    request = Request(output, options.nodes or 1, quick=options.quick, slurm=options.slurm or bool(nodes))
    _, findings = probe(request, environment)
    if options.slurm and not nodes:
        # On the login node: what holds here need not hold on the nodes.
        text = "this is not inside of a Slurm job: the nodes themselves were not checked"
        fix = f"salloc --nodes={request.nodes} flash-launch doctor --slurm, or make it the first line of a job"
        findings.append(warn("Slurm", text, fix))
    return findings


def examine_nodes(hosts: Sequence[str], remote: Remote, request: Request) -> list[Finding]:
    """Check every node, and all of them against each other.

    Args:
        hosts: the names by which `remote` knows them.
    """
    folder = Path(request.output_dir)
    token, problem = Later(lambda: _write_token(folder), _FOLDER_SECONDS, str(folder)).result_or(
        (None, f"it did not answer within {_FOLDER_SECONDS:g} s")
    )
    try:
        wanted = replace(request, token=str(token) if token is not None else "")
        answers, problems = _probe_all(hosts, remote, wanted)
    finally:
        if token is not None:
            with contextlib.suppress(OSError):
                token.unlink()
    findings = merge_findings({name: one.findings for name, one in answers.items()}, _hosts_of(answers))
    findings += check_unanswered(problems)
    if not answers:
        return findings
    nodes = {name: one.facts for name, one in answers.items()}
    findings += check_equal(nodes, _caller(next(iter(nodes.values()))))
    findings += check_shared_folder(nodes, str(folder), problem)
    clocks = {name: one.clock for name, one in answers.items()}
    if len(answers) > 1:
        met, seen = _meet_all(nodes, remote)
        findings += check_meeting(met)
        clocks = {name: clock.within(seen.get(name, clock)) for name, clock in clocks.items()}
    return findings + check_clocks(clocks)


def _hosts_of(answers: Mapping[str, _Answered]) -> dict[str, str]:
    return {name: one.facts.host for name, one in answers.items()}


def _nodes_of_job(options: DoctorOptions, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The nodes of the Slurm job that are to be checked; none if this is no job, or each node runs a doctor already."""
    allocation = find_allocation(environment)
    if allocation is None or environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return ()
    nodes = allocation.nodes
    if options.nodes is not None and options.nodes > len(nodes):
        have = f"job {allocation.job_id} has {len(nodes)}"
        raise ConfigError(f"--nodes {options.nodes} was given, but {have}: ask for more by salloc or sbatch --nodes")
    return nodes[: options.nodes]


def _caller(like: NodeFacts) -> NodeFacts | None:
    """This machine's code and packages, to be compared with those of the nodes."""
    packages = gather_packages()
    versions = {name: packages.installed[name] for name in like.packages if name in packages.installed}
    versions |= {"python": packages.python, "flash-launch": packages.ours or "not installed"}
    return NodeFacts("here", versions, code_digest())


def _write_token(folder: Path) -> tuple[Path | None, str]:
    """A file in the output folder, or in the nearest one above it that exists."""
    above = next((one for one in (folder, *folder.parents) if os.path.exists(one)), Path("/"))
    token = above / f".flash-launch-doctor-{secrets.token_hex(8)}"
    try:
        token.touch(exist_ok=False)
    except OSError as error:
        return None, error.strerror or str(error)
    return token, ""


def _probe_all(
    hosts: Sequence[str], remote: Remote, request: Request
) -> tuple[dict[str, _Answered], dict[str, tuple[str, str]]]:
    limit = _QUICK_SECONDS if request.quick else _PROBE_SECONDS
    given = json.dumps({"task": "probe", "request": asdict(request), "seconds": limit})
    before = time.time()
    told = remote.run_on(hosts, remote_python(), given, limit)
    after = time.time()
    answers, problems = {}, {}
    for host in hosts:
        message, trouble = _message(host, told[host])
        if message is None:
            problems[host] = trouble
            continue
        try:
            facts = node_facts_from_json(_mapping(message["facts"]))
            listed = message["findings"]
            found = [finding_from_json(_mapping(one), host) for one in listed] if isinstance(listed, list) else []
        except (KeyError, ValueError) as error:
            text = f"{host} has another version of flash-launch than this one: its answer cannot be read ({error})"
            problems[host] = (text, "install the same version on all nodes")
            continue
        clock = ClockWindow(facts.time - after, facts.time - before)
        answers[host] = _Answered(facts, found, clock)
    return answers, problems


def _meet_all(
    nodes: Mapping[str, NodeFacts], remote: Remote
) -> tuple[dict[str, dict[str, str]], dict[str, ClockWindow]]:
    """Who reached whom, and what these quick answers say about the clocks."""
    peers = [Peer(name, facts.address, facts.port) for name, facts in nodes.items() if facts.address and facts.port]
    hosts = [peer.name for peer in peers]
    if len(peers) < 2:
        return {}, {}  # that a node has no address or port is told by its own findings
    word = secrets.token_hex(8)
    message = {"task": "meet", "peers": [peer.to_json() for peer in peers], "word": word, "seconds": _MEET_SECONDS}
    before = time.time()
    told = remote.run_on(hosts, remote_python(), json.dumps(message), _MEET_SECONDS + 20)
    after = time.time()
    results: dict[str, dict[str, str]] = {}
    clocks: dict[str, ClockWindow] = {}
    for host in hosts:
        answer, trouble = _message(host, told[host])
        if answer is None:
            results[host] = {"the others": trouble[0]}
        else:
            results[host] = {name: str(why) for name, why in _mapping(answer["reached"]).items()}
            there = float(str(answer["time"]))
            clocks[host] = ClockWindow(there - after, there - before)
    return results, clocks


def _message(host: str, answer: Answer) -> tuple[dict[str, object] | None, tuple[str, str]]:
    """A node's message, or what was wrong and the fix."""
    message = unpack(answer.out).get(host)
    if message is not None and "error" not in message:
        return message, ("", "")
    if message is not None:
        return None, (f"the checks failed on {host}: {message['error']}", "tell the authors of flash-launch")
    problem = answer.problem or f"{host} gave no answer that can be read"
    return None, (problem, answer.fix or "look whether the same version of flash-launch is installed there")


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("an object was expected")
    return value
