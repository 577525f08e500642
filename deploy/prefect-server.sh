#!/bin/sh
# Prefect's server, by the settings of servers.env; for a shell and for prefect-server.service.
set -eu
cd "$(dirname "$0")/.."
case $HOST:${WITHOUT_LOGIN:-} in
127.*:1 | localhost:1) ;;
*) : "${PREFECT_SERVER_API_AUTH_STRING:?needed, unless WITHOUT_LOGIN=1 on loopback}" ;;
esac
[ "${PREFECT_SERVER_API_AUTH_STRING:-}" != USER:PASSWORD ] || { echo "servers.env is to be filled in" >&2; exit 2; }
: "${PREFECT_UI_API_URL:?the address of the API as browsers reach it}"
# Pages of other sites may not call it; by default they may.
export PREFECT_SERVER_CORS_ALLOWED_ORIGINS="${PREFECT_SERVER_CORS_ALLOWED_ORIGINS:-${PREFECT_UI_URL:?the address of its pages}}"
exec .venv/bin/prefect server start --host "$HOST" --port "${PREFECT_PORT:-4200}"
