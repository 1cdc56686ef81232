# shellcheck shell=bash
# The steps of ops/test and how their results are counted. A step that fails does not keep the
# others from running; the sum and the exit status say it. Sourced after start.sh.

# Beside the logs of the run, since the demo that is one of the steps begins those anew.
TEST_LOGS="$STATE/test"
PASSED=0
FAILED=0
FAILED_STEPS=()

# add PATTERN FILE: sums the first two groups of every line that matches.
add() {
  local line
  while IFS= read -r line; do
    if [[ $line =~ $1 ]]; then
      PASSED=$((PASSED + BASH_REMATCH[1]))
      FAILED=$((FAILED + BASH_REMATCH[2]))
    fi
  done <"$2"
}

# count STEP KIND STATUS LOG: test runners are counted test by test, anything else is one test.
count() {
  local before=$FAILED sum=$((PASSED + FAILED)) status=$3
  case $2 in
    cargo) add '^test result: [A-Za-z]+\. ([0-9]+) passed; ([0-9]+) failed' "$4" ;;
    forge) add '([0-9]+) tests passed, ([0-9]+) failed' "$4" ;;
    *) if ((status == 0)); then PASSED=$((PASSED + 1)); fi ;;
  esac
  # A runner that ran nothing has not passed.
  if ((PASSED + FAILED == sum)); then status=1; fi
  if ((status == 0)); then return; fi
  # It failed without a failing test: it did not compile, or the step is no test runner.
  if ((FAILED == before)); then FAILED=$((FAILED + 1)); fi
  FAILED_STEPS+=("$1 (see $4)")
}

logged() {
  local log=$1
  shift
  "$@" 2>&1 | tee "$log"
}

# step NAME KIND COMMAND…: shows and keeps what the command says.
step() {
  local name=$1 kind=$2 status=0 log
  shift 2
  log="$TEST_LOGS/${name// /-}.log"
  stage "$name"
  await logged "$log" "$@" || status=$?
  count "$name" "$kind" "$status" "$log"
  if ((status != 0)); then say "$name: FAILED"; fi
  stage_done
}

check_format() { cargo_ours fmt --all --check; }

# The build's own compiler is clippy's driver; cargo repeats the warnings of what is fresh, so the
# lints cost no second compilation. Any warning is an error here.
check_lints() {
  local messages="$TEST_LOGS/lints.json"
  if ! command -v clippy-driver >/dev/null; then
    echo "clippy is not part of this toolchain: rustup component add clippy"
    return 1
  fi
  cargo_ours build --workspace --all-targets --message-format json-diagnostic-rendered-ansi \
    >"$messages" || return 1
  if grep -q '"level":"\(warning\|error\)"' "$messages"; then
    echo "lints found something; shown by: cargo clippy --workspace --all-targets"
    cargo_ours build --workspace --all-targets
    return 1
  fi
  echo "no warning in any target"
}

check_rust() { cargo_ours test --workspace --no-fail-fast; }

# Beside libFuzzer itself, which is a crate, fuzzing wants cargo's subcommand. It needs no other
# toolchain where no sanitizer is asked for: safe Rust panics by itself.
readonly FUZZ_VERSION=0.13.2
readonly FUZZ_SECONDS=60

fuzz_install() {
  local folder="$CACHE/cargo-fuzz-$FUZZ_VERSION"
  PATH="$folder/bin:$PATH"
  [[ ! -x $folder/bin/cargo-fuzz ]] || return 0
  echo "installing cargo-fuzz $FUZZ_VERSION"
  make_folder "$CACHE"
  cargo install --quiet --locked --root "$folder" --version "$FUZZ_VERSION" cargo-fuzz
}

# Each target for a minute. What it found out is kept for the next time; what it found wrong is kept
# in the folder of logs.
check_fuzz() {
  local file target
  fuzz_install || return 1
  cd "$ROOT/gateway" || return 1
  for file in fuzz/fuzz_targets/*.rs; do
    target=$(basename "$file" .rs)
    make_folder "$CACHE"
    mkdir -p "$CACHE/fuzz-corpus/$target"
    echo "fuzzing $target for $FUZZ_SECONDS s"
    cargo fuzz run --fuzz-dir fuzz --dev --sanitizer none --features fuzz "$target" \
      "$CACHE/fuzz-corpus/$target" -- -max_total_time="$FUZZ_SECONDS" \
      -artifact_prefix="$TEST_LOGS/$target-" || return 1
  done
}

forge_here() {
  (cd "$ROOT/contracts/solidity" && PATH="$PWD/node_modules/.bin:$PATH" "$@")
}

check_solidity_format() { forge_here forge fmt --check; }
check_solidity() { forge_here forge test; }
check_artifacts() { forge_here ./build.sh --check; }

check_scripts() {
  # Its `source=` comments are relative to where it runs.
  (cd "$ROOT" && shellcheck -x ops/{up,demo,test,bench} .ci/run ops/local/*.sh ops/local/fault)
}

# The published parser, in an environment of its own, shared by the clones.
compose_python() {
  local sum folder partial
  sum=$(sha256sum <"$LOCAL/requirements.txt")
  folder="$CACHE/python-${sum:0:12}"
  if [[ ! -d $folder ]]; then
    make_folder "$CACHE"
    partial="$folder.$$"
    python3 -m venv "$partial" >&2
    "$partial/bin/pip" install -q --disable-pip-version-check -r "$LOCAL/requirements.txt" >&2
    mv -T "$partial" "$folder" 2>/dev/null || rm -rf "$partial"
  fi
  printf '%s/bin/python' "$folder"
}

check_compose() {
  local python
  python=$(compose_python) || return 1
  "$python" "$LOCAL/compose.py" || return 1
  notices "$python" 's/image: redis:7/image: redis:8/' || return 1
  notices "$python" 's/0\.0\.0\.0:9082/0.0.0.0:9182/' || return 1
  notices "$python" '/GATEWAYS_MAX/d' || return 1
  notices "$python" 's/^name:/nmae:/'
}

# A check that cannot fail proves nothing: each of these edits must be refused.
notices() {
  local edited="$STATE/docker-compose.edited.yml"
  sed "$2" "$ROOT/docker-compose.yml" >"$edited"
  if "$1" "$LOCAL/compose.py" "$edited" >/dev/null 2>&1; then
    echo "the compose check accepts the file after: sed '$2'"
    return 1
  fi
}
