# Sourced by start, stop and fail: where the cluster lives, and how its processes are found.
# shellcheck shell=bash disable=SC2034

# One cluster per folder and port range; set both to run two side by side.
STATE="${M3AE_CLUSTER:-${TMPDIR:-/tmp}/m3ae_cluster.$(id -u)}"
MARKER="$STATE/this_is_a_local_cluster" # without it the folder is someone's own, and is left alone
PORT="${M3AE_CLUSTER_PORT:-17000}" # slurmctld's; node K listens on PORT + K
export SLURM_CONF="$STATE/slurm.conf"
# Debian keeps the daemons where only root's path leads.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

die() {
    echo "error: $*" >&2
    exit 2
}

alive() { # alive PID: it runs, and is no zombie waiting to be reaped
    [ -r "/proc/$1/status" ] && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status"
}

# The processes of this cluster, or of its NODE: daemons and tasks alike carry SLURM_CONF and SLURMD_NODENAME, so no
# pid file of an earlier cluster can lead to a stranger's process.
# shellcheck disable=SC2120 # the argument is optional
processes() { # processes [NODE]
    local entry environment
    for entry in /proc/[0-9]*; do
        [ -O "$entry" ] || continue
        environment=$(tr '\0' '\n' 2>/dev/null <"$entry/environ") || continue
        grep -qxF "SLURM_CONF=$SLURM_CONF" <<<"$environment" || continue
        grep -qx "SLURMD_NODENAME=${1:-.*}" <<<"$environment" || continue
        alive "${entry#/proc/}" && echo "${entry#/proc/}"
    done
}

end() { # end SIGNAL PID...: send it, and wait up to 3 s until they are gone
    local signal=$1 pid tries
    shift
    for pid in "$@"; do kill "-$signal" "$pid" 2>/dev/null || true; done
    for ((tries = 0; tries < 30; tries++)); do
        for pid in "$@"; do alive "$pid" && sleep 0.1 && continue 2; done
        return 0
    done
    return 1
}
