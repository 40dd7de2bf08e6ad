#!/usr/bin/env bash
# One process: launchers/single_gpu.sh [VERB] [ARGS], VERB any verb of distwsss (default train).
#   GPU=1 launchers/single_gpu.sh train --config configs/demo/shapes.yaml
# GPU  index of the GPU to use (default: the first that CUDA_VISIBLE_DEVICES leaves)
# OMP_NUM_THREADS  threads on the CPU (default: all)
# DRY_RUN=1 prints the one command instead, with <PLACEHOLDERS> for what is not set.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
training "$@"
variables=("${variables[@]:1}") # nobody to share the CPUs with
[ -z "${OMP_NUM_THREADS:-}" ] || variables+=(OMP_NUM_THREADS="$OMP_NUM_THREADS")
[ -z "${GPU:-}" ] || variables+=(CUDA_VISIBLE_DEVICES="$GPU")
command=(python -m "${process[@]}")
check_and_show
exec env "${variables[@]}" "${command[@]}"
