"""What is only text: the batch script against recorded files, hosts, reasons, options, sweeps, the allocation."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from flash_launch.cluster.allocation import Allocation, find_allocation
from flash_launch.cluster.client import call, count_gpus, count_nodes, show_jobs, submit
from flash_launch.cluster.hostlist import expand
from flash_launch.cluster.options import SlurmOptions, parse_slurm_options
from flash_launch.cluster.reasons import explain
from flash_launch.cluster.script import JobScript, render
from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError, SlurmError, SlurmUnavailable
from flash_launch.executors.allocation import srun_argv, srun_environment
from flash_launch.preparation import Preparation
from flash_launch.submission import Submission, send
from flash_launch.sweep import combinations, sweep_tasks

RECORDED = Path(__file__).with_name("recorded")
PLAIN = JobScript(
    name="first",
    folder="/home/me/runs/first",
    runs=("/home/me/runs/first",),
    nodes=2,
    directory="/home/me/project",
    python="/home/me/venv/bin/python",
    options=SlurmOptions(partition="gpu", time="1-00:00:00", gpus_per_node=8),
)
AWKWARD = JobScript(
    name='it\'s, "quoted" $HOME',
    folder='/home/me/my runs/50% of it\'s, "all"',
    runs=("/home/me/my runs/a, b/0-seed=0", "/home/me/my runs/a, b/1-seed=1"),
    nodes=16,
    directory="/home/me/$(rm -rf)/`x`",
    python="/opt/my venv/bin/python",
    options=SlurmOptions(
        partition="gpu,big",
        account="team",
        qos="high",
        time="90",
        gpus_per_node=4,
        cpus_per_task=32,
        mem="480G",
        constraint="a100&nvlink",
        exclude="gpu[01-03],gpu07",
        reservation="maintenance day",
        dependency="afterok:17:18,singleton",
        array={"seed": [0, 1]},
        array_limit=4,
        warning=300,
        extra=("--exclusive", "--comment=a 'b', \"c\""),
        setup=("module load cuda/12", "export NCCL_DEBUG='WARN, x'"),
        prefix="apptainer exec --nv image.sif",
        srun=("--container-mounts=/data:/data,/my dir:/x",),
    ),
)
SCRIPTS = {"plain.sh": PLAIN, "awkward.sh": AWKWARD}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_is_as_recorded(name: str) -> None:
    """After a wanted change: python tests/cluster/test_slurm_text.py writes them anew."""
    assert render(SCRIPTS[name]) == (RECORDED / name).read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_is_good_bash(name: str) -> None:
    subprocess.run(["bash", "-n", RECORDED / name], check=True, timeout=20)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", RECORDED / name], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""


def test_nothing_is_expanded_before_the_node() -> None:
    """What the shell of a node reads are the values themselves, letter by letter."""
    lines = [
        line for line in render(AWKWARD).splitlines() if line.startswith(("cd ", "python=", "    '/", "export FLASH"))
    ]
    lines = [line.replace("cd -- ", "printf '%s\\n' ").removesuffix(" || exit") for line in lines]
    script = "\n".join(line if not line.startswith("    ") else f"printf '%s\\n' {line}" for line in lines)
    script += '\nprintf \'%s\\n\' "${python[@]}" "$FLASH_LAUNCH_ARRAY"'
    out = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=20).stdout
    prefix = ("apptainer", "exec", "--nv", "image.sif")
    assert out.splitlines() == [AWKWARD.directory, *AWKWARD.runs, *prefix, AWKWARD.python, AWKWARD.name]


def test_marks_of_the_template_in_values_stay() -> None:
    directory, setup = "/home/@run@/@setup@", ("echo @python@ @sbatch@",)
    script = render(replace(PLAIN, directory=directory, options=SlurmOptions(setup=setup)))
    assert "cd -- /home/@run@/@setup@ || exit\necho @python@ @sbatch@\npython=(" in script


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("gpu1", ["gpu1"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("127.0.0.[11-12]", ["127.0.0.11", "127.0.0.12"]),
        ("n[098-101].x.org", ["n098.x.org", "n099.x.org", "n100.x.org", "n101.x.org"]),
        ("", []),
    ],
)
def test_lists_of_hosts(text: str, hosts: list[str]) -> None:
    assert expand(text) == hosts


@pytest.mark.parametrize("text", ["gpu[1", "gpu1]", "gpu[[1]]"])
def test_lists_of_hosts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="brackets"):
        expand(text)


def test_reasons_in_plain_words() -> None:
    assert explain("PartitionNodeLimit").never
    assert explain("(DependencyNeverSatisfied)").never
    assert explain("Resources").words == "it is next, and waits for nodes to become free"
    assert explain("ReqNodeNotAvail,_UnavailableNodes:n1").words == "nodes that it needs are down, drained or reserved"
    assert "all they may" in explain("QOSMaxJobsPerUserLimit").words
    assert "man squeue" in explain("SomethingNew").words
    assert not explain("SomethingNew").never


def test_options_from_a_file_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "nodes: 4\nslurm:\n  partition: gpu\n  gpus-per-node: 8\n  time: 4:00:00\n"
        "  setup: [module load cuda, ulimit -l unlimited]\n"
    )
    argv = ["--config", str(file), "--slurm.partition=big", "--lr", "0.1", "--slurm.extra", "--exclusive"]
    options, rest = parse_slurm_options([*argv, "--slurm.extra", "--nice=7"])
    assert options == SlurmOptions(
        partition="big",
        gpus_per_node=8,
        time="4:00:00",  # YAML 1.1 would have it be 14400, which are ten days
        setup=("module load cuda", "ulimit -l unlimited"),
        extra=("--exclusive", "--nice=7"),
    )
    assert rest == ["--config", str(file), "--lr", "0.1"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--slurm.partitoin", "x"], "unknown option --slurm.partitoin: did you mean --slurm.partition?"),
        (["--slurm.time", "soon"], "--slurm.time was given soon: it must be minutes, H:MM:SS or D-HH:MM:SS"),
        (["--slurm.mem", "much"], "--slurm.mem was given much: it must be a size such as 64G"),
        (["--slurm.gpus-per-node", "0"], "--slurm.gpus-per-node was given 0: it must be 1 or more"),
        (["--slurm.gpus-per-node", "two"], "--slurm.gpus-per-node was given two: it must be a whole number"),
        (["--slurm.partition"], "--slurm.partition has no value: it must be a text"),
        (["--slurm.partition", ""], "--slurm.partition was given an empty text"),
        (["--slurm.qos", "a\nb"], "it must be one line of printable text"),
        (["--slurm.extra", "exclusive"], "--slurm.extra was given exclusive: it must be an option of sbatch"),
        (["--slurm.array", "seed"], "--slurm.array was given seed: it must be an option and its values"),
        (["--slurm.array-limit", "2"], "--slurm.array-limit belongs to --slurm.array, which was not given"),
        (["--slurm.warning", "70000"], "Slurm takes up to 65535 seconds"),
        (["--slurm.time", "2"], "--slurm.time 2 leaves no time to train: the run is asked to save 120 s before"),
        (["--slurm.time", "1:30:00", "--slurm.warning", "5400"], "leaves no time to train"),
        (["--slurm.extra", "--clusters=b"], "set SLURM_CLUSTERS instead"),
    ],
)
def test_wrong_options(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_slurm_options(argv)
    assert message in str(told.value)


def test_sweeps() -> None:
    values = combinations({"lr": ["1e-3", "1e-2"], "data": ["a/b c"]}, ["lr", "data", "seed"])
    assert values == [{"lr": "1e-3", "data": "a/b c"}, {"lr": "1e-2", "data": "a/b c"}]
    assert [task.folder for task in sweep_tasks(values)] == ["0-lr=1e-3-data=a_b_c", "1-lr=1e-2-data=a_b_c"]
    with pytest.raises(ConfigError, match="unknown option 'sed': did you mean seed"):
        combinations({"sed": [1]}, ["lr", "seed"])
    with pytest.raises(ConfigError, match="--nodes cannot differ"):
        combinations({"nodes": [1, 2]}, ["nodes"])
    with pytest.raises(ConfigError, match="a value twice"):
        combinations({"seed": [1, 1]}, ["seed"])


def test_the_allocation() -> None:
    environment = {
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NODELIST": "gpu[1-2]",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_ON_NODE": "64",
        "SLURM_RESTART_COUNT": "2",
        "SLURM_ARRAY_JOB_ID": "1230",
        "SLURM_ARRAY_TASK_ID": "3",
    }
    found = find_allocation(environment)
    assert found == Allocation("1234", ("gpu1", "gpu2"), 4, 2, "1230", 3)
    assert found.own_id == "1230_3"
    assert found.port(1) == 12000 + 1234 + 997
    assert found.port(1) != found.port(2)
    assert find_allocation({}) is None
    batch = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1"}
    assert find_allocation(batch) == Allocation("7", ("n1",), 0)
    del batch["SLURMD_NODENAME"]
    salloc = find_allocation(batch)
    assert salloc is not None
    assert (salloc.gpus_per_node, salloc.own_id) == (None, "7")


def test_srun_takes_no_options_of_other_steps() -> None:
    """Of `srun --pty bash`, of a script's own tasks, or of sbatch --export=NONE."""
    argv = srun_argv(Allocation("7", ("n1", "n2"), 8))
    assert {"--nodes=2", "--ntasks-per-node=1", "--nodelist=n1,n2", "--cpu-bind=none", "--export=ALL"} <= set(argv)
    assert not [word for word in argv if word.startswith("--cpus-per-task")]  # it would take the other CPUs away
    variables = {"SLURM_CPU_BIND_LIST": "0x1", "SLURM_GPUS_PER_TASK": "1", "SLURM_EXPORT_ENV": "NONE"}
    kept = {"SLURM_JOB_ID": "7", "PATH": "/bin"}
    assert srun_environment({**variables, **kept}) == kept


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_controller_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("flash_launch.cluster.client._PAUSE_SECONDS", 0.05)
    away = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    command(
        tmp_path,
        "scontrol",
        f"[ -e {tmp_path}/up ] && echo 'JobId=7 JobState=RUNNING' && exit 0; touch {tmp_path}/up; {away}",
    )
    told: list[str] = []
    assert [job.state for job in show_jobs("7", note=told.append)] == ["RUNNING"]
    assert told == ["the Slurm controller does not answer: trying again for 30 s"]
    command(tmp_path, "scontrol", away)
    with pytest.raises(SlurmUnavailable, match=r"did not answer for 0 s .*: jobs go on meanwhile"):
        show_jobs("7", retry_seconds=0)
    command(tmp_path, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert show_jobs("7") == []
    command(tmp_path, "sbatch", "echo x >> asked; echo 'sbatch: error: Socket timed out on send/recv' >&2; exit 1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SlurmUnavailable, match="may have done it all the same: look at `squeue --me`"):
        submit("job.sh")
    assert (tmp_path / "asked").read_text() == "x\n"  # once: a second job would train beside the first
    command(tmp_path, "sbatch", "echo 'sbatch: error: no more' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"^no more$"):
        call(["sbatch"])
    with pytest.raises(SlurmError, match="run this on a login node"):
        call(["sbatch_that_is_not_there"])


def test_what_slurm_is_asked_about_gpus_and_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for record, count in (
        ("JobId=7 NumNodes=2 TRES=cpu=2,mem=1G,node=2 TresPerNode=gres:gpu:a100:4", 4),
        ("JobId=7 NumNodes=2 TresPerNode=gres/gpu:8", 8),
        ("JobId=7 NumNodes=2 AllocTRES=cpu=2,gres/gpu=6,gres/gpu:a100=6 TresPerNode=", 3),
        ("JobId=7 NumNodes=2 TRES=cpu=2", 0),
    ):
        command(tmp_path, "scontrol", f"echo '{record}'")
        assert count_gpus("7") == count
    command(tmp_path, "scontrol", "echo 'PartitionName=p MaxNodes=UNLIMITED TotalCPUs=8 TotalNodes=2'")
    assert count_nodes("p") == 2


SBATCH = "mkdir -p runs/other; touch runs/other/mine; "


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A login node whose Slurm is made of scripts, and a run that is ready to be submitted."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    command(tmp_path / "bin", "sbatch", f"{SBATCH} echo 7")
    command(tmp_path / "bin", "scontrol", "echo 'JobId=7 JobState=RUNNING Reason=None'")
    command(tmp_path / "bin", "scancel", "echo $1 >> cancelled")
    return tmp_path


def submission(path: str, *, goes_on: bool = False, nodes: int = 1) -> Submission:
    config = RunConfig.from_values({}).replace(nodes=nodes, procs_per_node=1, output_dir=path)
    preparation = Preparation({"phases": []}, ())
    return Submission(Path(path), (config,), (preparation,), (), "#!/bin/bash\n", SlurmOptions(), goes_on)


def test_a_refused_submission_takes_only_its_own_away(login: Path) -> None:
    command(login / "bin", "sbatch", f"{SBATCH} echo 'sbatch: error: no' >&2; exit 1")
    with pytest.raises(SlurmError, match="no"):
        send(submission("runs/a"))
    assert sorted(path.name for path in (login / "runs").iterdir()) == ["other"]  # made meanwhile, by somebody else
    (login / "empty").mkdir()
    with pytest.raises(SlurmError, match="no"):
        send(submission("empty"))
    assert list((login / "empty").iterdir()) == []
    assert not (login / "cancelled").exists()


def test_a_refused_submission_of_a_run_leaves_it_as_it_was(login: Path) -> None:
    send(submission("runs/a"))
    before = {path: path.read_bytes() for path in (login / "runs/a").iterdir() if path.is_file()}
    command(login / "bin", "scontrol", "echo 'JobId=7 JobState=PENDING Reason=PartitionTimeLimit'")
    with pytest.raises(SlurmError, match="can never run this job"):
        send(submission("runs/a", goes_on=True, nodes=9))
    assert {path: path.read_bytes() for path in (login / "runs/a").iterdir() if path.is_file()} == before
    assert (login / "cancelled").read_text() == "7\n"


def test_a_job_that_was_submitted_keeps_its_folder(login: Path) -> None:
    """The controller goes away in the wrong moment."""
    away = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    command(login / "bin", "scontrol", away)
    assert send(submission("runs/a")) == "7"
    assert (login / "runs/a/job.sh").exists()
    command(login / "bin", "scontrol", "echo 'JobId=7 JobState=PENDING Reason=PartitionTimeLimit'")
    command(login / "bin", "scancel", "echo 'scancel: error: no' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"it could not be removed .*: scancel 7"):
        send(submission("runs/b"))
    assert (login / "runs/b/job.sh").exists()


def test_nodes_that_are_down_are_waited_for(login: Path) -> None:
    job = "JobId=7 JobState=PENDING Reason=PartitionNodeLimit Partition=main"
    partition = "PartitionName=main MaxNodes=UNLIMITED TotalNodes=2"
    command(login / "bin", "scontrol", f'[ "$2" = job ] && echo "{job}" || echo "{partition}"')
    assert send(submission("runs/a", nodes=2)) == "7"
    with pytest.raises(SlurmError, match="PartitionNodeLimit"):
        send(submission("runs/b", nodes=3))


if __name__ == "__main__":
    RECORDED.mkdir(exist_ok=True)
    for file_name, job in SCRIPTS.items():
        (RECORDED / file_name).write_text(render(job))
