"""The verdict, on facts recorded from real failures."""

from flash_launch.verdict import AgentEnd, RankEnd, Verdict, find_verdict

GLOO = (
    "RuntimeError: [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer "
    "[127.0.0.1]:55702. This is typically caused by a remote worker crashing."
)
STORE = "torch.distributed.DistNetworkError: failed to recv, got 0 bytes. Connection was likely closed."
NCCL = "torch.distributed.DistBackendError: NCCL error: ncclRemoteError: A call failed possibly due to a network error"


def test_nobody_failed() -> None:
    assert find_verdict([], [AgentEnd(0, 0), AgentEnd(1, 0)]) is None


def test_the_first_error_wins_over_its_victims() -> None:
    ends = [
        RankEnd(0, 0, 1, 1795460326.906955, GLOO),
        RankEnd(1, 1, 1, 1795460326.3926127, "ValueError: the loss is a banana", log="/r/logs/node1_rank1.log"),
    ]
    verdict = find_verdict(ends, [AgentEnd(0, 1, ended_by_launcher=True), AgentEnd(1, 1)])
    assert verdict == Verdict(1, 1, "ValueError: the loss is a banana", "", "/r/logs/node1_rank1.log")
    assert verdict.render() == (
        "rank 1 (node 1) failed first: ValueError: the loss is a banana\n  log: /r/logs/node1_rank1.log"
    )


def test_victims_that_wrote_first_are_still_victims() -> None:
    for message in (GLOO, STORE, NCCL):
        ends = [RankEnd(0, 0, 1, 10.0, message), RankEnd(1, 0, 1, 10.5, "ValueError: x")]
        verdict = find_verdict(ends, [])
        assert verdict is not None
        assert verdict.rank == 1


def test_a_killed_rank_is_told_by_its_signal() -> None:
    ends = [
        RankEnd(0, 0, 1, 10.1, GLOO),
        RankEnd(3, 1, -9, 10.2, None, log="/l", log_tail="Epoch 0:  0%|\rEpoch 0: 50%|\nloading\n"),
        RankEnd(2, 1, -15, 10.4),
    ]
    verdict = find_verdict(ends, [AgentEnd(1, 1)])
    assert verdict is not None
    assert (verdict.rank, verdict.node, verdict.cause) == (3, 1, "killed by SIGKILL")
    assert verdict.detail.splitlines() == [
        "mostly the system, short of memory (see `dmesg`), or somebody's kill -9",
        "its last words:",
        "  Epoch 0: 50%|",
        "  loading",
    ]


def test_exit_codes_and_signals_have_words() -> None:
    for code, words in ((3, "exited with code 3"), (-11, "killed by SIGSEGV"), (-64, "killed by SIGRTMAX")):
        verdict = find_verdict([RankEnd(0, 0, code, 1.0)], [])
        assert verdict is not None
        assert verdict.cause == words


def test_a_rank_ended_by_its_agent_is_no_cause_but_better_than_nothing() -> None:
    ends = [RankEnd(0, 0, -15, 1.0), RankEnd(1, 0, 3, 2.0)]
    first, alone = find_verdict(ends, []), find_verdict(ends[:1], [])
    assert first is not None
    assert alone is not None
    assert (first.rank, alone.rank, alone.cause) == (1, 0, "killed by SIGTERM")


def test_an_abort_of_native_code_comes_after_an_error_of_the_same_second() -> None:
    ends = [RankEnd(0, 0, -6, 10.0), RankEnd(1, 1, 1, 10.7, "ValueError: x")]
    verdict = find_verdict(ends, [])
    assert verdict is not None
    assert verdict.rank == 1


def test_a_killed_agent_goes_before_those_who_noticed() -> None:
    agents = [AgentEnd(0, 1, ended_by_launcher=True), AgentEnd(1, -9, log="/a")]
    verdict = find_verdict([RankEnd(0, 0, 1, 10.0, GLOO)], agents)
    assert verdict is not None
    assert verdict.render().splitlines()[0] == "the agent of node 1 failed first: killed by SIGKILL"


def test_an_agent_that_never_started_ranks_shows_its_last_words() -> None:
    verdict = find_verdict([], [AgentEnd(0, 1, log="/a", log_tail="ImportError: no torch\n")])
    assert verdict is not None
    assert verdict.render() == (
        "the agent of node 0 failed first: exited with code 1\n  its last words:\n    ImportError: no torch\n  log: /a"
    )


def test_a_user_fault_is_its_message_and_no_log() -> None:
    verdict = find_verdict([RankEnd(2, 1, 1, 1.0, "the folder is empty", user_fault=True, log="/l")], [])
    assert verdict is not None
    assert verdict.render() == "rank 2 (node 1) failed first: the folder is empty"


def test_ranks_of_equal_time_are_told_by_number() -> None:
    ends = [RankEnd(1, 0, 1, 5.0, "ValueError: b"), RankEnd(0, 0, 1, 5.0, "ValueError: a")]
    verdict = find_verdict(ends, [])
    assert verdict is not None
    assert verdict.rank == 0
