#!/bin/sh
# Run a sweep with several tasks of a SLURM array: sbatch --array=1-4 configs/clusters/slurm_sweep.sh configs/sweeps/images.yaml
# The tasks share the output folder: each takes the next run that is neither complete nor in progress. Two minutes before the
# time limit, the run is saved and the task is requeued; it then continues the run.
#SBATCH --job-name=sweep
#SBATCH --ntasks=1
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -eu
exec srun python -m studies.sweep "$@"
