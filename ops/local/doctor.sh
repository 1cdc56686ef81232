# shellcheck shell=bash
# Breaks the books of a running system on purpose: takes one usage row, one delivery or one
# confirmation away, and demands that the audit, which sees no database, names what is missing.
# Sourced after processes.sh; the caller gives the audit as a command.

readonly DOCTORED=(usage delivery confirmation)
# What the audit exits with when it found something.
readonly EX_FINDINGS=3

# sql TEXT: its single answer. Foreign keys are of no use to one who breaks things on purpose.
sql() {
  local options="-c session_replication_role=replica -c client_min_messages=warning"
  PGOPTIONS="$options" psql -X -q -A -t -d "$DATABASE_URL" -c "$1"
}

table_of() {
  case $1 in
    usage) echo metering.events ;;
    delivery) echo webhooks.deliveries ;;
    confirmation) echo relayer.confirmations ;;
  esac
}

# The row to take: about one job that was confirmed and told.
victim_of() {
  local job="(select job_id from webhooks.deliveries where event_type = 'job.confirmed'
    and status = 'DELIVERED' order by message_id limit 1)"
  case $1 in
    usage) echo "meter = 'JOB_SUBMISSION' and job_id = $job" ;;
    delivery) echo "event_type = 'job.confirmed' and job_id = $job" ;;
    confirmation) echo "job_id = $job" ;;
  esac
}

# take KIND: sets the row aside; prints its job as the API spells it.
take() {
  local table victim
  table=$(table_of "$1")
  victim=$(victim_of "$1")
  sql "create schema if not exists doctored" >&2
  sql "create table doctored.$1 as select * from $table where $victim" >&2
  sql "delete from $table where $victim" >&2
  sql "select 'job_' || replace(job_id::text, '-', '') from doctored.$1"
}

put_back() {
  sql "insert into $(table_of "$1") overriding system value select * from doctored.$1" >&2
  sql "drop table doctored.$1" >&2
}

# What the audit has to find about the job whose row is gone.
finding_of() {
  case $1 in
    usage) echo usage_missing ;;
    delivery) echo delivery_missing ;;
    confirmation) echo proof_missing ;;
  esac
}

# has_finding KIND JOB FILE: whether the audit's JSON has a finding of that kind about the job.
has_finding() {
  local text pattern="\"kind\": \"$1\",[^{}]*\"job_id\": \"$2\""
  text=$(<"$3")
  [[ $text =~ $pattern ]]
}

# doctor AUDIT…: the audit must find each loss by name, and nothing once all is put back.
doctor() {
  local kind job status found log="$STATE/work/doctored.log" json="$STATE/work/doctored.json"
  for kind in "${DOCTORED[@]}"; do
    job=$(take "$kind")
    [[ -n $job && $job != *$'\n'* ]] || die 1 "there is not exactly one $kind to take away"
    found=$(finding_of "$kind")
    status=0
    rm -f "$json"
    await "$@" --json "$json" >"$log" 2>&1 || status=$?
    put_back "$kind"
    if ((status != EX_FINDINGS)) || ! has_finding "$found" "$job" "$json"; then
      cat "$log" >&2
      die 1 "without one $kind of $job the audit exits $status, not $EX_FINDINGS with $found of it"
    fi
    say "without one $kind: the audit exits $status and names $job: $found"
  done
  status=0
  await "$@" >"$log" 2>&1 || status=$?
  if ((status != 0)); then
    cat "$log" >&2
    die 1 "with everything put back the audit exits $status"
  fi
  say "with everything put back: the audit is clean"
}
