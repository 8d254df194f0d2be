#!/bin/bash
# A run of flash-launch as a Slurm job, written by `flash-launch submit`. Submitted again by hand, it goes on where the run was.
#SBATCH --job-name='it'"'"'s, "quoted" $HOME'
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --partition=gpu,big
#SBATCH --account=team
#SBATCH --qos=high
#SBATCH --time=90
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=480G
#SBATCH --constraint='a100&nvlink'
#SBATCH --exclude='gpu[01-03],gpu07'
#SBATCH --reservation='maintenance day'
#SBATCH --dependency=afterok:17:18,singleton
#SBATCH --output='/home/me/my runs/50%% of it'"'"'s, "all"/logs/slurm-%A_%a.out'
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
#SBATCH --array=0-1%4
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --exclusive
#SBATCH --comment='a '"'"'b'"'"', "c"'

# shellcheck disable=SC2016 # values are quoted so that nothing in them is expanded

cd -- '/home/me/$(rm -rf)/`x`' || exit
module load cuda/12
export NCCL_DEBUG='WARN, x'
python=(apptainer exec --nv image.sif '/opt/my venv/bin/python')
runs=(
    '/home/me/my runs/a, b/0-seed=0'
    '/home/me/my runs/a, b/1-seed=1'
)
run=${runs[$SLURM_ARRAY_TASK_ID]}
export FLASH_LAUNCH_ARRAY='it'"'"'s, "quoted" $HOME'

# Slurm's SIGTERM reaches this shell, too: it stays until the ranks, which save and stop, have ended.
trap : TERM

# One task of an array has the number that stands for all of them.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

requeue() {
    local _ record
    for _ in {1..60}; do
        if record=$(scontrol show job "$job"); then
            # cancelled by somebody, or requeued already
            [[ $record == *JobState=RUNNING* ]] || return
            scontrol requeue "$job" && return
        fi
        sleep 10
    done
}

attempt=$("${python[@]}" -m flash_launch.job begin "$run") || exit
# what a container says of itself may stand before
attempt=${attempt##*$'\n'}
# The run has finished: there is nothing left to do.
[ -n "$attempt" ] || exit 0

# One agent per node. The ranks' own exit codes are in the run folder; srun's would be 143 for most of them.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --export=ALL --cpu-bind=none \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=0 --wait=600 '--container-mounts=/data:/data,/my dir:/x' \
    "${python[@]}" -m flash_launch.job node "$run" "$attempt" &
step=$!
wait "$step"
srun_code=$?
while kill -0 "$step" 2> /dev/null; do
    wait "$step"
    srun_code=$?
done

what_now=$("${python[@]}" -m flash_launch.job end "$run" "$attempt" "$srun_code")
code=$?
if [ "${what_now##*$'\n'}" = requeue ]; then requeue; fi
exit "$code"
