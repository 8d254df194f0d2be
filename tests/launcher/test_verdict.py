"""The verdict, on facts recorded from real failures, and on made-up ones where the real thing needs a cluster."""

from dataclasses import replace

import pytest

from flash_launch.verdict import AgentEnd, Kind, Progress, RankEnd, SlurmRecord, Verdict, find_verdict

GLOO = (
    "RuntimeError: [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer "
    "[127.0.0.1]:55702. This is typically caused by a remote worker crashing."
)
STORE = "torch.distributed.DistNetworkError: failed to recv, got 0 bytes. Connection was likely closed."
NCCL = "torch.distributed.DistBackendError: NCCL error: ncclRemoteError: A call failed possibly due to a network error"
GLOO_LATE = (
    "RuntimeError: [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting "
    "4000ms for recv operation to complete"
)
DDP_LATE = "RuntimeError: Application timeout caused pair closure"
WATCHDOG = (
    "[rank0]:[E1124] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, "
    "NumelIn=1, NumelOut=1, Timeout(ms)=10000) ran for 10010 milliseconds before timing out.\n"
    "terminate called after throwing an instance of 'c10::DistBackendError'\nFatal Python error: Aborted\n\n"
    'Thread 0x00007f9b54a116c0 (most recent call first):\n  File "/home/me/train.py", line 40 in training_step\n'
)
SEGFAULT = (
    "Epoch 0: 50%\nFatal Python error: Segmentation fault\n\nThread 0x00007f9b54a116c0 (most recent call first):\n"
    '  File "/usr/lib/python3.11/threading.py", line 327 in wait\n\n'
    "Current thread 0x00007f9c0da1fb80 (most recent call first):\n"
    '  File "/home/me/ops.py", line 12 in fused\n  File "/home/me/train.py", line 40 in training_step\n\n'
    "Extension modules: numpy.core._multiarray_umath, torch._C (total: 2)\n"
)
C10D = 'File "/v/site-packages/torch/distributed/distributed_c10d.py", line 3000 in '
WAITING = ('File "/home/me/train.py", line 40 in training_step', C10D + "all_reduce")
STACK = (
    'Thread 0x00007f9b54a116c0 (most recent call first):\n  File "/usr/lib/python3.11/threading.py", line 3 in wait\n\n'
    'Current thread 0x00007f9c0da1fb80 (most recent call first):\n  File "/home/me/data.py", line 17 in load\n'
    '  File "/v/site-packages/pytorch_lightning/loops/fetchers.py", line 1 in fetch\n'
)


def verdict_on(ranks: list[RankEnd], agents: tuple[AgentEnd, ...] = (), slurm: SlurmRecord | None = None) -> Verdict:
    verdict = find_verdict(ranks, agents, slurm)
    assert verdict is not None
    assert verdict.render()
    return verdict


def failed(error: str, **facts: object) -> RankEnd:
    """A rank that failed on its own, with a neighbour who only noticed."""
    return replace(RankEnd(1, 1, 1, 10.0, error, host="gpu02"), **facts)


def test_nobody_failed() -> None:
    assert find_verdict([], [AgentEnd(0, 0), AgentEnd(1, 0)]) is None
    assert find_verdict([RankEnd(0, 0, finished=True)], [AgentEnd(0, 0)], SlurmRecord("COMPLETED")) is None


# ---- who


def test_the_first_error_wins_over_its_victims() -> None:
    ends = [
        RankEnd(0, 0, 1, 1795460326.906955, GLOO),
        RankEnd(
            1, 1, 1, 1795460326.3926127, "ValueError: the loss is a banana", log="/r/logs/node1_rank1.log", host="b"
        ),
    ]
    verdict = verdict_on(ends, (AgentEnd(0, 1, ended_by_launcher=True), AgentEnd(1, 1)))
    assert (verdict.rank, verdict.node, verdict.kind, verdict.transient) == (1, 1, Kind.EXCEPTION, False)
    assert verdict.render() == (
        "rank 1 (node 1, b) failed first: ValueError: the loss is a banana\n  log: /r/logs/node1_rank1.log"
    )
    assert "rank 0 (node 0) noticed that another was gone" in verdict.render(everything=True)


