#!/usr/bin/env bash
# Asks Dataflow whether a template would launch, without a launch (`validateOnly`): the spec is
# readable, the parameters match its patterns, and the caller may launch it.
#
#   templates/validate.sh --project=P --region=R --template=gs://B/templates/batch.json NAME=VALUE…
#
#   --bucket=B           the bucket for temporary files (the template's)
#   --service_account=E  the workers' identity (the project's default)
#   --dry_run            only prints the request
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

project='' region='' template='' bucket='' account='' dry_run=false parameters=()
for flag in "$@"; do
  case $flag in
    --help | -h) usage; exit 0 ;;
    --dry_run) dry_run=true ;;
    --project=*) project=${flag#*=} ;;
    --region=*) region=${flag#*=} ;;
    --template=*) template=${flag#*=} ;;
    --bucket=*) bucket=${flag#*=} && bucket=${bucket#gs://} ;;
    --service_account=*) account=${flag#*=} ;;
    --*) fail "unknown flag $flag; --help lists them" ;;
    *=*) parameters+=("$flag") ;;
    *) fail "'$flag' is neither a flag nor a parameter: write NAME=VALUE" ;;
  esac
done
need project "$project"
need region "$region"
need template "$template"
[ ${#parameters[@]} -gt 0 ] || fail "there are no parameters: write NAME=VALUE for each"
bucket=${bucket:-$(cut -d/ -f3 <<<"$template")}
request=$(python3 - "$template" "$bucket" "$account" "${parameters[@]}" <<'PYTHON'
import json
import sys

template, bucket, account, *words = sys.argv[1:]
environment = {"tempLocation": f"gs://{bucket}/tmp"}
if account:
    environment["serviceAccountEmail"] = account
launch = {
    "jobName": "validate-only",
    "containerSpecGcsPath": template,
    "parameters": dict(word.split("=", 1) for word in words),
    "environment": environment,
}
print(json.dumps({"launchParameter": launch, "validateOnly": True}))
PYTHON
)
host=${DATAFLOW_API:-https://dataflow.googleapis.com}
url=$host/v1b3/projects/$project/locations/$region/flexTemplates:launch
if [ "$dry_run" = true ]; then
  echo "$request"
  exit
fi
token=$(gcloud auth print-access-token)
# The token goes through a file descriptor: other users could read an argument.
curl --silent --show-error --fail-with-body --request POST "$url" \
  --header 'Content-Type: application/json' --header @<(echo "Authorization: Bearer $token") \
  --data "$request"
echo "$template would launch" >&2
