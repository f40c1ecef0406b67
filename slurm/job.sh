# What all templates share: where a job's run lives, how ranks meet, who is started again.
# shellcheck shell=bash
#
# A job that failed is requeued if it has saved something since this start, or else until three
# starts in a row have saved nothing. Done (0), a mistake of yours (2), stopped on request with
# the job requeued already (75) and stopped by Ctrl-C (130) are left as they are.

readonly FRUITLESS_STARTS=3

job_id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}
job_id=${job_id:-$SLURM_JOB_ID}
root=$(cd "${slurm_folder:?is set by the template}/.." && pwd)
# shellcheck source=slurm/env.sh
source "$slurm_folder/env.sh"
read -r -a python <<<"${EFFICIENTSAM_PYTHON:-$root/.venv/bin/python}"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export EFFICIENTSAM_JOB_STATE=${EFFICIENTSAM_JOBS:-$PWD/runs/.jobs}/$job_id
if [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
    rm -rf "$EFFICIENTSAM_JOB_STATE" # of a job of the same number, before SLURM was set up anew
fi
mkdir -p "$EFFICIENTSAM_JOB_STATE"

# How the ranks meet: the first node's address as SLURM has it, and a port that is this job's own;
# this script runs on the first node, so it sees whether someone else listens there.
meet() {
    local first
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_ADDR=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 40000))
    while (: <"/dev/tcp/$MASTER_ADDR/$MASTER_PORT") 2>/dev/null; do
        MASTER_PORT=$((MASTER_PORT + 1))
    done
    export MASTER_ADDR MASTER_PORT
}

# run_dir ARGUMENT...: the run's folder: what they say, else one of this job's own.
run_dir() {
    local argument found=runs/$SLURM_JOB_NAME-$job_id
    for argument in "$@"; do
        case $argument in run.dir=*) found=${argument#run.dir=} ;; esac
    done
    echo "$found"
}

# launch COMMAND ARGUMENT...: runs it on all ranks and ends this script with its true exit code.
launch() {
    local before after code fruitless
    before=$(state progress)
    rm -f "$EFFICIENTSAM_JOB_STATE/exit"
    code=0
    srun --kill-on-bad-exit=1 "${python[@]}" -u -m efficientsam_pl "$@" || code=$?
    # srun's code is that of whichever rank was ended last; the program has noted its own
    if [ "$code" -ne 0 ]; then
        code=$(state exit)
        code=${code:-1}
    fi
    case $code in 0 | 2 | 75 | 130) exit "$code" ;; esac
    after=$(state progress)
    fruitless=0
    if [ "$after" = "$before" ]; then
        fruitless=$(($(state fruitless) + 1))
    fi
    echo "$fruitless" >"$EFFICIENTSAM_JOB_STATE/fruitless"
    if [ "$fruitless" -ge "$FRUITLESS_STARTS" ]; then
        echo "efficientsam: job $job_id has failed $fruitless times in a row and saved nothing" >&2
        exit "$code"
    fi
    echo "efficientsam: job $job_id has failed (code $code) and is requeued" >&2
    scontrol requeue "$job_id" || exit "$code"
    sleep 60 # SLURM ends this script
    exit "$code"
}

state() {
    cat "$EFFICIENTSAM_JOB_STATE/$1" 2>/dev/null || true
}
