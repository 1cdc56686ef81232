#!/usr/bin/env bash
# Builds the contract and what is checked in from it:
#   artifacts/JobsRegistry.json   ABI and creation bytecode, so that the Rust needs no node
#   GAS.md                        what each design and each call costs, measured
# `build.sh` writes both. `build.sh --check` writes neither, and fails with the difference.
# Both install the pinned tools first where they are missing (npm, and nothing else).
set -euo pipefail
cd "$(dirname "$0")"

case "${1:-}" in
  "") check= ;;
  --check) check=1 ;;
  *) echo "usage: build.sh [--check]" >&2; exit 64 ;;
esac

PATH="$PWD/node_modules/.bin:$PATH"
# npm writes its own copy of the lock file last: without it an install is missing or unfinished.
[[ node_modules/.package-lock.json -nt package-lock.json ]] || npm ci
if grep -q '"resolved"' package-lock.json; then
  echo "package-lock.json names a registry: run npm install --package-lock-only" >&2
  exit 1
fi

forge build --quiet
fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
node -e '
  const { abi, bytecode } = require("./out/JobsRegistry.sol/JobsRegistry.json");
  console.log(JSON.stringify({ abi, bytecode: bytecode.object }, null, 2));
' > "$fresh"

if [[ -n $check ]]; then
  # Only the lines that differ, shortened: the bytecode is one line of 25,000 characters.
  diff artifacts/JobsRegistry.json "$fresh" | cut -c1-120 >&2 || true
  cmp -s artifacts/JobsRegistry.json "$fresh" || {
    echo "artifacts/JobsRegistry.json is not what the sources give: run build.sh" >&2
    exit 1
  }
  forge test --match-contract GasTest
else
  mkdir -p artifacts
  cp "$fresh" artifacts/JobsRegistry.json
  chmod 644 artifacts/JobsRegistry.json
  WRITE_GAS_TABLE=true forge test --match-contract GasTest
fi
