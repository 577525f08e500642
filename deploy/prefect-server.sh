#!/bin/sh
# Prefect's server, by the settings of servers.env; for a shell and for prefect-server.service.
set -eu
cd "$(dirname "$0")/.."
case $HOST in 127.* | localhost) ;; *) : "${PREFECT_SERVER_API_AUTH_STRING:?needed on $HOST}" ;; esac
exec .venv/bin/prefect server start --host "$HOST" --port "${PREFECT_PORT:-4200}"
