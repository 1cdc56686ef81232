# shellcheck shell=bash
# Brings what is missing from the package managers, saying so first: Debian's packages by apt, the
# Kafka jars by Maven, anvil and forge by npm. Nothing is touched that is already there. Sourced
# after common.sh.

readonly APT_LOG=apt.log
readonly JAVA_NEEDED=17
readonly NODE_NEEDED=18

has() { command -v "$1" >/dev/null 2>&1; }

has_postgres() { compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

has_java() {
  local line
  has java || return 1
  line=$(java -version 2>&1 | head -n 1)
  [[ $line =~ \"([0-9]+) ]] && ((BASH_REMATCH[1] >= JAVA_NEEDED))
}

has_node() {
  local version
  has node && has npm || return 1
  version=$(node --version)
  version=${version#v}
  ((${version%%.*} >= NODE_NEEDED))
}

# What compiling needs beside Rust: pingora and rdkafka build C, and every crate needs a linker.
packages_to_compile() {
  has g++ && has gcc || printf '%s\n' g++
  has make || printf '%s\n' make
  has cmake || printf '%s\n' cmake
  [[ -s /etc/ssl/certs/ca-certificates.crt ]] || printf '%s\n' ca-certificates
}

# What the environment names is not started, so its package is not needed either.
packages_to_run() {
  if [[ -z ${DATABASE_URL:-} ]]; then
    has_postgres || printf '%s\n' postgresql
  elif ! has psql; then
    printf '%s\n' postgresql-client
  fi
  # Tests break servers of their own.
  [[ -n ${REDIS_URL:-} && $1 != test ]] || has redis-server || printf '%s\n' redis-server
  if [[ -z ${KAFKA_BROKERS:-} || $1 == test ]]; then
    has_java || printf '%s\n' default-jre-headless
    [[ -d $(kafka_jars) ]] || has mvn || printf '%s\n' maven
  fi
  [[ -n ${RPC_URL:-} && $1 != test ]] || has_node || printf '%s\n' nodejs npm
  if [[ $1 == test ]]; then packages_to_test; fi
  if [[ $1 == bench ]]; then packages_to_bench; fi
}

# What the gateway is compared with.
packages_to_bench() {
  has nginx || printf '%s\n' nginx
  has haproxy || printf '%s\n' haproxy
}

packages_to_test() {
  has shellcheck || printf '%s\n' shellcheck
  has strace || printf '%s\n' strace
  python3 -c 'import ensurepip, venv' 2>/dev/null || printf '%s\n' python3-venv
}

apt_get() {
  DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" \
    >>"$LOGS/$APT_LOG" 2>&1
}

# Debian starts what it installs and gives PostgreSQL a cluster. Neither is wanted here: while we
# install, the policy says no, and both files go away again.
POLICY=/usr/sbin/policy-rc.d
NO_CLUSTER=/etc/postgresql-common/createcluster.d/jobseal.conf

hold_services() {
  if [[ -e $POLICY ]]; then mv "$POLICY" "$POLICY.jobseal"; fi
  printf '#!/bin/sh\nexit 101\n' >"$POLICY"
  chmod 755 "$POLICY"
  mkdir -p "$(dirname "$NO_CLUSTER")"
  printf 'create_main_cluster = false\n' >"$NO_CLUSTER"
  HELD_SERVICES=1
}

release_services() {
  [[ -n ${HELD_SERVICES:-} ]] || return 0
  rm -f "$POLICY" "$NO_CLUSTER"
  if [[ -e $POLICY.jobseal ]]; then mv "$POLICY.jobseal" "$POLICY"; fi
  HELD_SERVICES=""
}

# Where we cannot install, all that is missing is said at once.
require_installable() {
  (($#)) || return 0
  if ! has apt-get; then
    die "$EX_UNAVAILABLE" "missing, and there is no apt-get here; install what Debian calls
  $*"
  fi
  if [[ $EUID -ne 0 ]]; then
    die "$EX_UNAVAILABLE" "missing, and only root may install: run
  sudo apt-get install --no-install-recommends $*"
  fi
}

install_packages() {
  local missing=("$@")
  ((${#missing[@]})) || return 0
  say "installing with apt: ${missing[*]}"
  blame apt-get "$LOGS/$APT_LOG"
  hold_services
  if [[ -z ${APT_UPDATED:-} ]]; then
    apt_get update
    APT_UPDATED=1
  fi
  apt_get install --no-install-recommends "${missing[@]}"
  release_services
  no_blame
}

# The toolchain is the one thing that is not installed.
require_rust() {
  if ! has cargo && [[ -x $HOME/.cargo/bin/cargo ]]; then PATH="$HOME/.cargo/bin:$PATH"; fi
  has cargo || die "$EX_UNAVAILABLE" "cargo is not in PATH: install the Rust toolchain first"
}

# The jars of one pom are the same for every clone: the folder is named by the pom's content.
kafka_jars() {
  local sum
  sum=$(sha256sum <"$LOCAL/kafka/pom.xml")
  printf '%s/kafka-%s' "$CACHE" "${sum:0:12}"
}

install_kafka() {
  local jars partial
  jars=$(kafka_jars)
  [[ ! -d $jars ]] || return 0
  say "fetching the Kafka jars with Maven"
  blame maven "$LOGS/maven.log"
  make_folder "$CACHE"
  partial=$(mktemp -d "$CACHE/kafka-partial.XXXXXX")
  await mvn -q -B -f "$LOCAL/kafka/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
    -DoutputDirectory="$partial" >>"$LOGS/maven.log" 2>&1
  chmod 755 "$partial"
  # Another clone may have been first; its copy is as good.
  mv -T "$partial" "$jars" 2>/dev/null || rm -rf "$partial"
  no_blame
}

# npm writes its own copy of the lock file when it is done.
has_node_modules() {
  [[ $1/node_modules/.package-lock.json -nt $1/package-lock.json ]]
}

install_node_modules() {
  local folder="$ROOT/contracts/solidity"
  ! has_node_modules "$folder" || return 0
  say "fetching anvil, forge and the Solidity packages with npm"
  blame npm "$LOGS/npm.log"
  # The binaries ship inside the packages; no install script is needed, so none is run.
  await env -C "$folder" npm ci --ignore-scripts --no-audit --no-fund >>"$LOGS/npm.log" 2>&1
  no_blame
}

# install_to_compile PURPOSE, install_to_run PURPOSE: `test` also brings what only the tests use.
install_to_compile() {
  local packages later
  require_rust
  mapfile -t packages < <(packages_to_compile)
  mapfile -t later < <(packages_to_run "$1")
  require_installable "${packages[@]}" "${later[@]}"
  install_packages "${packages[@]}"
}

install_to_run() {
  local packages
  mapfile -t packages < <(packages_to_run "$1")
  require_installable "${packages[@]}"
  install_packages "${packages[@]}"
  if [[ -z ${KAFKA_BROKERS:-} || $1 == test ]]; then install_kafka; fi
  if [[ -z ${RPC_URL:-} || $1 == test ]]; then install_node_modules; fi
}
