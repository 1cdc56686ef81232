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

# doctor AUDIT…: the audit must find each loss by name, and nothing once all is put back.
doctor() {
  local kind job status log="$STATE/work/doctored.log"
  for kind in "${DOCTORED[@]}"; do
    job=$(take "$kind")
    [[ -n $job && $job != *$'\n'* ]] || die 1 "there is not exactly one $kind to take away"
    status=0
    await "$@" >"$log" 2>&1 || status=$?
    put_back "$kind"
    if ((status != EX_FINDINGS)) || ! grep -q -- "$job" "$log"; then
      cat "$log" >&2
      die 1 "without one $kind of $job the audit exits $status, not $EX_FINDINGS naming the job"
    fi
    say "without one $kind: the audit exits $status and names $job"
  done
  status=0
  await "$@" >"$log" 2>&1 || status=$?
  if ((status != 0)); then
    cat "$log" >&2
    die 1 "with everything put back the audit exits $status"
  fi
  say "with everything put back: the audit is clean"
}
