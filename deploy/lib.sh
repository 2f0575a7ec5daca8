# What the deploy scripts share; sourced, never run. Sets `root` (the checkout) and `cores`.
# shellcheck shell=bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P) || exit 5
cores=$(nproc 2>/dev/null || echo 1)

# say TEXT: one line of the script's own, apart from what the tools print.
say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# die CODE TEXT: the codes are ringtrain's (2 bad input, 3 data, 5 environment).
die() {
    local code=$1
    shift
    say "$*"
    exit "$code"
}

# usage: prints the comment at the top of the calling script, from its second line on.
usage() {
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
}

# absolute PATH: PATH as seen from the caller's folder, without needing it to exist.
absolute() {
    case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s/%s\n' "$PWD" "$1" ;;
    esac
}

# build FOLDER [CMAKE OPTION...]: configures and builds; quiet unless something is wrong.
build() {
    local folder=$1
    shift
    mkdir -p "$folder" || die 5 "cannot create $folder"
    if ! cmake -S "$root" -B "$folder" -G Ninja "$@" >"$folder/configure.log" 2>&1; then
        cat "$folder/configure.log" >&2
        die 5 "cmake could not configure $folder"
    fi
    tail -n 4 "$folder/configure.log" | grep 'Ringmaster' >&2 || true
    cmake --build "$folder" --parallel "$cores" >"$folder/build.log" 2>&1 && return
    cat "$folder/build.log" >&2
    die 5 "the build in $folder failed"
}
