#!/usr/bin/env bash
# Ranks on several machines; the same command on each of them:
#   NNODES=2 NPROC=8 RDZV_ENDPOINT=HOST:29400 launchers/torchrun_multinode.sh [VERB] [ARGS]
# VERB one of classify, train (default), evaluate. Repository, run folder, shards and data set: at the same path on all.
# NNODES            machines
# NPROC             processes on this one, usually one per GPU
# RDZV_ENDPOINT     HOST:PORT where the machines meet; the one with that address serves it, and must be there
# NODE_RANK         0 on that machine, another number on the others (SLURM_NODEID, where there is one); else torchrun
#                   compares addresses, and knows only those that this machine's name has
# RDZV_ID           name of the job, the same on all (distwsss)
# LOCAL_ADDR        name or address of this machine for the others (its fully qualified name)
# MAX_RESTARTS      how often all ranks are started again from the last checkpoint when one dies (3)
# JOIN_TIMEOUT      seconds in which all machines must be there, at the start and after one was lost (600)
# SHUTDOWN_TIMEOUT, OMP_NUM_THREADS  as in torchrun_local.sh
# NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME  the network interface between the machines, where there are several
# DRY_RUN=1 prints the one command instead, with <PLACEHOLDERS> for what is not set.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need NNODES "the number of machines"
need NPROC "the number of processes on this machine, usually one per GPU"
need_endpoint
training "$@"
meeting=join_timeout=${JOIN_TIMEOUT:-600}
case ${NODE_RANK:-${SLURM_NODEID:-}} in
    '') ;;
    0) meeting+=,is_host=true ;;
    *) meeting+=,is_host=false ;;
esac
options=(--nnodes "$NNODES" --nproc-per-node "$NPROC" --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT"
    --rdzv-id "${RDZV_ID:-distwsss}" --rdzv-conf "$meeting")
[ -z "${LOCAL_ADDR:-}" ] || options+=(--local-addr "$LOCAL_ADDR")
MAX_RESTARTS=${MAX_RESTARTS:-3}
torchrun_command "${options[@]}"
check_and_show
exec env "${variables[@]}" "${command[@]}"