def test_victims_that_wrote_first_are_still_victims() -> None:
    for message in (GLOO, STORE, NCCL, GLOO_LATE, DDP_LATE):
        assert verdict_on([RankEnd(0, 0, 1, 10.0, message), RankEnd(1, 0, 1, 10.5, "ValueError: x")]).rank == 1


def test_several_that_failed_are_told() -> None:
    ends = [RankEnd(rank, 0, 1, 10.0 + rank, "ValueError: same") for rank in range(3)]
    assert verdict_on(ends).also == ("ranks 1 and 2 failed with the same error, on their own",)
    ends[2] = RankEnd(2, 1, 1, 12.0, "KeyError: 'other'", host="b")
    assert verdict_on(ends).also == (
        "rank 1 (node 0) failed with the same error, on its own",
        "rank 2 (node 1, b) failed, too, 2.0 s later: KeyError: 'other'",
    )


def test_exit_codes_and_signals_have_words() -> None:
    for code, words in ((3, "exited with code 3"), (-11, "killed by SIGSEGV"), (-64, "killed by SIGRTMAX")):
        assert verdict_on([RankEnd(0, 0, code, 1.0)]).cause == words


def test_a_rank_ended_by_its_agent_is_no_cause_but_better_than_nothing() -> None:
    ends = [RankEnd(0, 0, -15, 1.0), RankEnd(1, 0, 3, 2.0)]
    assert verdict_on(ends).rank == 1
    assert (verdict_on(ends[:1]).rank, verdict_on(ends[:1]).cause) == (0, "killed by SIGTERM")


def test_a_rank_killed_because_it_did_not_heed_sigterm_is_no_cause() -> None:
    ends = [RankEnd(0, 0, -9, 13.0, ended=True), RankEnd(1, 0, 1, 14.0, "ValueError: x")]
    assert verdict_on(ends).rank == 1


def test_an_abort_of_native_code_comes_after_an_error_of_the_same_second() -> None:
    assert verdict_on([RankEnd(0, 0, -6, 10.0), RankEnd(1, 1, 1, 10.7, "ValueError: x")]).rank == 1


def test_a_crash_on_the_way_out_counts_only_if_nothing_else_failed() -> None:
    crash = RankEnd(1, 1, -6, 10.0, finished=True)
    assert verdict_on([crash], (AgentEnd(1, 1),)).kind is Kind.CRASH
    assert verdict_on([RankEnd(0, 0, 1, 11.0, GLOO), crash]).kind is Kind.HANG


def test_a_killed_agent_goes_before_those_who_noticed() -> None:
    agents = (AgentEnd(0, 1, ended_by_launcher=True), AgentEnd(1, -9, log="/a", host="b"))
    verdict = verdict_on([RankEnd(0, 0, 1, 10.0, GLOO)], agents)
    assert verdict.render().splitlines()[0] == "the agent of node 1 (b) failed first: killed by SIGKILL"
    assert verdict_on([], (replace(agents[1], oom_kills=1),)).kind is Kind.OOM_KILLED


def test_an_agent_that_never_started_ranks_shows_its_last_words() -> None:
    verdict = verdict_on([], (AgentEnd(0, 1, log="/a", log_tail="ImportError: no torch\n"),))
    assert verdict.kind is Kind.IMPORT_ERROR
    assert (
        "the agent of node 0 failed first: exited with code 1\n  its last words:\n    ImportError" in verdict.render()
    )
    agent = AgentEnd(1, 1, log_tail="Illegal option\n")
    verdict = verdict_on([RankEnd(1, 1, started=False)], (agent,))
    assert (verdict.kind, verdict.cause) == (Kind.NEVER_STARTED, "exited with code 1 before its ranks ran")


