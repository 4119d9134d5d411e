#!/usr/bin/env bash
# The first run in a real project: 100 records as a batch job, 100 messages as a stream. Checks that
# every record ended exactly once, prints what it cost, and deletes what it made.
#
#   templates/smoke.sh PROJECT --bucket=B [FLAG…]
#
# It needs the specs in gs://B/templates/ (templates/build.sh puts them there) and takes about half
# an hour. The model is asked 200 times for one word.
#
#   --region=R            of the jobs and the dataset (us-central1)
#   --model=M             of Gemini (gemini-2.5-flash-lite)
#   --service_account=E --network=N --subnetwork=S --public_ips   as in run_batch.sh
#   --only=batch|streaming   one of the two
#   --keep                deletes nothing
#   --dry_run             prints the commands only
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"
here=$(dirname "$0")

project='' bucket='' region=us-central1 model=gemini-2.5-flash-lite only='' keep=false dry_run=false
network=()
for flag in "$@"; do
  case $flag in
    --help | -h) usage; exit 0 ;;
    --dry_run) dry_run=true ;;
    --keep) keep=true ;;
    --bucket=*) bucket=${flag#*=} && bucket=${bucket#gs://} ;;
    --region=*) region=${flag#*=} ;;
    --model=*) model=${flag#*=} ;;
    --only=batch | --only=streaming) only=${flag#*=} ;;
    --service_account=* | --network=* | --subnetwork=* | --public_ips) network+=("$flag") ;;
    -*) fail "unknown flag $flag; --help lists them" ;;
    *) project=$flag ;;
  esac
done
[ -n "$project" ] || fail "the project is missing: templates/smoke.sh PROJECT --bucket=B"
need bucket "$bucket"

id=smoke$(date -u +%Y%m%d%H%M%S)
dataset=$id topic=$id subscription=$id folder=gs://$bucket/smoke/$id
if [ "$dry_run" = true ]; then network+=(--dry_run); fi
common=(--project="$project" --region="$region" --bucket="$bucket" --max_workers=2 "${network[@]}")

# Also when a step fails; a job that still runs is cancelled.
clean_up() {
  local name job
  rm -f "$records"
  for name in "$id-batch" "$id-streaming"; do
    job=$(job_id "$project" "$region" "$name") || true
    [ -z "$job" ] || run gcloud dataflow jobs cancel "$job" --project="$project" --region="$region"
  done
  [ "$keep" = false ] || return 0
  run bq --project_id="$project" rm -r -f -d "$dataset" || true
  run gcloud storage rm --recursive --quiet "$folder" || true
  if [ "$only" != batch ]; then
    run gcloud pubsub subscriptions delete "$subscription" --project="$project" --quiet || true
    run gcloud pubsub topics delete "$topic" --project="$project" --quiet || true
  fi
}
records=$(mktemp)
if [ "$dry_run" = true ]; then trap 'rm -f "$records"' EXIT; else trap clean_up EXIT; fi

# One number of a query.
ask() {
  bq --project_id="$project" query --quiet --use_legacy_sql=false --format=csv "$1" | tail -n 1
}

# wait_for NAME STATE…: until the newest job of a name is in a state that is wanted.
wait_for() {
  local name=$1 state='' deadline=$((SECONDS + 2400))
  shift
  while [ $SECONDS -lt $deadline ]; do
    state=$(gcloud dataflow jobs list --project="$project" --region="$region" \
      --filter="name=$name" --sort-by=~createTime --limit=1 --format='value(state)')
    case " $* " in *" $state "*) return 0 ;; esac
    case $state in
      Failed | Cancelled)
        echo "FAILED: job $name ended as $state" >&2
        exit 1
        ;;
    esac
    sleep 20
  done
  echo "FAILED: job $name is '$state' after 40 minutes, not one of: $*" >&2
  exit 1
}

# reconcile TABLE: 100 records, each once, as a result or a dead letter.
reconcile() {
  local results letters ids cost
  results=$(ask "SELECT COUNT(*) FROM \`$project.$dataset.$1\`")
  # The table is made with the first dead letter.
  letters=$(ask "SELECT COUNT(*) FROM \`$project.$dataset.$1_dead_letters\`" 2>&1) || letters=0
  ids=$(ask "SELECT COUNT(DISTINCT record_id) FROM \`$project.$dataset.$1\`")
  cost=$(ask "SELECT SUM(cost_usd) FROM \`$project.$dataset.$1\`")
  echo "$1: $results results, $letters dead letters, model cost (list price) USD ${cost:-unknown}"
  if [ $((results + letters)) -ne 100 ] || [ "$ids" -ne "$results" ]; then
    echo "FAILED: $1 does not reconcile: 100 records, $results results of $ids ids" >&2
    exit 1
  fi
  [ "$letters" -eq 0 ] || echo "look at $project:$dataset.$1_dead_letters: some failed" >&2
}

# What Dataflow charges for, as its own metrics count it.
resources() {
  gcloud dataflow metrics list "$1" --project="$project" --region="$region" --source=service \
    --format='table(name.name, scalar)' | grep -E 'TotalVcpuTime|TotalMemoryUsage|Pd' || true
}

for number in $(seq 100); do
  printf '{"id": "%d", "text": "Record %d."}\n' "$number" "$number"
done >"$records"
prompt='Answer with the one word yes. {{ text }}'

run bq --project_id="$project" --location="$region" mk -d "$dataset"
run gcloud storage cp "$records" "$folder/in.jsonl"

if [ "$only" != streaming ]; then
  "$here/run_batch.sh" "${common[@]}" --job="$id-batch" "input_files=$folder/*.jsonl" \
    "prompt=$prompt" "model=$model" "output_table=$project:$dataset.batch"
  if [ "$dry_run" = false ]; then
    wait_for "$id-batch" Done
    reconcile batch
    resources "$(gcloud dataflow jobs list --project="$project" --region="$region" \
      --filter="name=$id-batch" --limit=1 --format='value(id)')"
  fi
fi

if [ "$only" != batch ]; then
  run gcloud pubsub topics create "$topic" --project="$project"
  run gcloud pubsub subscriptions create "$subscription" --project="$project" --topic="$topic" \
    --ack-deadline=600
  "$here/run_streaming.sh" "${common[@]}" --job="$id-streaming" \
    "input_subscription=projects/$project/subscriptions/$subscription" \
    "prompt=$prompt" "model=$model" "output_table=$project:$dataset.streaming"
  if [ "$dry_run" = false ]; then
    wait_for "$id-streaming" Running
    while read -r record; do
      gcloud pubsub topics publish "$topic" --project="$project" --message="$record" >/dev/null
    done <"$records"
    deadline=$((SECONDS + 900))
    until [ "$(ask "SELECT COUNT(*) FROM \`$project.$dataset.streaming\`")" = 100 ] ||
      [ $SECONDS -gt $deadline ]; do
      sleep 20
    done
    "$here/drain.sh" --project="$project" --region="$region" --job="$id-streaming"
    wait_for "$id-streaming" Drained
    reconcile streaming
  fi
fi
[ "$dry_run" = true ] || echo "done: every record ended exactly once" >&2
