# What the shell tests share; sourced first. A folder of their own, removed at the end, and
# assertions that say which line of which test failed.
# shellcheck shell=bash
set -uo pipefail
: "${ROOT:?the checkout; ctest sets it}"
work=$(mktemp -d "${TMPDIR:-/tmp}/ringmaster test.XXXXXX") || exit 1
finish=(rm -rf "$work")
trap '"${finish[@]}"' EXIT

fail() {
    printf '%s:%s: %s\n' "${BASH_SOURCE[1]##*/}" "${BASH_LINENO[0]}" "$*" >&2
    [[ ! -s $work/output ]] || sed 's/^/    /' "$work/output" >&2
    exit 1
}

# run CODE COMMAND...: its output goes to $work/output; another exit code than CODE fails the test.
run() {
    local expected=$1 code=0
    shift
    "$@" >"$work/output" 2>&1 </dev/null || code=$?
    ((code == expected)) && return
    printf '%s:%s: exit code %s, expected %s: %s\n' "${BASH_SOURCE[1]##*/}" "${BASH_LINENO[0]}" \
        "$code" "$expected" "$*" >&2
    sed 's/^/    /' "$work/output" >&2
    exit 1
}

# says TEXT: the last run's output holds it.
says() {
    grep -qF -- "$1" "$work/output" && return
    printf '%s:%s: the output lacks "%s":\n' "${BASH_SOURCE[1]##*/}" "${BASH_LINENO[0]}" "$1" >&2
    sed 's/^/    /' "$work/output" >&2
    exit 1
}
