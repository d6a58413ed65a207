#!/usr/bin/env bash
# Train on the GPUs of this machine, or with CPU processes if it has none:
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# The script picks a free port, so several runs can share a machine; PORT=N sets the port.
# For several machines, start it on each; GPUS is the number per machine:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine [PORT=29500] tools/dist_train.sh CONFIG GPUS [options]
# SIGTERM, SIGUSR1 and Ctrl-C are forwarded to the processes, which save and end with exit code 75; a second Ctrl-C, or
# another SIGTERM after two seconds, ends them at once. bootmae/distributed/exits.py lists all exit codes.
# On a Slurm cluster use tools/slurm_train.sh.
set -euo pipefail

case ${1:-} in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit ;;
esac

fail() {
    printf '%s\n' "usage: $0 CONFIG GPUS [options of tools/train.py]" "error: $1" >&2
    exit 2
}
[ $# -ge 2 ] || fail 'CONFIG and GPUS (the number of processes on this machine) are needed'
[[ $2 =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$2 is not a number of processes: give 1 or more"
NNODES=${NNODES:-1}
[[ $NNODES =~ ^[1-9][0-9]*$ ]] || fail "NNODES=$NNODES is not a number of machines"
[[ ${PORT:-1} =~ ^[1-9][0-9]{0,4}$ && ${PORT:-1} -lt 65536 ]] || fail "PORT=$PORT is not a port: give 1 to 65535"

if [ -n "${RDZV_ID:-}" ]; then # set by slurm_train.sh
    rendezvous=(--nnodes="$NNODES" --rdzv_id="$RDZV_ID" --rdzv_backend=c10d --rdzv_endpoint="$MASTER_ADDR:$PORT"
        --rdzv_conf="is_host=$([ "$NODE_RANK" = 0 ] && echo true || echo false)" --local_addr="$LOCAL_ADDR")
elif [ "$NNODES" -gt 1 ]; then
    [ -n "${MASTER_ADDR:-}" ] || fail "NNODES=$NNODES needs MASTER_ADDR, the address of the first machine"
    [ -n "${NODE_RANK:-}" ] || fail "NNODES=$NNODES needs NODE_RANK: 0 on the first machine, 1 on the next, ..."
    [[ $NODE_RANK =~ ^[0-9]{1,6}$ && 10#$NODE_RANK -lt $NNODES ]] ||
        fail "NODE_RANK=$NODE_RANK is none of NNODES=$NNODES machines: give 0 on the first machine, 1 on the next, ..."
    rendezvous=(--nnodes="$NNODES" --node_rank="$NODE_RANK" --master_addr="$MASTER_ADDR" --master_port="${PORT:-29500}")
elif [ "${NODE_RANK:-0}" != 0 ]; then
    fail "NODE_RANK=$NODE_RANK needs NNODES, the number of machines: NNODES=$NNODES is one machine, with NODE_RANK=0"
elif [ -n "${PORT:-}" ]; then
    rendezvous=(--master_addr=127.0.0.1 --master_port="$PORT")
else
    rendezvous=(--standalone --local_addr=127.0.0.1)
fi

ROOT=$(cd -P "$(dirname "$0")/.." && pwd)
if [ "${ROOT##*/}" = .mim ]; then # installed
    PACKAGE=${ROOT%/.mim}
else
    PACKAGE=$ROOT/bootmae
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$ROOT/.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
"$PYTHON" "$ROOT/tools/startup.py" >/dev/null || exit 2 # it says what is missing
exec env OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}" \
    "$PYTHON" "$PACKAGE/distributed/launch.py" "${rendezvous[@]}" --nproc_per_node="$2" \
    "$ROOT/tools/${TOOL:-train.py}" "$1" --launcher pytorch "${@:3}"
