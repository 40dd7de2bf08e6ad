#!/usr/bin/env bash
# Ranks started by the `deepspeed` launcher: launchers/deepspeed.sh [VERB] [ARGS], VERB one of classify, train (default),
# evaluate. What DeepSpeed does is hardware.deepspeed of the configuration, with this launcher or another.
#   NPROC=2 launchers/deepspeed.sh train --config configs/demo/shapes.yaml
# NPROC          processes on each machine, usually one per GPU
# RDZV_ENDPOINT  HOST:PORT of machine 0; on one machine its port counts (29500)
# On several machines, the same command on each, with
# NNODES         machines (1)
# NODE_RANK      number of this one, from 0
# HOSTFILE       DeepSpeed's list of machines, a line `NAME slots=NPROC` for each, the same on all
# TORCH_EXTENSIONS_DIR  where DeepSpeed compiles, on a disk of this machine (torch's default: in the home folder)
# OMP_NUM_THREADS  as in torchrun_local.sh
# A rank that dies ends the run: only the torchrun launchers restart.
# DRY_RUN=1 prints the one command instead, with <PLACEHOLDERS> for what is not set.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need NPROC "the number of processes on each machine, usually one per GPU"
training "$@"
shutdown_is_fixed deepspeed
options=(--no_local_rank --num_gpus "$NPROC")
RDZV_ENDPOINT=${RDZV_ENDPOINT:-$([ "${NNODES:-1}" != 1 ] || echo localhost:29500)}
need_endpoint
options+=(--master_port "$PORT")
if [ "${NNODES:-1}" != 1 ]; then
    need NODE_RANK "the number of this machine, from 0"
    need HOSTFILE "a file with a line 'NAME slots=NPROC' for each machine"
    options+=(--no_ssh --hostfile "$HOSTFILE" --num_nodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$HOST")
fi
command=(deepspeed "${options[@]}" --module "${process[@]}")
check_and_show
launch_forwarding
