# shellcheck shell=bash
# Reads system.conf: sections in order, their settings, and the variables of each process.
# Sourced after common.sh.

declare -A SYSTEM=()
SECTIONS=()

system_read() {
  local line section="" key value
  while IFS= read -r line; do
    if [[ $line =~ ^\[([a-z-]+)\]$ ]]; then
      section=${BASH_REMATCH[1]}
      SECTIONS+=("$section")
      SYSTEM["$section/variables"]=""
    elif [[ $line =~ ^([A-Za-z_]+)\ =\ (.*)$ ]]; then
      key=${BASH_REMATCH[1]}
      value=${BASH_REMATCH[2]}
      SYSTEM["$section/$key"]=$value
      if [[ $key == [A-Z]* ]]; then SYSTEM["$section/variables"]+="$key "; fi
    fi
  done <"$LOCAL/system.conf"
}

# system_get SECTION KEY: empty where the section does not say.
system_get() { printf '%s' "${SYSTEM["$1/$2"]:-}"; }

# The sections with a command, in the order in which they are started.
processes() {
  local section
  for section in "${SECTIONS[@]}"; do
    if [[ -n ${SYSTEM["$section/command"]:-} ]]; then printf '%s\n' "$section"; fi
  done
}

is_process() { [[ -n ${SYSTEM["$1/command"]:-} ]]; }

system_read
