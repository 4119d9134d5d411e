#!/usr/bin/env bash
# The first run in a real project: 100 records as a batch job, 100 messages as a stream. Checks that
# every record ended exactly once, and that the pipeline's own summary says so; estimates the cost,
# and deletes everything that it created.
#
#   templates/smoke.sh PROJECT --bucket=B [FLAG…]
#
# It needs the specs in gs://B/templates/ (templates/build.sh puts them there) and takes about half
# an hour. It asks the model for one word, 200 times.
#
#   --region=R            the region of the jobs and the dataset (us-central1)
#   --model=M             a Gemini model (gemini-2.5-flash-lite)
#   --service_account=E --network=N --subnetwork=S --public_ips   as in run_batch.sh
#   --only=batch|streaming   runs only one of the two
#   --keep                deletes nothing
#   --dry_run             only prints the commands
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"
here=$(dirname "$0")

project='' bucket='' region=us-central1 model=gemini-2.5-flash-lite only='' keep=false dry_run=false
account='' network=()
for flag in "$@"; do
  case $flag in
    --help | -h) usage; exit 0 ;;
    --dry_run) dry_run=true ;;
    --keep) keep=true ;;
    --bucket=*) bucket=${flag#*=} && bucket=${bucket#gs://} ;;
    --region=*) region=${flag#*=} ;;
    --model=*) model=${flag#*=} ;;
    --only=batch | --only=streaming) only=${flag#*=} ;;
    --service_account=*) account=${flag#*=} && network+=("$flag") ;;
    --network=* | --subnetwork=* | --public_ips) network+=("$flag") ;;
    -*) fail "unknown flag $flag; --help lists them" ;;
    *) project=$flag ;;
  esac
done
[ -n "$project" ] || fail "the project is missing: templates/smoke.sh PROJECT --bucket=B"
need bucket "$bucket"

id=smoke$(date -u +%Y%m%d%H%M%S)
dataset=$id topic=$id subscription=$id folder=gs://$bucket/smoke/$id
if [ "$dry_run" = true ]; then network+=(--dry_run); fi
common=(--project="$project" --region="$region" --bucket="$bucket" --max_workers=2)
common+=(${network[@]+"${network[@]}"}) # for bash 3.2 an empty array is an unset variable

# Runs also after a failed step; cancels jobs that still run.
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

# The one number that a query returns.
query_number() {
  bq --project_id="$project" query --quiet --use_legacy_sql=false --format=csv "$1" | tail -n 1
}

