#!/bin/sh
# What a container does:
#
#   head [OPTION …]       the head of a Ray cluster; it lends no CPU
#   node [OPTION …]       a node of the cluster at FMNIST_RAY_ADDRESS, with all CPUs and GPUs of the container
#   driver COMMAND …      a command, beside a node that lends nothing: a driver of Ray needs one on its own machine
#   healthy               whether the Ray node of this container lives
#   COMMAND …             the command
#
# Options are those of `ray start`. The cluster's token is Ray's: RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH names.
set -eu

agent_port=${FMNIST_RAY_AGENT_PORT:-52365}

start_ray() {
    exec ray start --block --disable-usage-stats --dashboard-agent-listen-port="$agent_port" "$@"
}

join_ray() {
    start_ray --address="${FMNIST_RAY_ADDRESS:?names no Ray cluster to join}" "$@"
}

healthy() {
    wget -q -T 5 -O - "http://127.0.0.1:$agent_port/api/local_raylet_healthz" | grep -q success
}

lives() { kill -0 "$1" 2>/dev/null; }

pause() {
    sleep 1 &
    wait $! || true
}

# Ends with the command, or as soon as the node does; on SIGTERM the command ends first, for it may need the node still.
driver() {
    told='' job=''
    trap 'told=yes; [ -z "$job" ] || kill -TERM "$job" 2>/dev/null || true' TERM INT
    (trap - TERM INT; join_ray --num-cpus=0 --num-gpus=0) &
    node=$!
    until [ -n "$told" ] || healthy 2>/dev/null || ! lives "$node"; do pause; done
    if [ -z "$told" ] && lives "$node"; then
        (trap - TERM INT; exec "$@") <&0 &
        job=$!
        while lives "$job" && lives "$node"; do pause; done
    fi
    status=0
    if ! lives "$node"; then
        echo "The Ray node of this container ended. Is the cluster at $FMNIST_RAY_ADDRESS up, and the token its own?" >&2
        status=1
        [ -z "$job" ] || kill -TERM "$job" 2>/dev/null || true
    fi
    if [ -n "$job" ]; then
        while lives "$job"; do pause; done
        wait "$job" || status=$((status ? status : $?))
    fi
    kill -TERM "$node" 2>/dev/null || true
    while lives "$node"; do pause; done
    exit "$status"
}

role=${1:-}
case $role in
head) shift; start_ray --head --num-cpus=0 --num-gpus=0 --port=6379 --dashboard-host=0.0.0.0 "$@" ;;
node) shift; join_ray "$@" ;;
driver) shift; driver "${@:?driver: name a command}" ;;
healthy) healthy ;;
'') echo "Name a role or a command; the first lines of $0 say which." >&2; exit 2 ;;
*) exec "$@" ;;
esac
