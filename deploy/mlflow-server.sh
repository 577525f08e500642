#!/bin/sh
# Starts the MLflow server with the settings of servers.env. Run it in a shell, or by mlflow-server.service.
set -eu
cd "$(dirname "$0")/.."
case $HOST:${WITHOUT_LOGIN:-} in
127.*:1 | localhost:1) ;;
*)
    : "${MLFLOW_FLASK_SERVER_SECRET_KEY:?not set. Set it, or use HOST=127.0.0.1 and WITHOUT_LOGIN=1.}"
    : "${MLFLOW_AUTH_CONFIG_PATH:?not set. Set it, or use HOST=127.0.0.1 and WITHOUT_LOGIN=1.}"
    ;;
esac
[ "${MLFLOW_FLASK_SERVER_SECRET_KEY:-}" != A-LONG-RANDOM-TEXT ] || { echo "servers.env still has the example MLFLOW_FLASK_SERVER_SECRET_KEY. Set your own." >&2; exit 2; }
if [ -n "${MLFLOW_AUTH_CONFIG_PATH:-}" ] && grep -q "= *PASSWORD$" "$MLFLOW_AUTH_CONFIG_PATH"; then
    echo "$MLFLOW_AUTH_CONFIG_PATH still has the example PASSWORD. Set your own." >&2
    exit 2
fi
# MLflow reads these from the environment, because other users can see command lines.
: "${MLFLOW_BACKEND_STORE_URI:?not set. Set the address of the database.}" "${MLFLOW_ARTIFACTS_DESTINATION:?not set. Set the folder of the artifacts.}"
# By default uvicorn kills a worker that does not answer it for 5 s, as on a busy machine.
export MLFLOW_UVICORN_OPTS="${MLFLOW_UVICORN_OPTS:---timeout-worker-healthcheck 120}"
# Its evaluation jobs take 245 MB for each of seven processes, and nothing here uses them.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec .venv/bin/mlflow server --host "$HOST" --port "${MLFLOW_PORT:-5000}" --allowed-hosts "$ALLOWED_HOSTS" \
    ${MLFLOW_FLASK_SERVER_SECRET_KEY:+--app-name basic-auth}
