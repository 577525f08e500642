#!/bin/sh
# MLflow's server, by the settings of servers.env; for a shell and for mlflow-server.service.
set -eu
cd "$(dirname "$0")/.."
case $HOST in
127.* | localhost) ;;
*) : "${MLFLOW_FLASK_SERVER_SECRET_KEY:?needed on $HOST}" "${MLFLOW_AUTH_CONFIG_PATH:?needed on $HOST}" ;;
esac
exec .venv/bin/mlflow server --host "$HOST" --port "${MLFLOW_PORT:-5000}" --allowed-hosts "$ALLOWED_HOSTS" \
    --backend-store-uri "$MLFLOW_BACKEND_STORE_URI" --artifacts-destination "$MLFLOW_ARTIFACTS_DESTINATION" \
    ${MLFLOW_FLASK_SERVER_SECRET_KEY:+--app-name basic-auth}
