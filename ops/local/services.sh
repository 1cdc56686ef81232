#!/usr/bin/env bash
# PostgreSQL, Redis, Kafka and anvil on free ports of this machine, for one clone. What the
# environment names already (DATABASE_URL, REDIS_URL, KAFKA_BROKERS, RPC_URL) is used instead of
# started. Sourced by the commands in ops/; run by itself it starts the four, writes their
# addresses to `env` in the state folder, and stays until it is stopped.

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  # shellcheck source=ops/local/common.sh
  source "$(dirname "$0")/common.sh"
  # shellcheck source=ops/local/daemon.sh
  source "$LOCAL/daemon.sh"
  # shellcheck source=ops/local/install.sh
  source "$LOCAL/install.sh"
  # shellcheck source=ops/local/system.sh
  source "$LOCAL/system.sh"
fi

readonly START_SECONDS=60
readonly POSTGRES_CONNECTIONS=300
readonly KAFKA_HEAP=512m

fresh_folder() {
  rm -rf "${STATE:?}/$1"
  mkdir -m 700 "$STATE/$1"
  if [[ $EUID -eq 0 && -n ${2:-} ]]; then chown "$2:" "$STATE/$1"; fi
}

postgres_bin() {
  local folders=(/usr/lib/postgresql/*/bin)
  printf '%s' "${folders[-1]}"
}

postgres_start() {
  local port password bin data="$STATE/postgres" as=()
  pick_port postgres "$(system_get postgres port)"
  port=$PORT
  password=$(random_hex 16)
  bin=$(postgres_bin)
  blame postgres "$LOGS/postgres.log"
  fresh_folder postgres postgres
  install -m 600 /dev/null "$STATE/postgres.secret"
  printf '%s\n' "$password" >"$STATE/postgres.secret"
  if [[ $EUID -eq 0 ]]; then
    chown postgres: "$STATE/postgres.secret"
    as=(setpriv --reuid=postgres --regid=postgres --init-groups --)
  fi
  env -C "$STATE" "${as[@]}" "$bin/initdb" -D "$data" -U jobseal --auth=scram-sha-256 --no-sync \
    --pwfile="$STATE/postgres.secret" --encoding=UTF8 --no-locale >>"$LOGS/postgres.log" 2>&1
  printf '%s\n' "listen_addresses = '127.0.0.1'" "port = $port" \
    "unix_socket_directories = ''" "max_connections = $POSTGRES_CONNECTIONS" \
    "shared_buffers = 64MB" "max_wal_size = 512MB" >>"$data/postgresql.conf"
  DAEMON_USER=postgres daemon_start postgres "$bin/postgres" -D "$data"
  wait_until "$START_SECONDS" postgres "$bin/pg_isready" -q -h 127.0.0.1 -p "$port"
  PGPASSWORD=$password "$bin/createdb" -h 127.0.0.1 -p "$port" -U jobseal jobseal
  export DATABASE_URL="postgres://jobseal:$password@127.0.0.1:$port/jobseal"
}

redis_answers() {
  local line
  exec 5<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'PING\r\n' >&5
  IFS= read -r -t 2 line <&5 || line=""
  exec 5>&- 5<&-
  [[ $line == +PONG* ]]
}

redis_start() {
  local port
  pick_port redis "$(system_get redis port)"
  port=$PORT
  fresh_folder redis redis
  DAEMON_USER=redis daemon_start redis redis-server --bind 127.0.0.1 --port "$port" \
    --dir "$STATE/redis" --save "" --appendonly no --daemonize no \
    --maxmemory 256mb --maxmemory-policy allkeys-lru
  wait_until "$START_SECONDS" redis redis_answers "$port"
  export REDIS_URL="redis://127.0.0.1:$port"
}

kafka_config() {
  local port=$1 controller=$2
  printf '%s\n' \
    "process.roles=broker,controller" "node.id=1" \
    "listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller" \
    "advertised.listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller" \
    "controller.listener.names=CONTROLLER" \
    "controller.quorum.bootstrap.servers=127.0.0.1:$controller" \
    "log.dirs=$STATE/kafka/data" "num.partitions=1" \
    "default.replication.factor=1" "min.insync.replicas=1" \
    "offsets.topic.replication.factor=1" "offsets.topic.num.partitions=1" \
    "transaction.state.log.replication.factor=1" "transaction.state.log.min.isr=1" \
    "transaction.state.log.num.partitions=1" \
    "group.initial.rebalance.delay.ms=0" "auto.create.topics.enable=false" \
    "log.segment.bytes=67108864" "log.retention.hours=24"
}

kafka_java() {
  printf '%s\0' java "-Xmx$KAFKA_HEAP" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
    -Dlog4j2.level=WARN -cp "$(kafka_jars)/*"
}

kafka_start() {
  local port controller java=()
  pick_port kafka "$(system_get kafka port)"
  port=$PORT
  pick_port kafka-controller $((port + 1))
  controller=$PORT
  mapfile -d '' java < <(kafka_java)
  blame kafka "$LOGS/kafka.log"
  fresh_folder kafka
  kafka_config "$port" "$controller" >"$STATE/kafka/server.properties"
  "${java[@]}" kafka.tools.StorageTool format --standalone --cluster-id "$(random_hex 11)" \
    --config "$STATE/kafka/server.properties" >>"$LOGS/kafka.log" 2>&1
  daemon_start kafka "${java[@]}" kafka.Kafka "$STATE/kafka/server.properties"
  # The broker opens this port only once it is registered and unfenced.
  wait_until "$START_SECONDS" kafka port_open "$port"
  export KAFKA_BROKERS="127.0.0.1:$port"
}

# The Rust binary itself, not the node script around it, so that the pid is the chain's.
anvil_binary() {
  local found=("$ROOT"/contracts/solidity/node_modules/@foundry-rs/anvil-*/bin/anvil)
  printf '%s' "${JOBSEAL_ANVIL:-${found[0]}}"
}

