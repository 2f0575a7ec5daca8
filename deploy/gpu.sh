# What the scripts for GPU machines share; sourced after lib.sh (which sets `root`), never run.
# shellcheck shell=bash disable=SC2154

# bundled: whether this is an unpacked bundle (deploy/gpu-check --bundle) and no checkout.
bundled() {
    [[ -f $root/BUNDLE.json ]]
}

# library_folders: where cuDNN, NCCL and the toolkit's libraries may lie: what pip installed with
# PyTorch or by itself, then the toolkit's own folders. One a line, those that exist.
library_folders() {
    local site folder
    while IFS= read -r site; do
        for folder in "$site"/nvidia/*/lib "$site"/nvidia/*/lib64; do
            [[ ! -d $folder ]] || printf '%s\n' "$folder"
        done
    done < <(python3 -c 'import site, sys
print("\n".join(dict.fromkeys(sys.path + site.getsitepackages() + [site.getusersitepackages()])))' \
        2>/dev/null || true)
    for folder in "${CUDA_HOME:+$CUDA_HOME/lib64}" /usr/local/cuda/lib64 /usr/local/cuda-*/lib64 \
        /usr/local/nvidia/lib64; do
        [[ ! $folder || ! -d $folder ]] || printf '%s\n' "$folder"
    done
}

# find_gpu_libraries: puts them on LD_LIBRARY_PATH, behind what is there already. A bundle's programs
# find its own libraries by themselves, so that nothing else here gets those. PEER_LIBRARY_PATH keeps
# what there was, for programs that bring their own.
find_gpu_libraries() {
    local folders=() folder
    export PEER_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
    [[ ! $PEER_LIBRARY_PATH ]] || folders+=("$PEER_LIBRARY_PATH")
    while IFS= read -r folder; do folders+=("$folder"); done < <(library_folders)
    LD_LIBRARY_PATH=$(IFS=: && printf '%s' "${folders[*]:-}")
    export LD_LIBRARY_PATH
    if bundled && [[ -x $root/mpi/bin/mpirun ]]; then
        export OPAL_PREFIX=$root/mpi PMIX_PREFIX=$root/mpi PRTE_PREFIX=$root/mpi
        export PATH=$root/mpi/bin:$PATH
    fi
}

# missing_libraries PROGRAM: the libraries that it needs and that are not found, in one line.
missing_libraries() {
    ldd "$1" 2>/dev/null | awk '/not found/ { printf "%s%s", separator, $1; separator = ", " }'
}