def test_ranks_of_equal_time_are_told_by_number() -> None:
    assert verdict_on([RankEnd(1, 0, 1, 5.0, "ValueError: b"), RankEnd(0, 0, 1, 5.0, "ValueError: a")]).rank == 0


# ---- of what


@pytest.mark.parametrize(
    ("error", "kind", "transient"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0", Kind.GPU_OOM, False),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", Kind.GPU_FAILED, True),
        ("RuntimeError: CUDA error: device-side assert triggered", Kind.EXCEPTION, False),
        ("ModuleNotFoundError: No module named 'kornia.filters'", Kind.IMPORT_ERROR, False),
        ("OSError: [Errno 28] No space left on device: '/r/checkpoints/x'", Kind.DISK_FULL, False),
        ("OSError: [Errno 122] Disk quota exceeded", Kind.DISK_FULL, False),
        ("MemoryError", Kind.OUT_OF_MEMORY, False),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
            Kind.OUT_OF_MEMORY,
            False,
        ),
        ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. ", Kind.DATA_WORKER_KILLED, False),
        ("RuntimeError: DataLoader worker (pid(s) 7, 8) exited unexpectedly", Kind.DATA_WORKER_KILLED, False),
        ("torch.distributed.DistNetworkError: listen: EADDRINUSE: address already in use", Kind.PORT_TAKEN, True),
        ("DistBackendError: NCCL error: ncclInternalError: Internal check failed", Kind.NETWORK, True),
        ("KeyboardInterrupt", Kind.INTERRUPTED, False),
        ("ValueError: labels must be below 10", Kind.EXCEPTION, False),
    ],
)
def test_an_error_is_of_a_kind(error: str, kind: Kind, transient: bool) -> None:
    verdict = verdict_on([RankEnd(0, 0, 1, 9.0, GLOO), failed(error)])
    assert (verdict.rank, verdict.kind, verdict.transient) == (1, kind, transient)
    assert bool(verdict.advice) == (error[:5] != "Value")


def test_an_error_is_judged_by_what_it_came_from_where_that_cannot_be_handled() -> None:
    full = ("OSError: [Errno 28] No space left on device",)
    verdict = verdict_on([failed("step_4 cannot be written", user_fault=True, causes=full)])
    assert (verdict.kind, verdict.detail) == (Kind.DISK_FULL, f"it came from: {full[0]}")
    handled = failed("ValueError: install x or y", causes=("ModuleNotFoundError: No module named 'x'",))
    assert verdict_on([handled]).kind is Kind.EXCEPTION


def test_the_shared_memory_of_data_workers_has_advice_of_its_own() -> None:
    error = "RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"
    assert "/dev/shm" in verdict_on([failed(error)]).advice


def test_an_error_in_a_data_worker_is_told_by_itself() -> None:
    error = (
        "ValueError: Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "data.py", line 3, in __getitem__\n    raise ValueError("no label")\nValueError: no label'
    )
    assert verdict_on([failed(error)]).cause == "ValueError: no label (in a data worker)"


def test_a_user_fault_is_its_message_and_no_log() -> None:
    verdict = verdict_on([RankEnd(2, 1, 1, 1.0, "the folder is empty", user_fault=True, log="/l", host="b")])
    assert verdict.render() == "rank 2 (node 1, b) failed first: the folder is empty"
    assert verdict.kind is Kind.USER_FAULT
    lost = failed("attempt 1 of this run was superseded by attempt 2", error_type="flash_launch.errors.FencedError")
    assert verdict_on([replace(lost, user_fault=True)]).kind is Kind.SUPERSEDED
    nan = failed("the loss of step 4 is not a number", error_type="flash_launch.errors.NonFiniteLossError")
    assert verdict_on([replace(nan, user_fault=True)]).kind is Kind.NAN_LOSS


