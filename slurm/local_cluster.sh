#!/usr/bin/env bash
# A SLURM cluster of two nodes on this one machine, to try jobs and for tests/slurm.
#
#   slurm/local_cluster.sh up            starts it; eval "$(slurm/local_cluster.sh up)" also enters it
#   slurm/local_cluster.sh status        is it up? what do its nodes and jobs do?
#   slurm/local_cluster.sh node n2       starts one node's daemon again, after it was killed
#   slurm/local_cluster.sh down          ends jobs and daemons and removes the folder
#
# Needs root on Debian or Ubuntu, a container will do; slurm-wlm and munge are installed if missing.
# All files are in one folder, given by the second argument or EFFICIENTSAM_CLUSTER (for node, by the
# third): clusters in different folders are independent. Nodes have no GPUs.
set -euo pipefail

main() {
    local action=${1:-} node=""
    if [ "$action" = node ]; then
        node=${2:-}
        shift
    fi
    dir=${2:-${EFFICIENTSAM_CLUSTER:-/tmp/efficientsam-cluster}}
    export SLURM_CONF=$dir/slurm.conf
    case $action:$node in
        up:) up ;;
        down:) down ;;
        status:) status ;;
        node:n[12]) node "$node" ;;
        *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
}

up() {
    if ! alive "$dir/ctld.pid"; then
        [ "$(id -u)" = 0 ] || fail "needs root"
        install_slurm
        down
        mkdir -p "$dir/state" "$dir/spool-n1" "$dir/spool-n2" "$dir/log" "$dir/munge"
        chmod 755 "$dir" "$dir/munge"  # munged insists on who may write above its socket
        configure >"$SLURM_CONF"
        # Newer releases require control groups, which a container lacks; older ones lack this key
        if [ "$(release)" -ge 2311 ]; then
            echo "CgroupPlugin=disabled" >"$dir/cgroup.conf"
        fi
        daemons
        within 60 nodes_idle || fail "the nodes do not come up: see $dir/log"
    fi
    echo "export SLURM_CONF=$SLURM_CONF"
}

daemons() {
    dd if=/dev/urandom of="$dir/munge/key" bs=128 count=1 status=none
    chmod 400 "$dir/munge/key"
    # --force: as root, and with the folder under /tmp
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
        --pid-file="$dir/munge.pid" --log-file="$dir/log/munge.log" \
        --seed-file="$dir/munge/seed" 2>>"$dir/log/munge.err" || fail "munge: see $dir/log/munge.log"
    slurmctld -c || fail "slurmctld: see $dir/log/ctld.log"
    start_node n1
    start_node n2
}

start_node() {
    slurmd -N "$@" || fail "slurmd: see $dir/log/d-$1.log"
}

# As a machine that was switched on again (-b): SLURM gives up what ran on it, and an operator
# has it used again.
node() {
    local now
    alive "$dir/ctld.pid" || fail "no cluster in $dir"
    if ! alive "$dir/d-$1.pid"; then
        sleep 1  # SLURM counts seconds: it must not have heard of this machine in the one it began
        now=$(date +%FT%T)
        start_node "$1" -b
        within 60 started "$1" "$now" || fail "node $1 does not answer: see $dir/log/d-$1.log"
    fi
    within 60 node_up "$1" || fail "node $1 does not come back: see $dir/log/d-$1.log"
}

down() {
    [ -e "$SLURM_CONF" ] || { rm -rf "$dir"; return; }
    if alive "$dir/ctld.pid"; then
        timeout 20 scancel --user="$(id -un)" --full 2>/dev/null || true
        within 10 no_jobs || true
    fi
    local name pids=() lost
    for name in ctld d-n1 d-n2 munge; do
        if alive "$dir/$name.pid"; then
            pids+=("$(cat "$dir/$name.pid")")
        fi
    done
    mapfile -t lost < <(leftovers)
    kill -KILL "${lost[@]}" 2>/dev/null || true
    kill -TERM "${pids[@]}" 2>/dev/null || true
    within 10 gone "${pids[@]}" || kill -KILL "${pids[@]}" 2>/dev/null || true
    rm -rf "$dir"
}

