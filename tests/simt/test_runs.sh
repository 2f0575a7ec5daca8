#!/usr/bin/env bash
# Whole runs on the cuda backend, its kernels on the CPU: the default where there is a device, the
# same bits again and across a kill, ranks that share the device, checkpoints that change backends.
source "$(dirname "${BASH_SOURCE[0]}")/../e2e/common.sh"
: "${RINGTRAIN:?the program; ctest sets it}"
cd "$work" || exit 1

cat >job.json <<'END'
{"name": "simt", "model": {"width": 4, "classes": 4}, "rpg": {"size": 300},
 "data": {"size": 8, "train_count": 48, "eval_count": 13},
 "train": {"epochs": 2, "batch": 8, "shard": 4, "lr": 0.01, "checkpoint_every": 2, "eval_every": 1}}
END

# train CODE OUT [option=value...]: one run.
train() {
    local code=$1 out=$2 set=()
    shift 2
    for option in "$@"; do set+=(--set "$option"); done
    run "$code" "$RINGTRAIN" train job.json --set "out=$out" --set resources.threads=1 "${set[@]}"
}
same() { cmp -s "$1/last.safetensors" "$2/last.safetensors" || fail "$1 and $2 differ"; }
differ() { ! cmp -s "$1/last.safetensors" "$2/last.safetensors" || fail "$1 and $2 are the same"; }
# loses OUT STEP: forgets everything after the checkpoint of STEP, as a kill would.
loses() {
    rm -f "$1"/attempt-1/result.json "$1"/*.safetensors
    find "$1/attempt-1" -name 'ckpt-*' ! -name "ckpt-$2.safetensors" -delete
    [[ -s $1/attempt-1/ckpt-$2.safetensors ]] || fail "no checkpoint of step $2: $(ls "$1/attempt-1")"
}

train 0 once
says 'backend cuda'
grep -q '"backend":[[:space:]]*"cuda"' once/attempt-1/run.json || fail 'run.json does not say cuda'
train 0 again
same once again

# Ten steps, killed: the end is the same, bit for bit.
train 0 killed
loses killed 10
train 0 killed
same once killed
[[ -d killed/attempt-2 ]] || fail 'it was not resumed'

# A checkpoint of one backend goes on with the other, where that is wanted. backend.name is a part
# of the job, so both runs ask for auto; "hidden" hides the device.
visible() {
    export CUDA_VISIBLE_DEVICES=
    [[ $1 == hidden ]] || CUDA_VISIBLE_DEVICES=0
}
for pair in shown:hidden hidden:shown; do
    visible "${pair%:*}"
    train 0 "$pair"
    loses "$pair" 10
    visible "${pair#*:}"
    train 2 "$pair"
    says 'another plan'
    train 0 "$pair" backend.on_plan_change=continue
    says 'going on under another plan'
    grep -q '"step":10' <(tr -d '[:space:]' <"$pair/attempt-3/run.json") || fail 'not resumed at step 10'
done
visible shown

# Precisions are trained, and said.
train 0 bf16 train.precision=bf16
differ once bf16
train 0 tf32 train.precision=tf32

# A loss that runs away: step and layer, one line.
train 4 away train.lr=1000 rpg.init_std=1000 train.exact=true train.epochs=40
says 'not finite'
says 'step '
[[ $(grep -c '^ringtrain train: ' output) == 1 ]] || fail 'not one line'

# Two ranks share the device: sums go through MPI, and in exact mode nothing changes.
[[ ${MPI:-OFF} == ON ]] && command -v mpirun >/dev/null || exit 0
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
train 0 exact train.exact=true
run 0 mpirun -np 2 --oversubscribe --bind-to none "$RINGTRAIN" train job.json --set out=ranks \
    --set resources.threads=1 --set train.exact=true
same exact ranks
run 0 mpirun -np 2 --oversubscribe --bind-to none "$RINGTRAIN" train job.json --set out=two \
    --set resources.threads=1
grep -q 'mpi-tree-1' two/attempt-1/run.json || fail 'the plan does not name the all-reduce'
