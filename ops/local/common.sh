# shellcheck shell=bash
# Shared by every command in ops/: where things lie, how progress is said, how a failure ends.
# Sourced, never run. Sourcing it turns on strict mode.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
LOCAL="$ROOT/ops/local"
export ROOT LOCAL

# Exit codes, as sysexits.h has them; `--help` of each command names those it uses.
readonly EX_USAGE=64
readonly EX_UNAVAILABLE=69
readonly EX_BUSY=75
export EX_USAGE EX_UNAVAILABLE EX_BUSY

BEGAN=$EPOCHSECONDS
STAGE=""
STAGE_AT=$SECONDS
# The log of the process that the present step waits for; a failure shows its end.
FAULT_NAME=""
FAULT_LOG=""
readonly FAULT_LINES=40

# Where this clone keeps its data. initdb refuses root and the user `postgres` cannot enter a home
# folder, so as root the data lies under /var/tmp, in a folder named by the clone's path.
state_folder() {
  local sum
  if [[ -n ${JOBSEAL_STATE:-} ]]; then
    printf '%s' "$JOBSEAL_STATE"
  elif [[ $EUID -eq 0 ]]; then
    sum=$(printf '%s' "$ROOT" | sha256sum)
    printf '/var/tmp/jobseal-%s-%s' "$(basename "$ROOT")" "${sum:0:10}"
  else
    printf '%s/target/local' "$ROOT"
  fi
}

# What any clone on this machine may share and nobody changes: the Kafka jars.
cache_folder() {
  if [[ $EUID -eq 0 ]]; then
    printf '/var/tmp/jobseal-cache'
  else
    printf '%s/jobseal' "${XDG_CACHE_HOME:-$HOME/.cache}"
  fi
}

STATE=$(state_folder)
CACHE=$(cache_folder)
LOGS="$STATE/logs"
RUN="$STATE/run"
export STATE CACHE LOGS RUN

elapsed() {
  local seconds=$((EPOCHSECONDS - BEGAN))
  printf '%d:%02d' $((seconds / 60)) $((seconds % 60))
}

say() { printf '%s\n' "[$(elapsed)] $*" >&2; }

# Names what follows. A failure says this name.
stage() {
  stage_done
  STAGE=$1
  STAGE_AT=$SECONDS
  say "$STAGE ..."
}

stage_done() {
  [[ -n $STAGE ]] || return 0
  say "$STAGE: done in $((SECONDS - STAGE_AT)) s"
  STAGE=""
}

die() {
  local code=$1
  shift
  printf 'error: %s\n' "$*" >&2
  exit "$code"
}

# Told before a wait: whose log explains a failure of what follows.
blame() {
  FAULT_NAME=$1
  FAULT_LOG=$2
}

no_blame() { blame "" ""; }

show_fault() {
  printf 'error: stage "%s" failed\n' "${STAGE:-start}" >&2
  [[ -n $FAULT_NAME ]] || return 0
  printf 'error: at fault: %s; the end of %s:\n' "$FAULT_NAME" "$FAULT_LOG" >&2
  if [[ -s $FAULT_LOG ]]; then
    tail -n "$FAULT_LINES" "$FAULT_LOG" | sed 's/^/  | /' >&2
  else
    printf '  | (nothing was logged)\n' >&2
  fi
}

# Bash runs no trap while a foreground command runs, so a long one is a child that is waited for:
# a signal to us then ends it at once, with all that it started (its group).
CHILD=""
readonly CHILD_SECONDS=60

await() {
  local code=0
  set -m
  "$@" </dev/null 9>&- &
  CHILD=$!
  set +m
  wait "$CHILD" || code=$?
  CHILD=""
  return "$code"
}

child_stop() {
  local deadline=$((SECONDS + CHILD_SECONDS))
  [[ -n $CHILD ]] || return 0
  kill -s TERM -- "-$CHILD" 2>/dev/null || return 0
  while kill -0 -- "-$CHILD" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.1; done
  kill -s KILL -- "-$CHILD" 2>/dev/null || true
}

# A folder of ours in a place where others may write too must really be ours.
make_folder() {
  mkdir -p "$1"
  [[ -O $1 && ! -L $1 ]] || die "$EX_UNAVAILABLE" "$1 belongs to someone else; remove it"
}

make_state() {
  make_folder "$STATE"
  mkdir -p "$LOGS" "$RUN"
}

# One command of a clone at a time: they share its ports, data and pid files.
lock_state() {
  make_state
  exec 9>"$STATE/lock"
  flock -n 9 || die "$EX_BUSY" "another ops command of this clone is running (state in $STATE); \
stop it, or use a second clone"
}

random_hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
