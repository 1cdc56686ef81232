# shellcheck shell=bash
# Background processes of one run: start, watch, kill, stop in reverse order. A process is known
# by its pid together with its start time, so that a pid the kernel gave to somebody else since
# is never signalled. Sourced after common.sh.

DAEMONS=()
# Those that had to be killed because they did not stop when they were asked.
FORCED=()
# Longer than DRAIN_SECONDS is by default.
readonly STOP_SECONDS=25
readonly PROBE_PORTS=2000
PORT=0
PORT_LOCKS=()

# Field 22 of /proc/PID/stat; the second field may hold spaces, so it is cut off first.
start_time() {
  local stat fields
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
  read -ra fields <<<"${stat##*) }"
  [[ ${fields[0]} != Z ]] || return 1
  printf '%s' "${fields[19]}"
}

# daemon_start NAME COMMAND…: its own session, so that Ctrl-C reaches only the command that
# started it, which then stops everything in order. DAEMON_USER, where set and we are root, runs it.
daemon_start() {
  local name=$1 pid
  shift
  if [[ -n ${DAEMON_USER:-} && $EUID -eq 0 ]]; then
    set -- setpriv "--reuid=$DAEMON_USER" "--regid=$DAEMON_USER" --init-groups -- "$@"
  fi
  blame "$name" "$LOGS/$name.log"
  setsid env -C "$STATE" "$@" >>"$LOGS/$name.log" 2>&1 </dev/null 9>&- &
  pid=$!
  printf '%s %s\n' "$pid" "$(start_time "$pid" || true)" >"$RUN/$name.pid"
  DAEMONS+=("$name")
  # The shell says nothing of their ends: that is for the step that waits. It waits for a build.
  if [[ $name != build ]]; then disown "$pid"; fi
}

daemon_pid() {
  local pid born
  [[ -r $RUN/$1.pid ]] || return 1
  read -r pid born <"$RUN/$1.pid" || return 1
  [[ -n $born && $(start_time "$pid") == "$born" ]] || return 1
  printf '%s' "$pid"
}

daemon_alive() { daemon_pid "$1" >/dev/null; }

daemon_signal() {
  local pid
  pid=$(daemon_pid "$2") || return 1
  # A build is cargo with its compilers: the whole group is meant.
  if [[ $2 == build ]]; then pid="-$pid"; fi
  kill -s "$1" -- "$pid" 2>/dev/null
}

# Asks once: our processes take a second signal for impatience. Postgres is asked by SIGINT, its
# fast shutdown.
daemon_ask() {
  local signal=TERM
  [[ $1 != postgres ]] || signal=INT
  daemon_signal "$signal" "$1" || true
}

daemon_wait() {
  local name=$1 deadline=$((SECONDS + STOP_SECONDS))
  while daemon_alive "$name" && ((SECONDS < deadline)); do sleep 0.1; done
  if daemon_signal KILL "$name"; then
    say "$name did not stop within $STOP_SECONDS s: killed"
    FORCED+=("$name")
  fi
  rm -f "$RUN/$name.pid"
}

was_forced() { [[ " ${FORCED[*]} " == *" $1 "* ]]; }

daemon_stop() {
  daemon_ask "$1"
  daemon_wait "$1"
}

daemons_stop() {
  local index
  for ((index = ${#DAEMONS[@]} - 1; index >= 0; index--)); do
    daemon_stop "${DAEMONS[index]}"
  done
  DAEMONS=()
}

# What an earlier command left when it was killed itself.
daemons_sweep() {
  local file name
  for file in "$RUN"/*.pid; do
    [[ -e $file ]] || continue
    name=$(basename "$file" .pid)
    if daemon_alive "$name"; then say "stopping $name, left by an earlier run"; fi
    daemon_stop "$name"
  done
}

# wait_until SECONDS NAME COMMAND…: until COMMAND succeeds; fails when the process dies or time is
# over.
wait_until() {
  local deadline=$((SECONDS + $1)) name=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ! daemon_alive "$name"; then
      printf 'error: %s ended while starting\n' "$name" >&2
      return 1
    fi
    if ((SECONDS >= deadline)); then
      printf 'error: %s is not ready in time\n' "$name" >&2
      return 1
    fi
    sleep 0.1
  done
}

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# While a command lives it holds a lock per port, so that two clones starting at once do not meet.
port_reserve() {
  local fd
  exec {fd}>>"$CACHE/ports/$1"
  if flock -n "$fd" && ! port_open "$1"; then
    PORT_LOCKS+=("$fd")
    return 0
  fi
  exec {fd}>&-
  return 1
}

ports_release() {
  local fd
  for fd in "${PORT_LOCKS[@]}"; do exec {fd}>&-; done
  PORT_LOCKS=()
}

# pick_port NAME PREFERRED: sets PORT to the preferred one or the next that is free. Those lie
# below the range the kernel gives to outgoing connections.
pick_port() {
  local name=$1 first=$2
  make_folder "$CACHE"
  mkdir -p "$CACHE/ports" "$STATE/ports"
  for ((PORT = first; PORT < first + PROBE_PORTS; PORT++)); do
    if port_reserve "$PORT"; then
      printf '%s\n' "$PORT" >"$STATE/ports/$name"
      return
    fi
  done
  die "$EX_UNAVAILABLE" "no free port for $name between $first and $PORT"
}

# http_status PORT PATH: the status code of a plain GET, without curl.
http_status() {
  local line
  exec 4<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$2" >&4
  IFS= read -r -t 5 line <&4 || line=""
  exec 4>&- 4<&-
  [[ $line =~ ^HTTP/1\.[01]\ ([0-9]{3}) ]] || return 1
  printf '%s' "${BASH_REMATCH[1]}"
}

http_ready() { [[ $(http_status "$1" "${2:-/readyz}" 2>/dev/null) == 200 ]]; }
