#!/usr/bin/env bash
# Train on a Slurm cluster, on one node or several:
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG GPUS [options of tools/train.py]
# GPUS is the total over all nodes. GPUS_PER_NODE (default: 8, or GPUS if fewer) and CPUS_PER_GPU (default: 10) set the
# resources per node and GPU. SRUN_ARGS='--time=24:00:00 ...' goes to srun. PORT=N replaces the port derived from the job
# number. DRY_RUN=1 prints the srun command. In a script for sbatch, srun uses the nodes of that job.
# One task per node starts the launcher, whose processes rendezvous on the first node of the job.
#
# SIGNAL (default: USR1@120) is sent two minutes before the time limit, so that the run saves and ends with code 75. srun
# can request it only if it makes the allocation. A batch script requests it itself; the job is then requeued (unless
# REQUEUE=0) and resumes:
#   #SBATCH --requeue --open-mode=append --signal=USR1@120
#   exec tools/slurm_train.sh ...
set -euo pipefail

case ${1:-} in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit ;;
esac

fail() {
    printf '%s\n' "usage: $0 PARTITION JOB_NAME CONFIG GPUS [options of tools/train.py]" "error: $1" >&2
    exit 2
}
[ $# -ge 4 ] || fail 'PARTITION, JOB_NAME, CONFIG and GPUS are needed'
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 GPUS=$4
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$GPUS is not a number of GPUs: give 1 or more"
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))} CPUS_PER_GPU=${CPUS_PER_GPU:-10}
[[ $GPUS_PER_NODE =~ ^[1-9][0-9]*$ ]] || fail "GPUS_PER_NODE=$GPUS_PER_NODE is not a number of GPUs: give 1 or more"
[[ $CPUS_PER_GPU =~ ^[1-9][0-9]*$ ]] || fail "CPUS_PER_GPU=$CPUS_PER_GPU is not a number of CPU cores: give 1 or more"
((GPUS % GPUS_PER_NODE == 0)) || fail "GPUS=$GPUS is not a multiple of GPUS_PER_NODE=$GPUS_PER_NODE: change one of them"
NODES=$((GPUS / GPUS_PER_NODE))
ARGUMENTS=("${@:5}")
if [ "${SLURM_RESTART_COUNT:-0}" != 0 ]; then
    ARGUMENTS=()
    for argument in "${@:5}"; do # the first start has moved old checkpoints aside; train.py takes short forms as well
        [[ $argument == --m* && --move-aside == "$argument"* ]] || ARGUMENTS+=("$argument")
    done
    ARGUMENTS+=(--resume) # the last option counts, so this also replaces --resume FILE
fi

# This runs on each node.
NODE_SCRIPT='set -eu
RDZV_ID=$SLURM_JOB_ID NODE_RANK=$SLURM_NODEID LOCAL_ADDR=$SLURMD_NODENAME
MASTER_ADDR=$(scontrol show hostnames "${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}" | head -n 1)
PORT=${PORT:-$((20000 + SLURM_JOB_ID % 12000))}
export RDZV_ID NODE_RANK LOCAL_ADDR MASTER_ADDR PORT
exec "$@"'

# shellcheck disable=SC2206  # SRUN_ARGS must be split
COMMAND=(srun --partition="$PARTITION" --job-name="$JOB_NAME" --nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1
    --gres="gpu:$GPUS_PER_NODE" --cpus-per-task="$((CPUS_PER_GPU * GPUS_PER_NODE))" --kill-on-bad-exit=0
    --wait=150 --signal="${SIGNAL:-USR1@120}" ${SRUN_ARGS:-} env NNODES="$NODES" bash -c "$NODE_SCRIPT" node
    "$(cd "$(dirname "$0")" && pwd)/dist_train.sh" "$CONFIG" "$GPUS_PER_NODE"
    ${ARGUMENTS[@]+"${ARGUMENTS[@]}"})
if [ "${DRY_RUN:-0}" != 0 ]; then
    printf '%q ' "${COMMAND[@]}"
    echo
    exit
fi

# In a batch job this shell may receive the signal too; it must outlive srun.
"${COMMAND[@]}" &
CHILD=$!
trap 'kill -TERM $CHILD 2>/dev/null || true' TERM
trap 'kill -USR1 $CHILD 2>/dev/null || true' USR1
trap 'kill -INT $CHILD 2>/dev/null || true' INT
CODE=129
while [ "$CODE" -gt 128 ]; do # more than 128: a signal interrupted the wait or ended srun
    wait "$CHILD" && CODE=0 || CODE=$?
    kill -0 "$CHILD" 2>/dev/null || break
done

# Requeue only a running job: a canceled job must stay canceled.
if [ "$CODE" = 75 ] && [ -n "${SLURM_JOB_ID:-}" ] && [ "${REQUEUE:-1}" != 0 ]; then
    if scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then
        echo "the run was stopped by a signal and has saved: job $SLURM_JOB_ID is requeued and will resume" >&2
        scontrol requeue "$SLURM_JOB_ID" || echo "error: not requeued; submit it again with --resume" >&2
    else
        echo "the run has saved; job $SLURM_JOB_ID has ended and is not requeued: submit it again with --resume" >&2
    fi
fi
exit "$CODE"
