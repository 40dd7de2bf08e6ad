#!/usr/bin/env bash
# Ranks on this machine: launchers/torchrun_local.sh [VERB] [ARGS], VERB one of classify, train (default), evaluate.
#   NPROC=2 launchers/torchrun_local.sh train --config configs/demo/shapes.yaml
# NPROC             processes, usually one per GPU
# MAX_RESTARTS      how often all ranks are started again from the last checkpoint when one dies (0)
# SHUTDOWN_TIMEOUT  seconds to save in after SIGTERM, SIGUSR1 or Ctrl-C (30), set as hardware.shutdown_seconds too
# OMP_NUM_THREADS   threads of a rank on the CPU (1)
# DRY_RUN=1 prints the one command instead, with <PLACEHOLDERS> for what is not set.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need NPROC "the number of processes, usually one per GPU"
training "$@"
torchrun_command --nproc-per-node "$NPROC" --rdzv-backend c10d --rdzv-endpoint localhost:0
check_and_show
exec env "${variables[@]}" "${command[@]}"