def test_sigkill_is_told_apart_as_far_as_it_can_be() -> None:
    end = RankEnd(3, 1, -9, 10.2, None, log="/l", log_tail="Epoch 0:  0%|\rEpoch 0: 50%|\nloading\n")
    unknown = verdict_on([RankEnd(0, 0, 1, 10.1, GLOO), end, RankEnd(2, 1, -15, 10.4)], (AgentEnd(1, 1),))
    assert (unknown.rank, unknown.kind, unknown.cause) == (3, Kind.KILLED, "killed by SIGKILL")
    assert unknown.detail.splitlines() == [
        "mostly the system, short of memory (see `dmesg`), or somebody's kill -9",
        "its last words:",
        "  Epoch 0: 50%|",
        "  loading",
    ]
    assert "not for want of memory" in verdict_on([replace(end, oom_kills=0)]).detail
    assert verdict_on([replace(end, oom_kills=1)]).kind is Kind.OOM_KILLED
    line = "Memory cgroup out of memory: Killed process 20413 (python) total-vm:314420kB"
    assert line in verdict_on([replace(end, kernel=line)]).detail
    slurm = verdict_on([end], (), SlurmRecord("OUT_OF_MEMORY"))
    assert (slurm.rank, slurm.kind) == (3, Kind.OOM_KILLED)


def test_a_crash_shows_the_python_code_of_the_thread_that_crashed() -> None:
    verdict = verdict_on([RankEnd(0, 0, -11, 1.0, log_tail=SEGFAULT)])
    assert verdict.kind is Kind.CRASH
    assert verdict.detail.splitlines()[2:] == [
        '  File "/home/me/ops.py", line 12 in fused',
        '  File "/home/me/train.py", line 40 in training_step',
    ]


# ---- hangs


def waiting(rank: int, step: int = 7, **facts: object) -> RankEnd:
    progress = Progress("the forward pass", 1, step)
    end = RankEnd(rank, rank, 1, 10.0, GLOO_LATE, frames=WAITING, progress=progress, host=f"gpu{rank}")
    return replace(end, **facts)


def test_a_hang_names_who_is_behind_at_which_step_and_in_which_collective() -> None:
    behind = RankEnd(1, 1, -15, 11.0, stack=STACK, progress=Progress("fetching data", 1, 6), host="gpu1")
    verdict = verdict_on([waiting(0), behind, waiting(2)])
    assert (verdict.kind, verdict.rank, verdict.transient) == (Kind.HANG, 1, False)
    assert verdict.render().splitlines()[:3] == [
        "rank 1 (node 1, gpu1) hangs: ranks 0 and 2 (on gpu0, gpu2) waited in all_reduce (train.py:40 in "
        "training_step) after step 7, and it did not come",
        "  where: fetching data after step 6 (epoch 1)",
        "  it is at data.py:17 in load",
    ]
    lost = RankEnd(3, 3, 1, 10.2, GLOO)  # it had been waiting, too, when a first one gave up
    assert verdict_on([waiting(0), behind, lost]).rank == 1


def test_a_rank_that_does_not_answer_is_behind() -> None:
    verdict = verdict_on([waiting(0), RankEnd(1, 1, -9, 14.0, ended=True)])
    assert verdict.rank == 1
    assert "it did not answer" in verdict.detail


def test_ranks_in_different_collectives_are_told() -> None:
    other = waiting(1, frames=('File "/home/me/train.py", line 50 in save', C10D + "barrier"))
    verdict = verdict_on([waiting(0), other])
    assert verdict.detail.splitlines() == [
        "rank 0 (node 0, gpu0) in all_reduce (train.py:40 in training_step)",
        "rank 1 (node 1, gpu1) in barrier (train.py:50 in save)",
    ]


def test_the_rank_at_the_lowest_step_is_behind_where_all_wait() -> None:
    assert verdict_on([waiting(0), waiting(1, step=5), waiting(2)]).rank == 1


