# shellcheck shell=bash
# What the launchers share; sourced, not run.

# The command as one line that a shell reads back, except that <PLACEHOLDERS> stay bare.
show() {
    local word line=
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_@%+=:,./\<\>-]+$ ]] || word=${word@Q}
        line+=" $word"
    done
    echo "${line# }"
}

problems=()

# Ends with exit code 2, naming every problem; a dry run only says them.
refuse_problems() {
    [ ${#problems[@]} -gt 0 ] || return 0
    printf "$(basename "$0"): %s\n" "${problems[@]}" >&2
    [ "${DRY_RUN:-}" = 1 ] || exit 2
}

# The resolved configuration that --config, --profile and --set among the arguments give.
resolved() {
    local options=()
    while [ $# -gt 0 ]; do
        case $1 in
            --config | --profile | --set) options+=("$1" "${2-}"); shift ;;
            --config=* | --profile=* | --set=*) options+=("$1") ;;
        esac
        shift || break
    done
    python -m distwsss config show "${options[@]}"
}

must_be_absolute() {
    [[ $2 == /* || $2 == '<'* && "${DRY_RUN:-}" == 1 ]] || problems+=("$1: found ${2/#<*>/nothing}; allowed: an absolute path$3")
}

# shellcheck disable=SC2034 # `command` and `name` are for the launchers
# driver_command VERB ARGS: `command`, what Ray's driver is, from ROOT, SHARDS and DATA; `name`, the run's.
driver_command() {
    local verb=$1 shown dataset=folder root=null sets=()
    shift
    name='<NAME>'
    if [[ " $*" != *" --config"* ]]; then
        [ "${DRY_RUN:-}" = 1 ] || problems+=("--config: found nothing; allowed: a configuration, where the run's name is read")
    elif shown=$(resolved "$@" 2>&1); then
        name=$(sed -n 's/^name: //p' <<<"$shown")
        dataset=$(sed -n 's/^  dataset: //p' <<<"$shown")
        root=$(sed -n 's/^  root: //p' <<<"$shown")
    else
        problems+=("no configuration: $shown")
    fi
    ROOT=${ROOT:-<ROOT>}
    SHARDS=${SHARDS:-$ROOT/shards/$name}
    [[ $dataset == shapes || $root == /* ]] || DATA=${DATA:-<DATA>}
    must_be_absolute ROOT "$ROOT" "${why:-}"
    must_be_absolute DATA "${DATA:-/}" "${why:-}"
    [[ $SHARDS == *://* || $SHARDS == "$ROOT"/* ]] || must_be_absolute SHARDS "$SHARDS" " or s3://BUCKET/PREFIX${why:-}"
    [ -z "${DATA:-}" ] || sets+=(--set "data.root=$DATA")
    sets+=(--set "paths.run=$ROOT/runs/$name" --set "paths.shards=$SHARDS")
    [[ ! $verb =~ ^(run|classify|seeds)$ || " $*" == *" --executor"* ]] || sets+=(--executor ray)
    command=(python -m distwsss "$verb" "$@" "${sets[@]}")
}
