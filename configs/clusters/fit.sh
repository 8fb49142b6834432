#!/bin/sh
# Start a run, or continue it from its last checkpoint: fit.sh NAME ARGUMENTS, with the arguments of cli.py fit. For jobs that
# are started again with the same command (torchrun --max-restarts, Kubernetes, spot instances). NAME is the name of the run
# folder in RUNS, by default runs.
set -eu
name=$1
shift
runs=${RUNS:-runs}
set -- "$@" --trainer.logger.init_args.save_dir="$runs" --trainer.logger.init_args.name="$name"
for checkpoint in "$runs/$name"/version_*/checkpoints/last.ckpt; do
  if [ -f "$checkpoint" ]; then
    set -- "$@" --ckpt_path=last
    break
  fi
done
exec python cli.py fit "$@"
