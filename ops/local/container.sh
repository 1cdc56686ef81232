#!/usr/bin/env bash
# Entry point of the jobseal image. A variable NAME_FILE of the list below is read into NAME, then
# the command runs. `setup` makes what a first start needs: secrets, schemas, the contract.
set -euo pipefail

readonly STATE=/state
readonly SECRETS=(jobs.key relayer.key metering.key webhooks.key webhooks-secrets.key
  signatures.key)
readonly FROM_FILE=(ASSERTION_KEY JOBS_ASSERTION_KEY RELAYER_ASSERTION_KEY METERING_ASSERTION_KEY
  WEBHOOKS_ASSERTION_KEY WEBHOOKS_KEY SIGNATURES_KEY
  REGISTRY_ADDRESS)
# The first account of anvil's public development mnemonic: it is worth nothing anywhere else.
readonly ANVIL_GAS_KEY=0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80
# The second one: who may pause the registry and change its signers does not lie beside the relayer.
readonly ANVIL_ADMIN=0x70997970C51812dc3A010C7d01b50e0d17dc79C8

random_key() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

read_files() {
  local name file
  for name in "${FROM_FILE[@]}"; do
    file="${name}_FILE"
    if [[ -n ${!file:-} && -r ${!file} ]]; then
      export "$name=$(<"${!file}")"
      unset "$file"
    fi
  done
}

# Each is made once and then kept, so that a second `up` goes on where the first one stopped.
make_secrets() {
  local name
  umask 077
  mkdir -p "$STATE/issuer" "$STATE/spool"
  for name in "${SECRETS[@]}"; do
    [[ -s $STATE/$name ]] || random_key >"$STATE/$name"
  done
  [[ -s $STATE/attesters ]] || printf '0x%s\n' "$(random_key)" "$(random_key)" "$(random_key)" \
    >"$STATE/attesters"
  [[ -s $STATE/gas ]] || printf '%s\n' "$ANVIL_GAS_KEY" >"$STATE/gas"
  [[ -s $STATE/issuer/jwks.json ]] || loadtest issuer --dir "$STATE/issuer"
}

setup() {
  local binary address
  make_secrets
  for binary in gateway jobs relayer metering webhooks; do "$binary" migrate; done
  if [[ ! -s $STATE/registry ]]; then
    address=$(relayer deploy --threshold 2 --admin "$ANVIL_ADMIN")
    printf '%s\n' "$address" >"$STATE/registry"
  fi
}

# Compose cannot leave a variable out, only empty.
drop_empty() {
  local name
  for name in $(compgen -e); do
    [[ -n ${!name} ]] || unset "$name"
  done
}

drop_empty
if [[ ${1:-} == setup ]]; then
  setup
else
  read_files
  exec "$@"
fi
