#!/bin/bash
#SBATCH --job-name=dora-wlp-distill
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#SBATCH --partition=gpu

# One host that ends must not take the others with it before they have said why.
srun --kill-on-bad-exit=0 dora-jax run --gin_file=gin/wlp_distill.gin '--gin.MODEL_DIR='"'"'/runs/it'"'"''"'"'s'"'"'' --distributed
status=$?
restarts=${SLURM_RESTART_COUNT:-0}
# 75: saved, or a host was lost; the same command goes on.
if [ "$status" -eq 75 ] && [ "$restarts" -lt 20 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
