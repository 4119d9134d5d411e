#!/usr/bin/env bash
# Builds the images and the specs with Cloud Build: tests, images, specs, validated launches. Only if
# all of that succeeds does it replace the specs that jobs are launched from.
#
#   templates/build.sh --project=P --region=R --bucket=B [FLAG…]
#
#   --project=P        the project that builds and stores the images
#   --region=R         the region of the Artifact Registry repository
#   --bucket=B         the source goes to gs://B/source/, the specs to gs://B/templates/TAG/ and, in
#                      the end, to gs://B/templates/
#   --service_account=E  the build's identity; by default the project's default account
#   --worker=E         the workers' identity, which the validated launches name; by default the
#                      project's default account
#   --repository=NAME  the Artifact Registry repository; created if it does not exist (inference)
#   --tag=TAG          the tag of the images and the specs (the commit)
#   --gpu              also builds the image with vLLM for GPUs: several GB, half an hour
#   --skip_tests       builds without running the tests first
#   --dry_run          only prints the commands
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

project='' region='' bucket='' account='' worker='' repository=inference tag='' gpu=false tests=true
dry_run=false
for flag in "$@"; do
  case $flag in
    --help | -h) usage; exit 0 ;;
    --dry_run) dry_run=true ;;
    --gpu) gpu=true ;;
    --skip_tests) tests=false ;;
    --project=*) project=${flag#*=} ;;
    --region=*) region=${flag#*=} ;;
    --bucket=*) bucket=${flag#*=} && bucket=${bucket#gs://} ;;
    --service_account=*) account=${flag#*=} ;;
    --worker=*) worker=${flag#*=} ;;
    --repository=*) repository=${flag#*=} ;;
    --tag=*) tag=${flag#*=} ;;
    *) fail "unknown flag $flag; --help lists them" ;;
  esac
done
need project "$project"
need region "$region"
need bucket "$bucket"
cd "$(dirname "$0")/.."
revision=$(git rev-parse HEAD)
tag=${tag:-${revision:0:7}}
old=gs://$bucket/templates/batch-gpu.json
if [ "$gpu" = false ] && gcloud storage ls "$old" --project="$project" >/dev/null 2>&1; then
  fail "$old exists and would stay at an older version: add --gpu, or delete the specs for GPUs"
fi
if ! gcloud artifacts repositories describe "$repository" --project="$project" \
  --location="$region" >/dev/null 2>&1; then
  run gcloud artifacts repositories create "$repository" --project="$project" \
    --location="$region" --repository-format=docker
fi
image=$region-docker.pkg.dev/$project/$repository/batch-inference
arguments=("--project=$project" --config=templates/cloudbuild.yaml
  "--gcs-source-staging-dir=gs://$bucket/source"
  "--substitutions=_IMAGE=$image,_TAG=$tag,_REVISION=$revision,_BUCKET=$bucket,_REGION=$region,_WORKER=$worker,_GPU=$gpu,_TESTS=$tests")
if [ -n "$account" ]; then
  arguments+=("--service-account=projects/$project/serviceAccounts/$account")
fi
run gcloud builds submit . "${arguments[@]}"
