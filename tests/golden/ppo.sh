#!/bin/bash

# Parameters
#SBATCH --account=art
#SBATCH --chdir=/site/promptist
#SBATCH --cpus-per-task=4
#SBATCH --error=/shared/tiny/runs/tiny-ppo/submission/%j_0_log.err
#SBATCH --exclusive
#SBATCH --gpus-per-node=2
#SBATCH --job-name=tiny-ppo
#SBATCH --mail-type=FAIL
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/shared/tiny/runs/tiny-ppo/submission/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1-00:00:00

# setup
module load mpich
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
folder=/shared/tiny/runs/tiny-ppo/submission
config=/shared/tiny/runs/tiny-ppo/submission/ppo.yaml
# Submitted by hand (sbatch this file), the job has another number than that for which submitit pickled.
key=$SLURM_JOB_ID
[ -e "$folder/${key}_submitted.pkl" ] || cp "$folder/submit.pkl" "$folder/${key}_submitted.pkl"
PROMPTIST_ENDING=$(/site/python -m promptist.cluster.prepare ppo "$config") || {
    code=$?
    [ -z "$PROMPTIST_ENDING" ] || /site/python -m promptist.cluster.finish "$PROMPTIST_ENDING" $code
    exit $code
}
export PROMPTIST_ENDING

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/tiny/runs/tiny-ppo/submission/%j_%t_log.out --error /shared/tiny/runs/tiny-ppo/submission/%j_%t_log.err --mpi=pmi2 --distribution=block --kill-on-bad-exit=1 --cpus-per-task=4 /site/python -u -m submitit.core._submit /shared/tiny/runs/tiny-ppo/submission


# teardown
/site/python -m promptist.cluster.finish "$PROMPTIST_ENDING" $?
