#!/usr/bin/env bash
# A job on a running Ray cluster: launchers/ray_job.sh [VERB] [ARGS], VERB a verb of distwsss (default seeds).
#   RAY_ADDRESS=http://127.0.0.1:8265 ROOT=/shared/me DATA=/shared/VOC2012 \
#       launchers/ray_job.sh seeds --config configs/voc_mini/lite.yaml
# RAY_ADDRESS  the cluster's Jobs API; where it asks for a token, also RAY_AUTH_MODE=token (docs/cluster.md)
# ROOT         absolute folder on a file system of all nodes: results go to ROOT/runs/NAME, shards to ROOT/shards/NAME
# SHARDS       other place of the shards: an absolute folder or s3://BUCKET/PREFIX
# DATA         absolute folder of the data set, where it is read from one
# MAX_UPLOAD_MB  refuse to upload more than this (20). Uploaded are distwsss/, configs/ and *.yaml: a --config lies there
# DRY_RUN=1 prints the one command instead, with <PLACEHOLDERS> for what is not set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launchers/common.sh
source launchers/common.sh
verb=seeds
[[ ${1:--} == -* ]] || { verb=$1; shift; }

# All but what is measured below; ! takes back, /. is the repository itself
excludes='{"excludes": ["/*", "!/.", "!/distwsss", "!/distwsss/**", "!/configs", "!/configs/**", "!/*.yaml", "__pycache__"]}'
shopt -s nullglob
files=$(find distwsss configs ./*.yaml -type f -not -path '*/__pycache__/*' -printf '%s %p\n' | sort -rn)
bytes=$(awk '{ sum += $1 } END { print sum }' <<<"$files")
[ "$bytes" -le $((${MAX_UPLOAD_MB:-20} * 1000000)) ] ||
    problems+=("the upload has $bytes bytes; allowed: ${MAX_UPLOAD_MB:-20} MB (MAX_UPLOAD_MB); largest: $(head -n 5 <<<"$files" | paste -sd ';')")
for argument in "$@"; do # Ray joins them to a line that a shell on the cluster reads
    [[ $argument != *[\$\`\"\'\\\;\&\|\<\>\(\)\#\*\?~]* ]] ||
        problems+=("found argument $argument, which a shell on the cluster would change; put it in the configuration")
done
[[ " $*" != *" --config"* || " $*" =~ \ --config[\ =](configs/[^ ]*|/[^ ]*|[^/ ]*.yaml|[[:alnum:]_]+/[[:alnum:]_]+)(\ |$) ]] ||
    problems+=("--config: allowed: a file below configs/, or its name as demo/shapes, or *.yaml of the repository, which are uploaded, or an absolute path")
[[ -n ${RAY_ADDRESS:-} || ${DRY_RUN:-} == 1 ]] ||
    problems+=("RAY_ADDRESS: found nothing; allowed: the Jobs API of a cluster, http://HOST:8265")
why=", since the job runs in an uploaded copy in Ray's temporary folder"
driver_command "$verb" "$@"
refuse_problems

command=(ray job submit --address "${RAY_ADDRESS:-<RAY_ADDRESS>}" --working-dir "$PWD" --runtime-env-json "$excludes"
    -- "${command[@]}")
if [ "${DRY_RUN:-}" = 1 ]; then
    show "${command[@]}"
    exit 0
fi
code=0
"${command[@]}" || code=$?
# ray job submit knows 0 and 1 only; and where it was interrupted, the job goes on (ray job stop ID ends it)
echo "distwsss' own exit code, once it has started: $ROOT/runs/$name/exit.json" >&2
exit "$code"