def test_where_nobody_is_behind_it_is_the_network() -> None:
    verdict = verdict_on([waiting(0), waiting(1)])
    assert (verdict.kind, verdict.transient) == (Kind.HANG, True)
    assert verdict.render().startswith("all ranks hang: ranks 0 and 1 (on gpu0, gpu1) waited in all_reduce")


def test_a_time_out_of_nccl_is_a_hang() -> None:
    ended = RankEnd(1, 1, -9, 14.0, ended=True, stack=STACK)
    verdict = verdict_on([RankEnd(0, 0, -6, 10.0, log_tail=WATCHDOG), ended])
    assert (verdict.kind, verdict.rank) == (Kind.HANG, 1)
    assert "waited in all_reduce (train.py:40 in training_step)" in verdict.cause


def test_a_rank_that_does_not_come_to_an_agreement_is_named() -> None:
    error = "at the transition to phase 'unfrozen', rank 1 did not come within 60 s. Nothing was changed"
    end = RankEnd(0, 0, 1, 10.0, error, user_fault=True)
    verdict = verdict_on([end, RankEnd(1, 1, -15, 11.0, stack=STACK)])
    assert (verdict.kind, verdict.rank) == (Kind.HANG, 1)
    assert "waited in the agreement at the transition to phase 'unfrozen'" in verdict.cause


def test_a_rank_that_ended_early_left_the_others_waiting() -> None:
    for error in (GLOO, GLOO_LATE):
        verdict = verdict_on([RankEnd(0, 0, 1, 10.0, error, frames=WAITING), RankEnd(1, 1, finished=True)])
        assert (verdict.kind, verdict.rank, verdict.verb) == (Kind.HANG, 1, "left the others waiting")


def test_a_rank_that_never_started() -> None:
    error = "torch.distributed.DistStoreError: wait timeout after 4000ms, keys: /default_pg/0//cpu//0/1"
    verdict = verdict_on([RankEnd(0, 0, 1, 10.0, error), RankEnd(1, 0, started=False, host="a")])
    assert (verdict.kind, verdict.rank, verdict.verb) == (Kind.NEVER_STARTED, 1, "never started")


# ---- nodes


def test_a_node_that_never_started() -> None:
    error = "torch.distributed.DistStoreError: Timed out after 4 seconds waiting for clients. 1/2 clients joined."
    here = AgentEnd(0, 1, error=error, address="gpu1:29500", host="gpu1")
    verdict = verdict_on([], (here, AgentEnd(1, None, started=False, host="gpu2")))
    assert (verdict.kind, verdict.node, verdict.transient) == (Kind.NEVER_STARTED, 1, True)
    assert verdict.render().startswith("node 1 (gpu2) never started: its agent never told that it runs, and the others")


def test_a_bad_rendezvous_names_the_address() -> None:
    error = (
        "torch.distributed.DistNetworkError: The client socket has timed out after 3000ms while trying to connect to "
        "(10.255.255.1, 29500)."
    )
    agent = AgentEnd(1, 1, error=error, address="10.255.255.1:29500")
    verdict = verdict_on([RankEnd(1, 1, started=False)], (AgentEnd(0, 1, ended_by_launcher=True), agent))
    assert (verdict.kind, verdict.node) == (Kind.RENDEZVOUS, 1)
    assert "10.255.255.1" in verdict.cause


def test_a_node_that_is_gone_without_a_word() -> None:
    agents = (AgentEnd(0, 1, host="a"), AgentEnd(1, None, host="b"))
    verdict = verdict_on([RankEnd(0, 0, 1, 10.0, GLOO), RankEnd(1, 1, host="b")], agents)
    assert (verdict.kind, verdict.node, verdict.host, verdict.transient) == (Kind.NODE_LOST, 1, "b", True)