# wait_for NAME STATE…: waits until the newest job with a name is in one of the states.
wait_for() {
  local name=$1 state='' deadline=$((SECONDS + 2400))
  shift
  while [ $SECONDS -lt $deadline ]; do
    state=$(gcloud dataflow jobs list --project="$project" --region="$region" \
      --filter="name=$name" --sort-by=~creationTime --limit=1 --format='value(state)')
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

# reconcile TABLE SUMMARY: checks that 100 records are results or dead letters, once each, and that
# SUMMARY, a query of TABLE_runs, agrees.
reconcile() {
  local results letters ids cost summary
  results=$(query_number "SELECT COUNT(*) FROM \`$project.$dataset.$1\`")
  # The first dead letter creates the table.
  letters=$(query_number "SELECT COUNT(*) FROM \`$project.$dataset.$1_dead_letters\`" 2>&1) || letters=0
  ids=$(query_number "SELECT COUNT(DISTINCT record_id) FROM \`$project.$dataset.$1\`")
  cost=$(query_number "SELECT SUM(cost_usd) FROM \`$project.$dataset.$1\`")
  summary=$(query_number "SELECT FORMAT('%d %t', SUM(records), LOGICAL_AND(reconciled)) FROM ($2)")
  echo "$1: $results results, $letters dead letters, model cost (list price) USD ${cost:-unknown}"
  if [ $((results + letters)) -ne 100 ] || [ "$ids" -ne "$results" ]; then
    echo "FAILED: $1 does not reconcile: 100 records, $results results of $ids ids" >&2
    exit 1
  fi
  if [ "$summary" != '100 true' ]; then
    echo "FAILED: $1_runs says '$summary' (records, reconciled), not '100 true'" >&2
    exit 1
  fi
  [ "$letters" -eq 0 ] || echo "some records failed: see $project:$dataset.$1_dead_letters" >&2
}

# USD per vCPU hour, GB hour of memory, GB hour of disk, and GB through the shuffle or the Streaming
# Engine. List prices of us-central1 from Apache Beam 2.77's own tests
# (testing/load_tests/dataflow_cost_consts.py), read in November 2026; for other regions see
# https://cloud.google.com/dataflow/pricing.
batch_prices='0.056 0.003557 0.000054 0.011'
streaming_prices='0.069 0.0035557 0.000054 0.018'

# resources NAME PRICES: prints the resources that Dataflow charges for, from its own metrics, and an
# estimate of their cost, without the launcher's machine and other services.
resources() {
  local id
  id=$(gcloud dataflow jobs list --project="$project" --region="$region" --filter="name=$1" \
    --sort-by=~creationTime --limit=1 --format='value(id)')
  gcloud dataflow metrics list "$id" --project="$project" --region="$region" --source=service \
    --format='csv[no-heading](name.name, scalar)' | awk -F, -v prices="$2" '
      BEGIN { split(prices, usd, " ") }
      $1 == "TotalVcpuTime" { vcpu += $2 / 3600 }
      $1 == "TotalMemoryUsage" { memory += $2 / 1024 / 3600 }
      $1 == "TotalPdUsage" { disk += $2 / 3600 }
      $1 == "BillableShuffleDataProcessed" || $1 == "TotalStreamingDataProcessed" { data += $2 }
      END {
        printf "Dataflow: %.3f vCPU hours, %.3f GB hours of memory, %.1f of disk, %.3f GB of data: ",
          vcpu, memory, disk, data
        printf "about USD %.4f (estimate, list prices of us-central1)\n",
          vcpu * usd[1] + memory * usd[2] + disk * usd[3] + data * usd[4]
      }'
}

for number in $(seq 100); do
  printf '{"id": "%d", "text": "Record %d."}\n' "$number" "$number"
done >"$records"
prompt='Answer with the one word yes. {{ text }}'

run bq --project_id="$project" --location="$region" mk -d "$dataset"
if [ -n "$account" ]; then
  run bq --project_id="$project" --location="$region" query --use_legacy_sql=false \
    "GRANT \`roles/bigquery.dataEditor\` ON SCHEMA \`$project\`.$dataset TO 'serviceAccount:$account'"
fi
run gcloud storage cp "$records" "$folder/in.jsonl"

if [ "$only" != streaming ]; then
  "$here/run_batch.sh" "${common[@]}" --job="$id-batch" "input_files=$folder/*.jsonl" \
    "prompt=$prompt" "model=$model" "output_table=$project:$dataset.batch"
  if [ "$dry_run" = false ]; then
    wait_for "$id-batch" Done
    reconcile batch "SELECT records, reconciled FROM \`$project.$dataset.batch_runs\`"
    resources "$id-batch" "$batch_prices"
  fi
fi

if [ "$only" != batch ]; then
  run gcloud pubsub topics create "$topic" --project="$project"
  run gcloud pubsub subscriptions create "$subscription" --project="$project" --topic="$topic" \
    --ack-deadline=600
  for role in ${account:+roles/pubsub.subscriber roles/pubsub.viewer}; do
    run gcloud pubsub subscriptions add-iam-policy-binding "$subscription" --project="$project" \
      --role="$role" --member="serviceAccount:$account"
  done
  "$here/run_streaming.sh" "${common[@]}" --job="$id-streaming" \
    "input_subscription=projects/$project/subscriptions/$subscription" \
    "prompt=$prompt" "model=$model" "output_table=$project:$dataset.streaming"
  if [ "$dry_run" = false ]; then
    wait_for "$id-streaming" Running
    while read -r record; do
      gcloud pubsub topics publish "$topic" --project="$project" --message="$record" >/dev/null
    done <"$records"
    deadline=$((SECONDS + 900))
    until [ "$(query_number "SELECT COUNT(*) FROM \`$project.$dataset.streaming\`")" = 100 ] ||
      [ $SECONDS -gt $deadline ]; do
      sleep 20
    done
    "$here/drain.sh" --project="$project" --region="$region" --job="$id-streaming"
    wait_for "$id-streaming" Drained
    # A row per minute, written again after each change; the highest revision is valid.
    reconcile streaming "SELECT records, reconciled FROM \`$project.$dataset.streaming_runs\` WHERE TRUE
      QUALIFY ROW_NUMBER() OVER (PARTITION BY read_minute ORDER BY revision DESC, finished_at DESC) = 1"
    resources "$id-streaming" "$streaming_prices"
  fi
fi
[ "$dry_run" = true ] || echo "done: every record ended exactly once" >&2