status() {
    alive "$dir/ctld.pid" || fail "no cluster in $dir"
    sinfo -N -o "%N %t"
    squeue -o "%A %j %T %r %N"
    echo "export SLURM_CONF=$SLURM_CONF"
}

# This cluster's step daemons and the processes of its jobs, also of a node that was killed: its
# configuration stands in their environment, beside a job's number or in a daemon of SLURM's.
leftovers() {
    local proc
    for proc in /proc/[0-9]*; do
        if in_environment "$proc" -xF "SLURM_CONF=$SLURM_CONF"; then
            if [[ $(readlink "$proc/exe") == */slurmstepd* ]] ||
                in_environment "$proc" '^SLURM_JOB_ID='; then
                echo "${proc#/proc/}"
            fi
        fi
    done
}

in_environment() {
    tr '\0' '\n' 2>/dev/null <"$1/environ" | grep -q "${@:2}"
} 2>/dev/null

# alive PIDFILE: does this cluster's daemon run? Its file outlives it, its number may be another's
# by now, and one that was killed keeps its number until it is reaped.
alive() {
    [ -s "$1" ] || return 1
    local pid
    pid=$(cat "$1")
    running "$pid" && in_environment "/proc/$pid" -xF "SLURM_CONF=$SLURM_CONF"
}

running() {
    [ -e "/proc/$1/exe" ]  # a process that waits to be reaped has none
}

gone() {
    local pid
    for pid in "$@"; do
        if running "$pid"; then return 1; fi
    done
}

nodes_idle() {
    [ "$(sinfo -h -N -o %t 2>/dev/null | grep -c '^idle$')" = 2 ]
}

node_up() {
    case $(sinfo -h -n "$1" -o %t 2>/dev/null) in
        idle | mix | alloc | comp) ;;
        down) scontrol update "nodename=$1" state=resume && false ;;
        *) false ;;
    esac
}

# Has SLURM heard of a daemon that began then or later?
started() {
    [[ ! $(scontrol show node "$1" | sed -n 's/.*SlurmdStartTime=//p') < $2 ]]
}

no_jobs() {
    [ -z "$(squeue -h 2>/dev/null)" ]
}

within() {
    local until=$((SECONDS + $1))
    while ! "${@:2}"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.2
    done
}

fail() {
    echo "local_cluster: $*" >&2
    exit 1
}

install_slurm() {
    if ! { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq >&2
        apt-get install -y -qq slurm-wlm munge >&2
    fi
}

# 22.05.8 is 2205
release() {
    slurmd -V | sed 's/^slurm[^0-9]*\([0-9]*\)\.\([0-9]*\).*/\1\2/'
}

# The first ten ports from 17000 on where nobody listens
free_ports() {
    local base
    for base in $(seq 17000 10 17900); do
        if ! grep -qiE ":($(printf '%04X|%04X|%04X' "$base" $((base + 1)) $((base + 2)))) 0+:0+ 0A" \
            <(awk '{print $2, $3, $4}' /proc/net/tcp); then
            echo "$base"
            return
        fi
    done
    fail "no free ports from 17000 to 17900"
}

configure() {
    local base
    base=$(free_ports)
    cat <<END
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$base
AuthType=auth/munge
# A job that is requeued starts when its old credential has expired, else after two minutes
AuthInfo=socket=$dir/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/ctld.pid
SlurmdPidFile=$dir/d-%n.pid
SlurmctldLogFile=$dir/log/ctld.log
SlurmdLogFile=$dir/log/d-%n.log
MailProg=/bin/true
# Works without control groups, so also in a container
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
JobRequeue=1
ReturnToService=1
# A lost node is noticed soon, a task that does not end is killed soon
SlurmdTimeout=20
KillWait=5
# There is no accounting: a finished job is remembered for an hour
MinJobAge=3600
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# More processors than there may be, so that a few jobs fit at once
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((base + 1)) CPUs=4 RealMemory=8000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((base + 2)) CPUs=4 RealMemory=8000
PartitionName=local Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
END
}

main "$@"
