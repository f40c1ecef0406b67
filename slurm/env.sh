# Site settings, the only file to edit: where jobs run, and the environment that they need.
# shellcheck shell=bash

# Submission: `source slurm/env.sh` in the shell that submits; sbatch reads these itself.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my_project
# export SBATCH_QOS=normal

# Environment: sourced again in every job, on every node.
# module load cuda
# export NCCL_SOCKET_IFNAME=ib0
# export EFFICIENTSAM_PYTHON=/path/to/venv/bin/python        # another environment than .venv
# export EFFICIENTSAM_PYTHON="apptainer exec --nv image.sif python"   # or a container
