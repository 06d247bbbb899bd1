#!/bin/bash
#SBATCH --job-name=dora-wlp-distill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=a100:8
#SBATCH --exclusive
#SBATCH --time=1:31:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
#SBATCH --array=0-2

# One host that ends must not take the others with it before they have said why.
srun --kill-on-bad-exit=0 dora-jax run --gin_file=gin/wlp_distill.gin '--gin.MODEL_DIR='"'"'/runs/it'"'"''"'"'s'"'"'' --gin.SEED="${SLURM_ARRAY_TASK_ID}" --distributed
status=$?
restarts=${SLURM_RESTART_COUNT:-0}
# 75: saved, or a host was lost; the same command goes on.
if [ "$status" -eq 75 ] && [ "$restarts" -lt 20 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
