# Shared parts of all templates: a job's run folder, rendezvous of ranks, requeueing.
# shellcheck shell=bash
#
# A failed job is requeued if it has saved something since this start, or else until three starts in
# a row have saved nothing. Jobs that are done (0), ended by a user error (2), stopped on request and
# already requeued (75) or stopped by Ctrl-C (130) are not. A job whose store stayed away has saved,
# ends with 75 too, and requests in the file `requeue` what a failed one gets.

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
    rm -rf "$EFFICIENTSAM_JOB_STATE" # left by a job with the same id, before SLURM was reinstalled
fi
mkdir -p "$EFFICIENTSAM_JOB_STATE"

# Rendezvous of the ranks: the first node's address as SLURM has it, and a port derived from the job;
# this script runs on the first node, so it can check whether the port is free.
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

# run_dir ARGUMENT...: the run's folder, from the arguments or named after this job.
run_dir() {
    local argument folder=runs/$SLURM_JOB_NAME-$job_id
    for argument in "$@"; do
        case $argument in run.dir=*) folder=${argument#run.dir=} ;; esac
    done
    echo "$folder"
}

# launch COMMAND ARGUMENT...: runs the command on all ranks, and exits with its code.
launch() {
    local before after code fruitless
    before=$(state progress)
    rm -f "$EFFICIENTSAM_JOB_STATE/exit" "$EFFICIENTSAM_JOB_STATE/requeue"
    code=0
    srun --kill-on-bad-exit=1 "${python[@]}" -u -m efficientsam_pl "$@" || code=$?
    # srun returns the code of whichever rank was killed last; the program has written its code
    if [ "$code" -ne 0 ]; then
        code=$(state exit)
        code=${code:-1}
    fi
    if [ "$code" != 75 ] || [ -z "$(state requeue)" ]; then
        case $code in 0 | 2 | 75 | 130) exit "$code" ;; esac
    fi
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
