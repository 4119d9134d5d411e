#!/usr/bin/env bash
# Drains a streaming job: it takes no more messages, finishes those it has, writes them and ends.
# Messages that wait in the subscription stay there.
#
#   templates/drain.sh --project=P --region=R --job=NAME [--dry_run]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

project='' region='' job='' dry_run=false
for flag in "$@"; do
  case $flag in
    --help | -h) usage; exit 0 ;;
    --dry_run) dry_run=true ;;
    --project=*) project=${flag#*=} ;;
    --region=*) region=${flag#*=} ;;
    --job=*) job=${flag#*=} ;;
    *) fail "unknown flag $flag; --help lists them" ;;
  esac
done
need project "$project"
need region "$region"
need job "$job"
id=$(job_id "$project" "$region" "$job")
[ -n "$id" ] || fail "no job named '$job' is running in $region of $project"
run gcloud dataflow jobs drain "$id" --project="$project" --region="$region"
