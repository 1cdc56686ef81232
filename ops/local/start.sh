# shellcheck shell=bash
# The order in which everything comes up, and the one way in which it all goes down again. Shared
# by ops/up, ops/demo and ops/test; sourced after common.sh.

# shellcheck source=ops/local/daemon.sh
source "$LOCAL/daemon.sh"
# shellcheck source=ops/local/install.sh
source "$LOCAL/install.sh"
# shellcheck source=ops/local/system.sh
source "$LOCAL/system.sh"
# shellcheck source=ops/local/services.sh
source "$LOCAL/services.sh"
# shellcheck source=ops/local/processes.sh
source "$LOCAL/processes.sh"

readonly PROGRESS_SECONDS=10

# begin: alone in this clone, everything stopped whatever happens next.
begin() {
  lock_state
  trap 'finish $?' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  daemons_sweep
  FORCED=()
  rm -rf "${LOGS:?}" "${RUN:?}" "$STATE/ports" "$STATE/work"
  mkdir -p "$LOGS" "$RUN"
  printf '%s\n' "$BEGAN" >"$RUN/began"
}

finish() {
  local code=$1
  trap - EXIT
  trap '' INT TERM HUP
  set +e
  child_stop
  if ((code != 0 && code < 128)); then
    blame_somebody
    show_fault
  fi
  release_services
  processes_stop
  database_drop
  daemons_stop
  if ((code == 0)) && ! processes_ended; then code=1; fi
  say "stopped; whole time $(elapsed), logs in $LOGS"
  case $code in
    [0-5] | "$EX_USAGE" | "$EX_UNAVAILABLE" | "$EX_BUSY" | 130 | 143) exit "$code" ;;
    # Whatever the command that failed says by its code, a stage failed.
    *) exit 1 ;;
  esac
}

# Our crates are compiled by clippy's driver, which is rustc with the lints: so `ops/test` finds
# the warnings already made, and neither our crates nor the dependencies are compiled twice.
cargo_ours() {
  local wrapper
  wrapper=$(command -v clippy-driver || true)
  env -C "$ROOT" ${wrapper:+RUSTC_WORKSPACE_WRAPPER="$wrapper"} cargo "$@"
}

# Two tests are among the targets: `tidy` makes cargo choose the features of dependencies as
# `cargo test` does, `generated` has dependencies that nothing else has. So the tests compile none.
BUILD_PID=""
build_start() {
  local wrapper
  wrapper=$(command -v clippy-driver || true)
  say "building in the background (cargo build; its log is $LOGS/build.log)"
  daemon_start build env -C "$ROOT" ${wrapper:+RUSTC_WORKSPACE_WRAPPER="$wrapper"} \
    cargo build --workspace --bins --test tidy --test generated
  BUILD_PID=$!
  no_blame
}

build_progress() {
  local count last
  count=$(grep -c '^ *Compiling ' "$LOGS/build.log" || true)
  last=$(grep '^ *Compiling ' "$LOGS/build.log" | tail -n 1 || true)
  [[ -z $last ]] || say "build: $count crates begun, now ${last##*Compiling }"
}

build_wait() {
  local shown=$SECONDS
  stage "build"
  blame "cargo build" "$LOGS/build.log"
  while daemon_alive build; do
    sleep 0.2
    if ((SECONDS - shown >= PROGRESS_SECONDS)); then
      shown=$SECONDS
      build_progress
    fi
  done
  wait "$BUILD_PID" || exit 1
  rm -f "$RUN/build.pid"
  stage_done
  no_blame
}

# A server that was there before us keeps its databases as they are: a run makes its own there,
# and drops it at the end. The same for topics and keys, by prefix.
OWN_DATABASE=""
SERVER_URL=""
isolate() {
  local name query
  name="jobseal_$(date -u +%Y%m%d%H%M%S)_$(random_hex 3)"
  if [[ -n ${GIVEN[database]} ]]; then
    SERVER_URL=$DATABASE_URL
    psql -q -d "$SERVER_URL" -c "create database $name" >&2
    OWN_DATABASE=$name
    query=${SERVER_URL#"${SERVER_URL%%\?*}"}
    export DATABASE_URL="${SERVER_URL%%\?*}"
    export DATABASE_URL="${DATABASE_URL%/*}/$name$query"
  fi
  if [[ -n ${GIVEN[kafka]} ]]; then export TOPIC_PREFIX="$name."; fi
  if [[ -n ${GIVEN[redis]} ]]; then export REDIS_PREFIX=$name; fi
}

database_drop() {
  [[ -n $OWN_DATABASE ]] || return 0
  psql -q -d "$SERVER_URL" -c "drop database if exists $OWN_DATABASE with (force)" >&2
}

# What the environment named when the command began.
declare -A GIVEN=(
  [database]=${DATABASE_URL:-} [redis]=${REDIS_URL:-}
  [kafka]=${KAFKA_BROKERS:-} [rpc]=${RPC_URL:-}
)

# base_start PURPOSE: packages, the build, and the four services. The build runs
# while the rest is installed and started.
base_start() {
  stage "install what compiling needs"
  install_to_compile "$1"
  build_start
  stage "install what running needs"
  install_to_run "$1"
  stage "start PostgreSQL, Redis, Kafka and anvil"
  services_start
  stage_done
  build_wait
}

# system_start: all of it, up to the last process being ready.
system_start() {
  base_start "$1"
  stage "migrate and deploy"
  isolate
  settings_make
  blame loadtest "$LOGS/loadtest.log"
  "$(binaries)/loadtest" issuer --dir "$STATE/issuer" >>"$LOGS/loadtest.log" 2>&1
  processes_write
  migrate_all
  deploy_registry
  tenants_make
  stage "start our processes"
  processes_start
  stage_done
}
