#!/usr/bin/env bash
# deploy/mpitrain with the real mpirun: a signal to the wrapper alone stops both ranks with a
# checkpoint and leaves nothing behind, the same command goes on from there; any kind of stdin.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${RINGTRAIN:?the program; ctest sets it}"
command -v mpirun >/dev/null || { echo 'skipped: there is no mpirun' && exit 77; }

mpitrain=$ROOT/deploy/mpitrain
job=$work/job.json
out=$work/run
export RINGTRAIN TMPDIR=$work/tmp OMP_WAIT_POLICY=passive
mkdir "$TMPDIR"
cat >"$job" <<JOB
{
  "name": "small",
  "model": {"width": 4, "classes": 4},
  "rpg": {"size": 500},
  "data": {"kind": "synthetic", "size": 8, "train_count": 64, "eval_count": 24},
  "resources": {"threads": 1},
  "train": {"epochs": 100000, "batch": 16, "lr": 0.05, "log_every": 1},
  "out": "$out"
}
JOB
printf '%s\n' "$job" >"$work/pattern" # so that grep's own command line does not match

# The processes of this test's runs: command lines that name the job.
processes() {
    grep -lsFf "$work/pattern" /proc/[0-9]*/cmdline
}

# A failed test must not leave ranks behind that train for hours.
clean_up() {
    local file pid
    for file in $(processes); do
        pid=${file#/proc/} && kill -KILL "${pid%/*}" 2>/dev/null
    done
    rm -rf "$work"
}
finish=(clean_up)

# start ATTEMPT INPUT: the job on two ranks, until that attempt has logged a step. Sets `pid`, and
# `shared`, the folder that mpirun was given for its shared memory.
start() {
    # A background job of a shell without job control would ignore INT: env gives it back.
    env --default-signal=INT "$mpitrain" -np 2 train "$job" >"$work/output" 2>&1 <"$2" &
    pid=$!
    local log=$out/attempt-$1/metrics.jsonl
    for _ in {1..1200}; do
        grep -qs '"kind": *"step"' "$log" && break
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    if grep -qF 'this build has no MPI' "$work/output"; then
        echo 'skipped: ringtrain is built without MPI' && exit 77
    fi
    grep -qs '"kind": *"step"' "$log" || fail "attempt $1 logged no step"
    shared=$(for file in $(processes); do
        tr '\0' '\n' <"$file" | grep '^/dev/shm/ringmaster\.'
    done 2>/dev/null | head -n 1)
}

# stop ATTEMPT SIGNAL: to the wrapper alone. What every orderly stop leaves, and what it must not.
# Sets `steps`, those that were trained.
stop() {
    local code=0 result=$out/attempt-$1/result.json
    kill "-$2" "$pid"
    wait "$pid" || code=$?
    ((code == 143)) || fail "exit code $code after $2"
    [[ -s $result ]] || fail "no result.json after $2"
    grep -q '"outcome":[[:space:]]*"stopped"' "$result" || fail "not 'stopped': $(cat "$result")"
    steps=$(sed -n 's/.*"steps":[[:space:]]*\([0-9]*\).*/\1/p' "$result")
    ((steps > 0)) || fail "no steps in $(cat "$result")"
    [[ -s $out/attempt-$1/ckpt-$steps.safetensors ]] || fail "no checkpoint of step $steps"
    [[ -z $(ls -A "$TMPDIR") ]] || fail "left in TMPDIR: $(ls -A "$TMPDIR")"
    [[ ! $shared || ! -e $shared ]] || fail "$shared was left"
    # mpirun does not wait for a rank that it has told to end
    for _ in {1..100}; do [[ -z $(processes) ]] || sleep 0.1; done
    [[ -z $(processes) ]] || fail "still running after $2: $(processes)"
}

start 1 /dev/null
stop 1 TERM
says 'stopping'
first=$steps
start 2 /dev/null
tr -d '[:space:]' <"$out/attempt-2/run.json" >"$work/output"
says "\"resumed_from\":{\"attempt\":1,\"step\":$first,"
stop 2 INT
((steps > first)) || fail "$steps steps after the second attempt, $first after the first"

# Whatever stdin is, a run comes to its end; a pipe reaches ringtrain.
short=(--set train.epochs=1)
run 0 "$mpitrain" -np 2 train "$job" "${short[@]}" --set "out=$work/null"
run 0 bash -c '"$@" <&-' - "$mpitrain" -np 2 train "$job" "${short[@]}" --set "out=$work/closed"
# shellcheck disable=SC2016 # expanded by the inner shell
run 0 bash -c 'cat "$1" | "${@:2}"' - "$job" "$mpitrain" -np 1 train - "${short[@]}" \
    --set "out=$work/pipe"
for input in null closed pipe; do
    [[ -s $work/$input/last.safetensors ]] || fail "no checkpoint with stdin $input"
done
[[ -z $(ls -A "$TMPDIR") ]] || fail "left in TMPDIR: $(ls -A "$TMPDIR")"
