# shellcheck shell=bash
# Our own processes: their addresses, secrets and variables as system.conf asks for them, their
# start, their readiness. Each gets a start script in the state folder that holds its whole
# environment, so that a process killed in the middle is started again exactly as before.
# Sourced after daemon.sh and system.sh.

readonly READY_SECONDS=60
# The first account of anvil's public development mnemonic: it is worth nothing anywhere else.
readonly ANVIL_GAS_KEY=0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80
# The second one: who may pause the registry and change its signers does not lie beside the relayer.
readonly ANVIL_ADMIN=0x70997970C51812dc3A010C7d01b50e0d17dc79C8
readonly ATTESTERS=3

declare -A VALUES=()

binaries() { printf '%s/debug' "${CARGO_TARGET_DIR:-$ROOT/target}"; }

write_secret() {
  install -m 600 /dev/null "$1"
  cat >"$1"
}

attester_keys() {
  local index
  for ((index = 0; index < ATTESTERS; index++)); do printf '0x%s\n' "$(random_hex 32)"; done
}

ports_pick() {
  local name kind
  while IFS= read -r name; do
    for kind in port admin; do
      [[ -n $(system_get "$name" "$kind") ]] || continue
      pick_port "$name-$kind" "$(system_get "$name" "$kind")"
      VALUES["$name/$kind"]=$PORT
    done
  done < <(processes)
}

# settings_make: everything an @name in system.conf stands for, but the registry's address.
settings_make() {
  local service
  rm -rf "${STATE:?}/keys" "$STATE/spool" "$STATE/issuer"
  (umask 077 && mkdir "$STATE/keys" "$STATE/spool" "$STATE/issuer")
  ports_pick
  VALUES[database_url]=$DATABASE_URL
  VALUES[redis_url]=$REDIS_URL
  VALUES[redis_prefix]=${REDIS_PREFIX:-jobseal}
  VALUES[kafka_brokers]=$KAFKA_BROKERS
  VALUES[topic_prefix]=${TOPIC_PREFIX:-}
  VALUES[rpc_url]=$RPC_URL
  VALUES[spool_dir]="$STATE/spool"
  VALUES[jwks_file]="$STATE/issuer/jwks.json"
  VALUES[trusted_proxies]=127.0.0.1/32
  VALUES[allow_private_cidrs]=127.0.0.0/8
  VALUES[webhooks_key]=$(random_hex 32)
  VALUES[signatures_key]=$(random_hex 32)
  for service in jobs relayer metering webhooks; do
    VALUES["${service}_url"]="http://127.0.0.1:${VALUES["$service-api/port"]}"
    VALUES["${service}_assertion_key"]=$(random_hex 32)
  done
  attester_keys | write_secret "$STATE/keys/attesters"
  VALUES[attester_keys_file]="$STATE/keys/attesters"
  VALUES[gas_key_file]="${GAS_KEY_FILE:-$STATE/keys/gas}"
  printf '%s\n' "$ANVIL_GAS_KEY" | write_secret "$STATE/keys/gas"
}

# The variables of one process as NAME=VALUE, quoted for the shell. Unknown yet means left out.
process_variables() {
  local section name value
  if [[ -n ${VALUES["$1/port"]:-} ]]; then printf 'LISTEN=127.0.0.1:%s ' "${VALUES["$1/port"]}"; fi
  printf 'ADMIN_LISTEN=127.0.0.1:%s ' "${VALUES["$1/admin"]}"
  for section in common "$1"; do
    for name in $(system_get "$section" variables); do
      value=$(system_get "$section" "$name")
      if [[ $value == @* ]]; then value=${VALUES["${value#@}"]:-}; fi
      if [[ -n $value ]]; then printf '%s=%q ' "$name" "$value"; fi
    done
  done
}

# Without arguments the script runs the process; with some, another subcommand of its binary in
# the same environment (`migrate`, `admin …`).
process_write() {
  local binary arguments
  read -r binary arguments <<<"$(system_get "$1" command)"
  {
    printf '#!/usr/bin/env bash\nif (($# == 0)); then set -- %s; fi\n' "$arguments"
    printf 'exec env -i PATH=%q HOME=%q RUST_BACKTRACE=1 NO_COLOR=1 ' "$PATH" "$HOME"
    process_variables "$1"
    printf '%q "$@"\n' "$(binaries)/$binary"
  } | write_secret "$RUN/$1.start"
  chmod 700 "$RUN/$1.start"
}

processes_write() {
  local name
  while IFS= read -r name; do process_write "$name"; done < <(processes)
}

