#!/bin/sh
# MLflow's server, by the settings of servers.env; for a shell and for mlflow-server.service.
set -eu
cd "$(dirname "$0")/.."
case $HOST:${WITHOUT_LOGIN:-} in
127.*:1 | localhost:1) ;;
*)
    : "${MLFLOW_FLASK_SERVER_SECRET_KEY:?needed, unless WITHOUT_LOGIN=1 on loopback}"
    : "${MLFLOW_AUTH_CONFIG_PATH:?needed, unless WITHOUT_LOGIN=1 on loopback}"
    ;;
esac
[ "${MLFLOW_FLASK_SERVER_SECRET_KEY:-}" != A-LONG-RANDOM-TEXT ] || { echo "servers.env is to be filled in" >&2; exit 2; }
if [ -n "${MLFLOW_AUTH_CONFIG_PATH:-}" ] && grep -q "= *PASSWORD$" "$MLFLOW_AUTH_CONFIG_PATH"; then
    echo "$MLFLOW_AUTH_CONFIG_PATH is to be filled in" >&2
    exit 2
fi
# It takes them from the environment, which other users cannot see.
: "${MLFLOW_BACKEND_STORE_URI:?the database}" "${MLFLOW_ARTIFACTS_DESTINATION:?where artifacts are stored}"
exec .venv/bin/mlflow server --host "$HOST" --port "${MLFLOW_PORT:-5000}" --allowed-hosts "$ALLOWED_HOSTS" \
    ${MLFLOW_FLASK_SERVER_SECRET_KEY:+--app-name basic-auth}
