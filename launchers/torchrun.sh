#!/usr/bin/env bash
# Ranks on this machine: launchers/torchrun.sh [VERB] [ARGS], VERB one of classify, train (default), evaluate.
#   NPROC=2 launchers/torchrun.sh train --config configs/demo/shapes.yaml
# DRY_RUN=1 prints the one command instead, with <PLACEHOLDERS> for what is not set.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
verb=train
[[ ${1:--} == -* ]] || { verb=$1; shift; }
# Without this a restarted group reads the dead one's addresses and hangs (gloo, c10d rendezvous).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
command=(torchrun --nproc-per-node "${NPROC:-<NPROC>}" --rdzv-backend c10d --rdzv-endpoint localhost:0
    -m distwsss "$verb" "$@")
if [ "${DRY_RUN:-}" = 1 ]; then
    show TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "${command[@]}"
    exit 0
fi
: "${NPROC:?set NPROC to the number of processes, usually one per GPU}"
exec "${command[@]}"