# process_call NAME ARGUMENTS…: another subcommand of the binary behind a process.
process_call() {
  local name=$1
  shift
  blame "$name $1" "$LOGS/$name.log"
  "$RUN/$name.start" "$@" 2>>"$LOGS/$name.log" || return 1
}

# The same, with what it prints in ANSWER.
ANSWER=""
process_ask() {
  # Said here as well: what the substitution's shell says is gone with it.
  blame "$1 $2" "$LOGS/$1.log"
  ANSWER=$(process_call "$@")
}

process_start() { daemon_start "$1" "$RUN/$1.start"; }

# The edge first, so that nothing new comes in; the others drain side by side.
processes_stop() {
  local name
  daemon_stop gateway
  while IFS= read -r name; do daemon_ask "$name"; done < <(processes)
  while IFS= read -r name; do daemon_wait "$name"; done < <(processes)
}

# Whether all of ours ended when they were asked to.
processes_ended() {
  local name
  while IFS= read -r name; do
    if was_forced "$name"; then
      blame "$name" "$LOGS/$name.log"
      stage "stop our processes"
      show_fault
      return 1
    fi
  done < <(processes)
}

process_admin_port() { printf '%s' "$(<"$STATE/ports/$1-admin")"; }

process_wait() {
  blame "$1" "$LOGS/$1.log"
  wait_until "$READY_SECONDS" "$1" http_ready "$(process_admin_port "$1")"
}

processes_start() {
  local name
  while IFS= read -r name; do process_start "$name"; done < <(processes)
  while IFS= read -r name; do process_wait "$name"; done < <(processes)
  no_blame
}

# After a failure that nobody is blamed for: the process to look at is the one that is gone, or
# else the one that complains most.
blame_somebody() {
  local name count most=0
  [[ -z $FAULT_NAME ]] || return 0
  while IFS= read -r name; do
    if [[ -e $RUN/$name.pid ]] && ! daemon_alive "$name"; then
      blame "$name" "$LOGS/$name.log"
      return
    fi
    count=$(grep -cE ' (WARN|ERROR) ' "$LOGS/$name.log" 2>/dev/null || true)
    if ((${count:-0} > most)); then
      most=$count
      blame "$name" "$LOGS/$name.log"
    fi
  done < <(processes)
}

# Nothing ended or panicked unasked, be the outcome as good as it may.
processes_healthy() {
  local name
  while IFS= read -r name; do
    blame "$name" "$LOGS/$name.log"
    if ! daemon_alive "$name"; then
      printf 'error: %s ended by itself\n' "$name" >&2
      return 1
    fi
    if grep -q "panicked at" "$LOGS/$name.log"; then
      printf 'error: %s panicked\n' "$name" >&2
      return 1
    fi
  done < <(processes)
  no_blame
}

migrate_all() {
  local name
  for name in gateway jobs-api relayer metering webhooks; do process_call "$name" migrate >&2; done
  no_blame
}

deploy_registry() {
  process_ask relayer deploy --threshold 2 --admin "$ANVIL_ADMIN"
  [[ $ANSWER =~ ^0x[0-9a-fA-F]{40}$ ]] || die 1 "relayer deploy printed no address: $ANSWER"
  VALUES[registry_address]=$ANSWER
  say "registry: $ANSWER"
  processes_write
  no_blame
}

# json_field NAME: the value of one string field of a small JSON object on stdin.
json_field() {
  local text pattern="\"$1\"[[:space:]]*:[[:space:]]*\"([^\"]*)\""
  text=$(cat)
  [[ $text =~ $pattern ]] || return 1
  printf '%s' "${BASH_REMATCH[1]}"
}

# tenant_make NAME PLAN: a tenant and its key; sets TENANT, the key goes to keys/NAME.
readonly SCOPES=jobs:submit,jobs:read,webhooks:read,webhooks:write,billing:read
TENANT=""
tenant_make() {
  process_ask gateway admin tenant create "$1" --plan "$2" --json
  TENANT=$(json_field tenant_id <<<"$ANSWER")
  process_ask gateway admin key create --tenant "$TENANT" --scopes "$SCOPES" --role admin \
    --subject "user_$1" --json
  json_field key <<<"$ANSWER" | write_secret "$STATE/keys/$1"
  no_blame
}

# The demo's tenant has a plan wide enough for thousands of jobs at once; the other one has the
# default plan, whose limits the demo runs into on purpose.
tenants_make() {
  process_call gateway admin plan create demo --per-minute 600000 --burst 20000 \
    --per-hour 30000000 --active-jobs 20000 --priority 5 >/dev/null
  tenant_make other default
  tenant_make demo demo
}
