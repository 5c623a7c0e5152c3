# What is particular to this site, and how a job runs inside its allocation. Sourced by the scripts in this folder, which
# are submitted from the repository's top folder.

# --- edit ---------------------------------------------------------------------------------------------------------
# module load mpich                                   # the MPI that mpi4py is to find, unless the extra `local` brings one
PROMPTIST_PYTHON=${PROMPTIST_PYTHON:-.venv/bin/python}
PROMPTIST_MPI=${PROMPTIST_MPI:-pmi2}                  # `srun --mpi=list`; pmi2 for MPICH, pmix for Open MPI
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}            # compute nodes fetch nothing: `promptist prefetch CONFIG` beforehand
# export HF_HOME=/shared/huggingface                  # the cache that prefetch filled
# export NCCL_SOCKET_IFNAME=ib0
# ------------------------------------------------------------------------------------------------------------------

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1

# promptist_job sft|ppo|evaluate CONFIG [key=value ...]; `srun` options of the caller in the array `step`.
# Looks at the newest checkpoint first; afterwards decides whether the job goes back to the queue.
promptist_job() {
    local job=$1 code=0
    shift
    PROMPTIST_ENDING=$("$PROMPTIST_PYTHON" -m promptist.cluster.prepare "$job" "$@") || code=$?
    [ -n "$PROMPTIST_ENDING" ] || exit "$code"  # the config cannot be read: there is no run to record it in
    export PROMPTIST_ENDING
    # srun does not inherit --cpus-per-task from sbatch since SLURM 22.05. Ranks are counted node by node (block).
    [ "$code" -ne 0 ] || srun --mpi="$PROMPTIST_MPI" --distribution=block --kill-on-bad-exit=1 \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${step[@]}" \
        "$PROMPTIST_PYTHON" -m mpi4py -m "jobs.$job" "$@" || code=$?
    "$PROMPTIST_PYTHON" -m promptist.cluster.finish "$PROMPTIST_ENDING" "$code"
    exit $?
}