def test_a_lost_connection_that_nobody_explains_may_go_away() -> None:
    verdict = verdict_on(
        [RankEnd(0, 0, 1, 10.0, GLOO), RankEnd(1, 1, 1, 10.1, STORE)], (AgentEnd(0, 1), AgentEnd(1, 1))
    )
    assert (verdict.kind, verdict.rank, verdict.transient) == (Kind.CONNECTION_LOST, 0, True)


def test_other_versions_on_a_node_are_told_with_what_they_may_have_caused() -> None:
    agents = (
        AgentEnd(0, 1, host="a", versions={"torch": "2.15.0", "numpy": "2.3"}),
        AgentEnd(1, 1, host="b", versions={"torch": "2.0.1", "numpy": "2.3"}),
    )
    verdict = verdict_on([failed("AttributeError: no attribute 'compile'")], agents)
    assert (verdict.kind, verdict.transient) == (Kind.WRONG_VERSION, False)
    assert "torch is 2.15.0 on node 0 (a), 2.0.1 on node 1 (b)" in verdict.detail
    other = verdict_on([failed("torch.OutOfMemoryError: CUDA out of memory")], agents)
    assert other.kind is Kind.GPU_OOM
    assert "besides, the nodes differ" in other.also[-1]


def test_a_full_disk_that_nothing_could_be_written_to() -> None:
    verdict = find_verdict([RankEnd(0, 0, 1, 5.0)], [AgentEnd(0, 1)], disk_free=0)
    assert verdict is not None
    assert verdict.kind is Kind.DISK_FULL


# ---- Slurm


@pytest.mark.parametrize(
    ("record", "kind", "transient"),
    [
        (SlurmRecord("TIMEOUT", time_limit="01:00:00", job_id="7"), Kind.TIME_LIMIT, True),
        (SlurmRecord("PREEMPTED", job_id="7"), Kind.PREEMPTED, True),
        (SlurmRecord("NODE_FAIL", failed_node="gpu1"), Kind.NODE_LOST, True),
        (SlurmRecord("OUT_OF_MEMORY"), Kind.OOM_KILLED, False),
        (SlurmRecord("CANCELLED by 1000"), Kind.INTERRUPTED, False),
    ],
)
def test_slurm_knows_why_ranks_were_killed(record: SlurmRecord, kind: Kind, transient: bool) -> None:
    at = Progress("the forward pass", 1, 6)
    ranks = [RankEnd(0, 0, -9, 9.0, progress=at), RankEnd(1, 1, 1, 9.1, GLOO)]
    agents = (AgentEnd(0, -9, host="gpu0"), AgentEnd(1, None, host="gpu1"))
    verdict = verdict_on(ranks, agents, record)
    assert (verdict.kind, verdict.transient) == (kind, transient)
    assert kind is Kind.OOM_KILLED or "step 6" in verdict.at
    # a failure of a rank's own stands, however Slurm ended the job after it
    assert verdict_on([RankEnd(0, 0, 1, 1.0, "ValueError: x")], agents, record).kind is Kind.EXCEPTION


def test_the_time_limit_is_told() -> None:
    verdict = verdict_on([RankEnd(0, 0, -9, 9.0)], (), SlurmRecord("TIMEOUT", time_limit="01:00:00", job_id="7"))
    assert verdict.render().splitlines()[0] == "Slurm's job 7 was ended: its time limit of 01:00:00 was up"


def test_the_lost_node_is_named_with_its_ranks() -> None:
    agents = (AgentEnd(0, 1, host="gpu0"), AgentEnd(1, None, host="gpu1"))
    ranks = [RankEnd(0, 0, 1, 9.0, GLOO), RankEnd(1, 1), RankEnd(2, 1)]
    verdict = verdict_on(ranks, agents, SlurmRecord("NODE_FAIL"))
    assert (
        verdict.render().splitlines()[0]
        == "node 1 (gpu1) was lost: Slurm says NODE_FAIL of the job; ranks 1, 2 were there"
    )


