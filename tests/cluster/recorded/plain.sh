#!/bin/bash
# A run of flash-launch as a Slurm job, written by `flash-launch submit`. Submitted again by hand, it goes on where the run was.
#SBATCH --job-name=first
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --partition=gpu
#SBATCH --time=1-00:00:00
#SBATCH --gpus-per-node=8
#SBATCH --output=/home/me/runs/first/logs/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes

# shellcheck disable=SC2016 # values are quoted so that nothing in them is expanded

cd -- /home/me/project || exit
python=(/home/me/venv/bin/python)
run=/home/me/runs/first

# Slurm's SIGTERM reaches this shell, too: it stays until the ranks, which save and stop, have ended.
trap : TERM

requeue() {
    local _ record
    for _ in {1..60}; do
        if record=$(scontrol show job "$SLURM_JOB_ID"); then
            # cancelled by somebody, or requeued already
            [[ $record == *JobState=RUNNING* ]] || return
            scontrol requeue "$SLURM_JOB_ID" && return
        fi
        sleep 10
    done
}

attempt=$("${python[@]}" -m flash_launch.job begin "$run") || exit
# The run has finished: there is nothing left to do.
[ -n "$attempt" ] || exit 0

# One agent per node. The ranks' own exit codes are in the run folder; srun's would be 143 for most of them.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=600 \
    "${python[@]}" -m flash_launch.job node "$run" "$attempt" &
step=$!
wait "$step"
while kill -0 "$step" 2> /dev/null; do wait "$step"; done

"${python[@]}" -m flash_launch.job end "$run" "$attempt"
code=$?
if [ "$code" -eq 75 ]; then requeue; fi
exit "$code"
