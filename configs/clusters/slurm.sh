#!/bin/sh
# Train an experiment with SLURM: sbatch configs/clusters/slurm.sh --config configs/experiments/celeba178_ipc.yaml
# Two minutes before the time limit, SLURM sends SIGUSR1: the run is saved, the job is requeued, and it continues in its folder.
# Several nodes: sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 configs/clusters/slurm.sh ...
# The numbers of devices and nodes are those of the job.
#SBATCH --job-name=inr
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -eu
set -- "$@" --trainer.devices="$SLURM_NTASKS_PER_NODE" --trainer.num_nodes="$SLURM_JOB_NUM_NODES"
if [ "$SLURM_NTASKS" -gt 1 ]; then
  set -- "$@" --trainer.strategy=ddp
fi
exec srun python cli.py fit "$@"
