# What the deploy scripts share; sourced, never run. Sets `root` (the checkout) and `cores`.
# shellcheck shell=bash
unset CDPATH # or cd prints where it went
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

# has_classes FOLDER: train/CLASS/ for two classes or more, and the validation images beside it.
has_classes() {
    [[ -d $1/train && (-d $1/test || -d $1/val) ]] &&
        [[ $(find -L "$1/train" -mindepth 1 -maxdepth 1 -type d | head -n 2 | wc -l) == 2 ]]
}

# find_images FOLDER: the CIFAR-10 or CIFAR-100 in or just below it, official binaries or images.
# Sets `set` (the set's name) and `data` (ringtrain's options for it).
# shellcheck disable=SC2034 # both are the caller's
find_images() {
    local base candidate classes
    base=$(absolute "$1")
    [[ -d $base ]] || die 2 "there is no folder $base"
    for candidate in "$base" "$base/cifar-10-batches-bin" "$base/cifar10"; do
        [[ -f $candidate/data_batch_1.bin ]] || continue
        set=cifar10 data=(--set data.kind=cifar10 --set data.path="$candidate")
        return
    done
    for candidate in "$base" "$base/cifar10" "$base/cifar100"; do
        has_classes "$candidate" || continue
        classes=$(find -L "$candidate/train" -mindepth 1 -maxdepth 1 -type d | wc -l)
        set=cifar10
        ((classes <= 10)) || set=cifar100
        data=(--set data.kind=folder --set data.path="$candidate" --set data.augment=crop
            --set data.normalise="$set")
        return
    done
    for candidate in "$base" "$base/cifar-100-binary" "$base/cifar100"; do
        [[ -f $candidate/train.bin ]] || continue
        set=cifar100 data=(--set data.kind=cifar100 --set data.path="$candidate")
        return
    done
    die 3 "no CIFAR-10 or CIFAR-100 in $base: neither data_batch_1.bin, nor train.bin, nor" \
        "train/CLASS/ with test/CLASS/ (deploy/fetch-data gets the binaries)"
}
