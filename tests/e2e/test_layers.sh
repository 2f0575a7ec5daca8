#!/usr/bin/env bash
# Layers (README, Source tour): includes point only downward, and nothing above backend.h and
# comm.h knows which library computes or sends.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT" || exit 1
bad=0

# forbid WHY PATTERN FOLDER...: no C file there includes what PATTERN matches.
forbid() {
    local why=$1 pattern=$2
    shift 2
    if grep -rnE --include='*.[ch]' --include='*.cu' --include='*.cuh' "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($pattern)" "$@"; then
        printf '%s\n' "$why" >&2
        bad=1
    fi
}

backends='dnnl|oneapi|mpi\.h|cuda|cudnn|nccl|cublas|nvml'
forbid 'protocol/ is the lowest layer' 'kernels/|trainer/|coordinator/' protocol
forbid 'kernels/ lies below trainer/' 'trainer/|coordinator/' kernels
forbid 'trainer/ knows nothing of the coordinator' 'coordinator/' trainer
forbid 'backend libraries stay below backend.h and comm.h' "$backends" protocol trainer
forbid 'trainer/ goes through backend.h and comm.h' 'kernels/(cpu|cuda|reference|mpi)/' trainer
forbid 'data/ knows nothing of nets and runs' 'trainer/(net/|task/|[a-z_]+\.h)' trainer/data
forbid 'net/ knows nothing of data and runs' 'trainer/(data/|task/|[a-z_]+\.h)' trainer/net
for file in kernels/*.[ch] kernels/reference; do
    forbid 'kernels/ itself is free of backend libraries' "$backends" "$file"
done
forbid 'only kernels/cpu uses oneDNN' 'dnnl|oneapi' kernels/reference kernels/mpi kernels/cuda
forbid 'only kernels/mpi uses MPI' 'mpi\.h' kernels/cpu kernels/reference kernels/cuda
forbid 'only kernels/cuda uses CUDA' 'cuda|cudnn|nccl|cublas|nvml' kernels/cpu kernels/mpi

# What was found at configure time is seen by the two registries alone.
if grep -rnE --include='*.[ch]' '(ifdef|ifndef|defined).*RINGMASTER_(ONEDNN|MPI|CUDA)' protocol kernels trainer |
    grep -v '^kernels/[a-z_]*_registry\.c:'; then
    printf 'backends are chosen in the registry files only\n' >&2
    bad=1
fi
exit "$bad"
