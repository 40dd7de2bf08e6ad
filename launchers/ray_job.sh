#!/usr/bin/env bash
# A job on a running Ray cluster: launchers/ray_job.sh [VERB] [ARGS], VERB a verb of distwsss (default seeds).
#   RAY_ADDRESS=http://127.0.0.1:8265 ROOT=/shared/me DATA=/shared/VOC2012 \
#       launchers/ray_job.sh seeds --config configs/voc_mini/lite.yaml
# RAY_ADDRESS  the cluster's Jobs API; where it asks for a token, also RAY_AUTH_MODE=token (docs/cluster.md)
# ROOT         absolute folder on a file system of all nodes: results go to ROOT/runs/NAME, shards to ROOT/shards/NAME
# SHARDS       other place of the shards: an absolute folder or s3://BUCKET/PREFIX
# DATA         absolute folder of the data set, where it is read from one
# MAX_UPLOAD_MB  refuse to upload more than this (20). Uploaded are distwsss/, configs/ and *.yaml, so a --config lies there
# DRY_RUN=1 prints the one command instead, with <PLACEHOLDERS> for what is not set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launchers/common.sh
source launchers/common.sh
verb=seeds
[[ ${1:--} == -* ]] || { verb=$1; shift; }

problems=()
shopt -s nullglob
files=$(find distwsss configs ./*.yaml -type f -not -path '*/__pycache__/*' -printf '%s %p\n' | sort -rn)
bytes=$(awk '{ sum += $1 } END { print sum }' <<<"$files")
if [ "$bytes" -gt $((${MAX_UPLOAD_MB:-20} * 1000000)) ]; then
    problems+=("the upload has $bytes bytes, allowed: ${MAX_UPLOAD_MB:-20} MB (MAX_UPLOAD_MB); largest: $(head -n 5 <<<"$files" | paste -sd ';')")
fi
for argument in "$@"; do # Ray joins them to a line that a shell on the cluster reads
    [[ $argument != *[\$\`\"\'\\\;\&\|\<\>\(\)\#\*\?~]* ]] ||
        problems+=("found argument $argument, which a shell on the cluster would change; put it in the configuration")
done

name='<NAME>' dataset=folder root=null
if [[ " $*" != *" --config"* ]]; then
    [ "${DRY_RUN:-}" = 1 ] || problems+=("--config: found nothing; allowed: a configuration, from which the run's name is read")
elif resolved=$(resolve "$@" 2>&1); then
    name=$(sed -n 's/^name: //p' <<<"$resolved")
    dataset=$(sed -n 's/^  dataset: //p' <<<"$resolved")
    root=$(sed -n 's/^  root: //p' <<<"$resolved")
else
    problems+=("no configuration: $resolved")
fi
[[ " $*" =~ \ --config[\ =](configs/[^ ]*|/[^ ]*|[^/ ]*.yaml)(\ |$) || $name == '<NAME>' ]] ||
    problems+=("--config: allowed: a file below configs/ or *.yaml of the repository, which are uploaded, or an absolute path")

# Relative, it would be looked for in the uploaded copy, in Ray's temporary folder.
must_be_absolute() {
    [[ $2 == /* || $2 == '<'* && "${DRY_RUN:-}" == 1 ]] ||
        problems+=("$1: found ${2/#<*>/nothing}; allowed: an absolute path$3, since the job runs in an uploaded copy in Ray's temporary folder")
}
[[ $dataset == shapes || $root == /* ]] || DATA=${DATA:-<DATA>}
ROOT=${ROOT:-<ROOT>}
SHARDS=${SHARDS:-$ROOT/shards/$name}
must_be_absolute ROOT "$ROOT" ""
must_be_absolute DATA "${DATA:-/}" ""
[[ $SHARDS == *://* || $SHARDS == "$ROOT"/* ]] || must_be_absolute SHARDS "$SHARDS" " or s3://BUCKET/PREFIX"
[[ -n ${RAY_ADDRESS:-} || ${DRY_RUN:-} == 1 ]] ||
    problems+=("RAY_ADDRESS: found nothing; allowed: the Jobs API of a cluster, http://HOST:8265")

# All but what is measured above; ! takes back, /. is the repository itself
excludes='{"excludes": ["/*", "!/.", "!/distwsss", "!/distwsss/**", "!/configs", "!/configs/**", "!/*.yaml", "__pycache__"]}'
command=(ray job submit --address "${RAY_ADDRESS:-<RAY_ADDRESS>}" --working-dir "$PWD"
    --runtime-env-json "$excludes" -- python -m distwsss "$verb" "$@" ${DATA:+--set "data.root=$DATA"}
    --set "paths.run=$ROOT/runs/$name" --set "paths.shards=$SHARDS")
[[ ! $verb =~ ^(run|classify|seeds)$ || " $*" == *" --executor"* ]] || command+=(--executor ray)
refuse_if_any ${problems[@]+"${problems[@]}"}
if [ "${DRY_RUN:-}" = 1 ]; then
    show "${command[@]}"
    exit 0
fi
code=0
"${command[@]}" || code=$?
# ray job submit knows 0 and 1 only; and where it was interrupted, the job goes on (ray job stop ID ends it)
echo "distwsss' own exit code: $ROOT/runs/$name/exit.json" >&2
exit "$code"
