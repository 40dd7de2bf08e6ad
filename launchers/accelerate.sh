#!/usr/bin/env bash
# Ranks started by `accelerate launch`: launchers/accelerate.sh [VERB] [ARGS], VERB one of classify, train (default), evaluate.
#   NPROC=2 launchers/accelerate.sh train --config configs/demo/shapes.yaml
# NPROC  processes on each machine, usually one per GPU
# On several machines, the same command on each, with
# NNODES         machines (1)
# NODE_RANK      number of this one, from 0
# RDZV_ENDPOINT  HOST:PORT of number 0
# ACCELERATE_USE_CPU=true  without GPUs
# ACCELERATE_CONFIG  a file of `accelerate config`, which then says all but the processes and machines
# SHUTDOWN_TIMEOUT, OMP_NUM_THREADS  as in torchrun_local.sh
# A rank that dies ends the run: only the torchrun launchers restart.
# DRY_RUN=1 prints the one command instead, with <PLACEHOLDERS> for what is not set.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need NPROC "the number of processes on each machine, usually one per GPU"
training "$@"
total=$NPROC machines=(--num_machines 1 --main_process_port 0)
if [ "${NNODES:-1}" != 1 ]; then
    need NODE_RANK "the number of this machine, from 0"
    need_endpoint
    [[ $NPROC == '<'* ]] && total="${NPROC}x$NNODES" || total=$((NPROC * NNODES))
    machines=(--num_machines "$NNODES" --machine_rank "$NODE_RANK" --main_process_ip "$HOST" --main_process_port "$PORT")
fi
options=(--mixed_precision no --dynamo_backend no) # what this configuration says counts
[ "$total" = 1 ] || options+=(--multi_gpu)
[ -z "${ACCELERATE_CONFIG:-}" ] || options=(--config_file "$ACCELERATE_CONFIG")
[ -z "${ACCELERATE_USE_CPU:-}" ] || variables+=(ACCELERATE_USE_CPU="$ACCELERATE_USE_CPU")
[ -z "${SHUTDOWN_TIMEOUT:-}" ] || variables+=(TORCH_ELASTIC_SHUTDOWN_TIMEOUT="$SHUTDOWN_TIMEOUT")
command=(accelerate launch "${options[@]}" --num_processes "$total" "${machines[@]}" --module "${process[@]}")
check_and_show
launch_forwarding
