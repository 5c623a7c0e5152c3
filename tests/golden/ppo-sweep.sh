#!/bin/bash

# Parameters
#SBATCH --account=art
#SBATCH --array=0-3%2
#SBATCH --chdir=/site/promptist
#SBATCH --cpus-per-task=4
#SBATCH --error=/shared/tiny/runs/tiny-ppo.sweep-e3da7bbf/submission/%A_%a_0_log.err
#SBATCH --exclusive
#SBATCH --gpus-per-node=2
#SBATCH --job-name=tiny-ppo.sweep
#SBATCH --mail-type=FAIL
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/shared/tiny/runs/tiny-ppo.sweep-e3da7bbf/submission/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1-00:00:00

# setup
module load mpich
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
folder=/shared/tiny/runs/tiny-ppo.sweep-e3da7bbf/submission
config=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$folder/submit.configs")
# Submitted by hand (sbatch this file), the job has another number than that for which submitit pickled.
key=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
[ -e "$folder/${key}_submitted.pkl" ] || cp "$folder/submit_$SLURM_ARRAY_TASK_ID.pkl" "$folder/${key}_submitted.pkl"
PROMPTIST_ENDING=$(/site/python -m promptist.cluster.prepare ppo "$config") || {
    code=$?
    [ -z "$PROMPTIST_ENDING" ] || /site/python -m promptist.cluster.finish "$PROMPTIST_ENDING" $code
    exit $code
}
export PROMPTIST_ENDING

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/tiny/runs/tiny-ppo.sweep-e3da7bbf/submission/%A_%a_%t_log.out --error /shared/tiny/runs/tiny-ppo.sweep-e3da7bbf/submission/%A_%a_%t_log.err --mpi=pmi2 --distribution=block --kill-on-bad-exit=1 --cpus-per-task=4 /site/python -u -m submitit.core._submit /shared/tiny/runs/tiny-ppo.sweep-e3da7bbf/submission


# teardown
/site/python -m promptist.cluster.finish "$PROMPTIST_ENDING" $?
