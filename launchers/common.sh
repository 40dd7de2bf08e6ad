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

# need NAME WHAT: where the variable is not set it becomes its placeholder, and a problem unless this is a dry run.
need() {
    [ -z "${!1:-}" ] || return 0
    printf -v "$1" '<%s>' "$1"
    [ "${DRY_RUN:-}" = 1 ] || problems+=("$1: found nothing; allowed: $2")
}

# shellcheck disable=SC2034 # these are for the launchers
# RDZV_ENDPOINT, its HOST and its PORT.
need_endpoint() {
    [ -n "${RDZV_ENDPOINT:-}" ] || RDZV_ENDPOINT='<HOST>:<PORT>'
    HOST=${RDZV_ENDPOINT%:*} PORT=${RDZV_ENDPOINT##*:}
    [[ $RDZV_ENDPOINT == ?*:+([0-9]) || ${DRY_RUN:-} == 1 ]] ||
        problems+=("RDZV_ENDPOINT: found ${RDZV_ENDPOINT/#<*>/nothing}; allowed: HOST:PORT, an address of one machine, the same on all")
}

# shellcheck disable=SC2034 # these are for the launchers
# rooted VERB ARGS: `process`, a run of distwsss whose results are below ROOT; `name`, the run's. From ROOT, SHARDS, DATA.
rooted() {
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
    [[ " $*" == *" --config"* ]] || sets+=(--config '<CONFIG>')
    ROOT=${ROOT:-<ROOT>}
    SHARDS=${SHARDS:-$ROOT/shards/$name}
    [[ $dataset == shapes || $root == /* ]] || DATA=${DATA:-<DATA>}
    must_be_absolute ROOT "$ROOT" "${why:-}"
    must_be_absolute DATA "${DATA:-/}" "${why:-}"
    [[ $SHARDS == *://* || $SHARDS == "$ROOT"/* ]] || must_be_absolute SHARDS "$SHARDS" " or s3://BUCKET/PREFIX${why:-}"
    [ -z "${DATA:-}" ] || sets+=(--set "data.root=$DATA")
    sets+=(--set "paths.run=$ROOT/runs/$name" --set "paths.shards=$SHARDS")
    process=(distwsss "$verb" "$@" "${sets[@]}")
}

# driver_command VERB ARGS: `command`, what Ray's driver is.
driver_command() {
    rooted "$@"
    command=(python -m "${process[@]}")
    [[ ! $1 =~ ^(run|classify|seeds)$ || " $*" == *" --executor"* ]] || command+=(--executor ray)
}

# shellcheck disable=SC2034 # these are for the launchers
# training [VERB] ARGS: `process`, what every rank runs, VERB by default train, and `variables`, its environment.
training() {
    [[ ${1:--} != -* ]] || set -- train "$@"
    process=(distwsss "$@")
    if [[ " $*" != *" --config"* ]]; then
        process+=(--config '<CONFIG>')
        [ "${DRY_RUN:-}" = 1 ] || problems+=("--config: found nothing; allowed: a configuration, see configs/")
    fi
    [ -z "${SHUTDOWN_TIMEOUT:-}" ] || process+=(--set "hardware.shutdown_seconds=$SHUTDOWN_TIMEOUT")
    variables=(OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}") # what torchrun sets too, with a warning
    # where DeepSpeed compiles: on several machines a folder local to each
    [ -z "${TORCH_EXTENSIONS_DIR:-}" ] || variables+=(TORCH_EXTENSIONS_DIR="$TORCH_EXTENSIONS_DIR")
}

# shutdown_is_fixed WHO: whatever it is told, it kills ranks 30 s after it has asked them to stop.
shutdown_is_fixed() {
    [ "${SHUTDOWN_TIMEOUT:-30}" = 30 ] || problems+=("SHUTDOWN_TIMEOUT: found $SHUTDOWN_TIMEOUT; allowed: 30, which $1 waits in any case")
}

# shellcheck disable=SC2034 # these are for the launchers
# What this machine's torchrun can: `newer`, those of the options that came with later versions which it has; `forwards`,
# the signal that it passes to the ranks where they should save and end.
torchrun_abilities() {
    local help
    help=$(torchrun --help 2>/dev/null) || problems+=("torchrun: not found, or does not run; allowed: one of the activated environment")
    newer=() forwards=TERM
    if [[ $help == *--signals-to-handle* ]]; then # else SIGUSR1 kills the agent, but not its ranks
        newer+=(--signals-to-handle "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
        forwards=USR1
    fi
    if [[ $help == *--shutdown-timeout* ]]; then
        newer+=(--shutdown-timeout "${SHUTDOWN_TIMEOUT:-30}")
    else
        shutdown_is_fixed "this torchrun"
    fi
}

# torchrun_command OPTIONS: `command`, an agent that starts `process`.
torchrun_command() {
    torchrun_abilities
    command=(torchrun "$@" --max-restarts "${MAX_RESTARTS:-0}" "${newer[@]}" -m "${process[@]}")
    # Without this a restarted group reads the dead one's addresses and hangs (gloo, c10d rendezvous).
    variables+=(TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1)
}

# Prints the command under DRY_RUN; refuses, where there are problems.
check_and_show() {
    refuse_problems
    [ "${DRY_RUN:-}" = 1 ] || return 0
    show "${variables[@]}" "${command[@]}"
    exit 0
}

# The exit code of the child PID; a trapped signal ends `wait`, not this.
reap() {
    local code=0
    wait "$1" || code=$?
    while kill -0 "$1" 2>/dev/null; do
        code=0
        wait "$1" || code=$?
    done
    return "$code"
}

# Runs the command for launchers that lose ranks when they are signalled: SIGTERM, SIGINT and SIGUSR1 reach all of it as
# one SIGTERM, and this ends when all of it has.
launch_forwarding() {
    local code=0 group tries
    set -m # a process group of its own
    env "${variables[@]}" "${command[@]}" &
    group=$!
    set +m
    # shellcheck disable=SC2064 # the group's number now
    trap "trap : TERM INT USR1; kill -TERM -- -$group 2>/dev/null || :" TERM INT USR1
    reap "$group" || code=$?
    for ((tries = 5 * (${SHUTDOWN_TIMEOUT:-30} + 10); tries > 0; tries--)); do
        kill -0 -- "-$group" 2>/dev/null || break
        sleep 0.2
    done
    exit "$code"
}
