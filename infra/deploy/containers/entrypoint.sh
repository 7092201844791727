#!/bin/sh
# Start a container in one of these roles:
#
#   head [OPTION …]       the head of a Ray cluster, which offers no resources
#   node [OPTION …]       a node of the cluster at FMNIST_RAY_ADDRESS, with all CPUs and GPUs of the container
#   driver COMMAND …      a command next to a Ray node, which every Ray driver needs. It offers no resources
#   healthy               exit with 0 if this container's Ray node is alive
#   COMMAND …             just the command
#
# OPTION is an option of `ray start`. The cluster's token is in RAY_AUTH_TOKEN, or in the file at RAY_AUTH_TOKEN_PATH.
set -eu

agent_port=${FMNIST_RAY_AGENT_PORT:-52365}

start_ray() {
    exec ray start --block --disable-usage-stats --dashboard-agent-listen-port="$agent_port" "$@"
}

join_ray() {
    start_ray --address="${FMNIST_RAY_ADDRESS:?set it to the address of the Ray cluster to join}" "$@"
}

healthy() {
    wget -q -T 5 -O - "http://127.0.0.1:$agent_port/api/local_raylet_healthz" | grep -q success
}

is_alive() { kill -0 "$1" 2>/dev/null; }

pause() {
    sleep 1 &
    wait $! || true
}

# Ends with the command, or as soon as the node ends. On SIGTERM, the command ends before the node, which it may need.
driver() {
    terminated='' job=''
    trap 'terminated=yes; [ -z "$job" ] || kill -TERM "$job" 2>/dev/null || true' TERM INT
    (trap - TERM INT; join_ray --num-cpus=0 --num-gpus=0) &
    node=$!
    until [ -n "$terminated" ] || healthy 2>/dev/null || ! is_alive "$node"; do pause; done
    if [ -z "$terminated" ] && is_alive "$node"; then
        (trap - TERM INT; exec "$@") <&0 &
        job=$!
        while is_alive "$job" && is_alive "$node"; do pause; done
    fi
    status=0
    if ! is_alive "$node"; then
        echo "This Ray node ended. Check that the cluster at $FMNIST_RAY_ADDRESS is up and has its token." >&2
        status=1
        [ -z "$job" ] || kill -TERM "$job" 2>/dev/null || true
    fi
    if [ -n "$job" ]; then
        while is_alive "$job"; do pause; done
        wait "$job" || status=$((status ? status : $?))
    fi
    kill -TERM "$node" 2>/dev/null || true
    while is_alive "$node"; do pause; done
    exit "$status"
}

role=${1:-}
case $role in
head) shift; start_ray --head --num-cpus=0 --num-gpus=0 --port=6379 --dashboard-host=0.0.0.0 "$@" ;;
node) shift; join_ray "$@" ;;
driver) shift; driver "${@:?driver needs a command}" ;;
healthy) healthy ;;
'') echo "Give a role or a command. The first lines of $0 list the roles." >&2; exit 2 ;;
*) exec "$@" ;;
esac