def test_a_program_reads_the_same() -> None:
    told = verdict_on([failed("ValueError: x")]).to_json()
    assert (told["kind"], told["host"], told["transient"]) == ("exception", "gpu02", False)


# ---- what looks like another's end and is none


@pytest.mark.parametrize(
    "error",
    [
        "TimeoutError: [Errno 110] Connection timed out: '/mnt/datastore/img/7.jpg'",
        "ValueError: timeout must be positive to restore the cache",
        "ConnectionRefusedError: [Errno 111] Connection refused",
        "BrokenPipeError: [Errno 32] Broken pipe",
        "RuntimeError: remote error in label row 7",
        "ConnectionResetError: [Errno 104] Connection reset by peer",
        "KeyError: 'xid'",
        "ValueError: hostname column could not be parsed",
        "urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>",
        "OSError: [Errno 98] Address already in use",
    ],
)
def test_an_error_of_the_users_own_is_not_between_ranks(error: str) -> None:
    """It came second, as it does where the rank cleaned up first."""
    verdict = verdict_on([RankEnd(0, 0, 1, 9.0, GLOO), failed(error)])
    assert (verdict.rank, verdict.kind, verdict.transient) == (1, Kind.EXCEPTION, False)
    assert ("no way to that address" in verdict.advice) == ("Name or service" in error)


def test_what_was_handled_long_before_the_end_is_not_its_cause() -> None:
    lines = "\n".join(["ModuleNotFoundError: No module named 'flash_attn'", *(f"step {n}" for n in range(9))])
    assert verdict_on([RankEnd(0, 0, 3, 1.0, log_tail=lines)]).kind is Kind.EXITED
    handled = failed("ValueError: x", causes=("OSError: [Errno 98] Address already in use",))
    assert verdict_on([handled]).kind is Kind.EXCEPTION
    wandb = "wandb: WARNING Connection reset by peer (gloo)\nfree(): invalid pointer\nFatal Python error: Aborted\n\n"
    assert verdict_on([RankEnd(0, 0, -6, 1.0, log_tail=wandb)]).kind is Kind.CRASH


def test_native_code_that_gives_up_because_another_is_gone() -> None:
    words = (
        "terminate called after throwing an instance of 'gloo::EnforceNotMet'\n  what():  [enforce fail at "
        "gloo/transport/tcp/pair.cc:446] Connection reset by peer\nFatal Python error: Aborted\n\n"
    )
    verdict = verdict_on([RankEnd(0, 0, -6, 1.0, log_tail=words), RankEnd(1, 1, 1, 3.0, "ValueError: x")])
    assert verdict.rank == 1


def test_an_exit_without_an_error_before_the_end_of_the_run() -> None:
    end = RankEnd(0, 0, 1, 1.0, "SystemExit: 0", error_type="builtins.SystemExit")
    verdict = verdict_on([end, RankEnd(1, 0, 1, 1.1, GLOO)])
    assert (verdict.rank, verdict.kind, verdict.transient) == (0, Kind.EXITED, False)
    assert "sys.exit" in verdict.advice
    kind = "lightning_fabric.utilities.exceptions.SIGTERMException"
    early = verdict_on([replace(end, error=kind, error_type=kind)])
    assert (early.kind, early.transient) == (Kind.KILLED, True)


def test_a_rank_that_somebody_ended_by_sigterm_is_the_cause_of_what_follows() -> None:
    verdict = verdict_on([RankEnd(0, 0, 1, 10.6, GLOO), RankEnd(1, 0, -15, 10.0)], (AgentEnd(0, 1),))
    assert (verdict.rank, verdict.kind, verdict.cause) == (1, Kind.KILLED, "killed by SIGTERM, from outside")


