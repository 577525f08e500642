#!/bin/sh
# Starts the Prefect server with the settings of servers.env. Run it in a shell, or by prefect-server.service.
set -eu
cd "$(dirname "$0")/.."
case $HOST:${WITHOUT_LOGIN:-} in
127.*:1 | localhost:1) ;;
*) : "${PREFECT_SERVER_API_AUTH_STRING:?not set. Set it, or use HOST=127.0.0.1 and WITHOUT_LOGIN=1.}" ;;
esac
[ "${PREFECT_SERVER_API_AUTH_STRING:-}" != USER:PASSWORD ] || { echo "servers.env still has the example PREFECT_SERVER_API_AUTH_STRING. Set your own." >&2; exit 2; }
: "${PREFECT_UI_API_URL:?not set. Set the address of the API for browsers.}"
# By default the pages of any site may call the API. Allow only the UI.
export PREFECT_SERVER_CORS_ALLOWED_ORIGINS="${PREFECT_SERVER_CORS_ALLOWED_ORIGINS:-${PREFECT_UI_URL:?not set. Set the address of the UI.}}"
exec .venv/bin/prefect server start --host "$HOST" --port "${PREFECT_PORT:-4200}"
