# What a site edits, and nothing else: where jobs go, and what a job needs before it can run.
# shellcheck shell=bash

# Where: `source slurm/env.sh` in the shell that submits; sbatch reads these itself.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my_project
# export SBATCH_QOS=normal

# What: read again inside every job, on every node.
# module load cuda
# export NCCL_SOCKET_IFNAME=ib0
# export EFFICIENTSAM_PYTHON=/path/to/venv/bin/python        # another environment than .venv
# export EFFICIENTSAM_PYTHON="apptainer exec --nv image.sif python"   # or a container
