#!/usr/bin/env bash
# Is the process with this admin port ready? For the health checks of docker-compose.yml.
#
# usage: healthy.sh PORT
set -euo pipefail
exec 3<>"/dev/tcp/127.0.0.1/${1:?usage: healthy.sh PORT}"
printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
IFS= read -r -t 5 line <&3
[[ $line == HTTP/1.[01]\ 200* ]]
