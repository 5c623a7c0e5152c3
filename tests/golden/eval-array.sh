#!/bin/bash

# Parameters
#SBATCH --account=art
#SBATCH --array=0-2%2
#SBATCH --chdir=/site/promptist
#SBATCH --cpus-per-task=1
#SBATCH --error=/shared/tiny/runs/tiny-eval/submission/%A_%a_0_log.err
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --job-name=tiny-eval
#SBATCH --mail-type=FAIL
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/tiny/runs/tiny-eval/submission/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=0-02:00:00

# setup
module load mpich
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
folder=/shared/tiny/runs/tiny-eval/submission
config=/shared/tiny/runs/tiny-eval/submission/eval.yaml
# Submitted by hand (sbatch this file), the job has another number than that for which submitit pickled.
key=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
[ -e "$folder/${key}_submitted.pkl" ] || cp "$folder/submit_$SLURM_ARRAY_TASK_ID.pkl" "$folder/${key}_submitted.pkl"
PROMPTIST_ENDING=$(/site/python -m promptist.cluster.prepare evaluate "$config") || {
    code=$?
    [ -z "$PROMPTIST_ENDING" ] || /site/python -m promptist.cluster.finish "$PROMPTIST_ENDING" $code
    exit $code
}
export PROMPTIST_ENDING

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/tiny/runs/tiny-eval/submission/%A_%a_%t_log.out --error /shared/tiny/runs/tiny-eval/submission/%A_%a_%t_log.err --mpi=pmi2 --distribution=block --kill-on-bad-exit=1 --cpus-per-task=1 /site/python -u -m submitit.core._submit /shared/tiny/runs/tiny-eval/submission


# teardown
/site/python -m promptist.cluster.finish "$PROMPTIST_ENDING" $?