def test_a_launch_that_was_ended_by_a_signal_has_no_verdict() -> None:
    agents = (AgentEnd(0, -1, ended_by_launcher=True), AgentEnd(1, 1, ended_by_launcher=True))
    assert find_verdict([RankEnd(0, 0, -15, 1.0), RankEnd(1, 1, -9, 4.0, ended=True)], agents) is None
    assert verdict_on([RankEnd(0, 0, -15, 1.0), RankEnd(1, 1, -9, 4.0)], agents).rank == 1


def test_who_waits_in_native_code_is_not_behind() -> None:
    """With NCCL only the watchdog gives up; the others wait for a copy from the GPU, and their frames say nothing."""
    stack = STACK.replace("data.py", "train.py")
    ends = [
        RankEnd(0, 0, -6, 10.0, log_tail=WATCHDOG, progress=Progress("the backward pass", 1, 7)),
        RankEnd(1, 0, -15, 11.0, stack=STACK, progress=Progress("fetching data", 1, 6)),
        RankEnd(2, 1, -15, 11.0, stack=stack, progress=Progress("the backward pass", 1, 7)),
    ]
    verdict = verdict_on(ends)
    assert (verdict.kind, verdict.rank) == (Kind.HANG, 1)
    assert verdict.render().startswith("rank 1 (node 0) hangs")


def test_a_hang_in_a_backward_of_the_users_own_is_theirs() -> None:
    autograd = 'File "/v/site-packages/torch/autograd/graph.py", line 8 in _engine_run_backward'
    own = 'File "/home/me/ops.py", line 9 in backward'
    stack = f"Current thread 0x1 (most recent call first):\n  {own}\n  {autograd}\n  {WAITING[0]}\n"
    verdict = verdict_on([waiting(0), RankEnd(1, 1, -15, 11.0, stack=stack, progress=Progress("x", 1, 7))])
    assert verdict.rank == 1
    assert "it is at ops.py:9 in backward" in verdict.detail


def test_an_agents_own_failure_goes_before_a_node_that_had_no_time_to_begin() -> None:
    absent = AgentEnd(1, None, started=False, ended_by_launcher=True, host="gpu2")
    agent = AgentEnd(0, 1, log_tail="ModuleNotFoundError: No module named 'torch'\n", host="gpu1")
    verdict = verdict_on([], (agent, absent))
    assert (verdict.kind, verdict.node, verdict.transient) == (Kind.IMPORT_ERROR, 0, False)
    taken = replace(agent, log_tail="", error="port 29500, where the ranks were to meet: EADDRINUSE")
    assert verdict_on([], (taken, absent)).kind is Kind.PORT_TAKEN


def test_versions_that_go_together_change_no_verdict() -> None:
    agents = (AgentEnd(0, 1, versions={"python": "3.11.4"}), AgentEnd(1, 1, versions={"python": "3.11.6"}))
    assert verdict_on([failed("AttributeError: x")], agents).kind is Kind.EXCEPTION
    other = tuple(replace(agent, versions={"numpy": f"2.{agent.node}"}) for agent in agents)
    assert verdict_on([failed("the folder is empty", user_fault=True)], other).kind is Kind.USER_FAULT
    assert verdict_on([RankEnd(0, 0, 1, 10.0, GLOO), RankEnd(1, 1, 1, 10.1, STORE)], other).transient


def test_ranks_that_exchange_different_things_are_no_fault_of_native_code() -> None:
    tail = (
        "terminate called after throwing an instance of 'gloo::EnforceNotMet'\n  what():  [enforce fail at "
        "pair.cc:464] op.preamble.length <= op.nbytes. 16 vs 8. Received data size doesn't match expected size. "
        "Is there a distributed collective mismatch in your code?\nFatal Python error: Aborted\n\n"
    )
    verdict = verdict_on([RankEnd(1, 1, -6, 1.0, log_tail=tail)])
    assert (verdict.kind, verdict.transient) == (Kind.CRASH, False)
    assert "the other ranks, which exchanged something else" in verdict.render()
    assert "trainer.should_stop that is set on one rank only" in verdict.advice
