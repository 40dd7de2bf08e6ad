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

# Ends with exit code 2, naming every problem; a dry run only says them.
refuse_if_any() {
    [ $# -gt 0 ] || return 0
    printf "$(basename "$0"): %s\n" "$@" >&2
    [ "${DRY_RUN:-}" = 1 ] || exit 2
}

# The resolved configuration that --config, --profile and --set among the arguments give.
resolve() {
    local options=()
    while [ $# -gt 0 ]; do
        case $1 in
            --config | --profile | --set) options+=("$1" "${2-}"); shift ;;
            --config=* | --profile=* | --set=*) options+=("$1") ;;
        esac
        shift || break
    done
    python -m distwsss config show ${options[@]+"${options[@]}"}
}