anvil_start() {
  local port
  pick_port anvil "$(system_get anvil port)"
  port=$PORT
  fresh_folder anvil
  # Without blocks `finalized` stands still; an epoch of one slot keeps it close behind the head.
  # Blocks and logs are kept for ever, the states of accounts for the newest 512 blocks.
  daemon_start anvil env HOME="$STATE/anvil" "$(anvil_binary)" --host 127.0.0.1 --port "$port" \
    --block-time 1 --slots-in-an-epoch 1 --prune-history 512 --silent
  wait_until "$START_SECONDS" anvil port_open "$port"
  export RPC_URL="http://127.0.0.1:$port"
}

services_start() {
  if [[ -z ${DATABASE_URL:-} ]]; then postgres_start; fi
  if [[ -z ${REDIS_URL:-} ]]; then redis_start; fi
  if [[ -z ${KAFKA_BROKERS:-} ]]; then kafka_start; fi
  if [[ -z ${RPC_URL:-} ]]; then anvil_start; fi
  # For tests that break a Kafka of their own.
  KAFKA_JARS=$(kafka_jars)
  export KAFKA_JARS
  no_blame
}

services_env() {
  printf 'export DATABASE_URL=%q REDIS_URL=%q KAFKA_BROKERS=%q RPC_URL=%q KAFKA_JARS=%q\n' \
    "$DATABASE_URL" "$REDIS_URL" "$KAFKA_BROKERS" "$RPC_URL" "$KAFKA_JARS"
}

services_stay() {
  trap 'exit 0' INT TERM HUP
  trap 'code=$?; child_stop; if ((code)); then show_fault; fi; release_services; daemons_stop' EXIT
  lock_state
  daemons_sweep
  rm -f "$STATE/env"
  install_to_run up
  stage "services"
  services_start
  (umask 077 && services_env >"$STATE/env")
  stage_done
  say "ready: source $STATE/env"
  while :; do await sleep 3600; done
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then services_stay; fi
