#!/usr/bin/env bash
# Builds the images and the specs with Cloud Build: tests, images, specs, a validated launch.
#
#   templates/build.sh --project=P --region=R --bucket=B [FLAG…]
#
#   --project=P        the project that builds, and keeps the images
#   --region=R         where the Artifact Registry repository is
#   --bucket=B         the specs go to gs://B/templates/
#   --repository=NAME  of Artifact Registry; made when it does not exist (inference)
#   --tag=TAG          of the images (the commit)
#   --gpu              also the image with vLLM for GPUs: several GB, half an hour
#   --skip_tests       builds without running the tests first
#   --dry_run          prints the commands only
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

project='' region='' bucket='' repository=inference tag='' gpu=false tests=true dry_run=false
for flag in "$@"; do
  case $flag in
    --help | -h) usage; exit 0 ;;
    --dry_run) dry_run=true ;;
    --gpu) gpu=true ;;
    --skip_tests) tests=false ;;
    --project=*) project=${flag#*=} ;;
    --region=*) region=${flag#*=} ;;
    --bucket=*) bucket=${flag#*=} && bucket=${bucket#gs://} ;;
    --repository=*) repository=${flag#*=} ;;
    --tag=*) tag=${flag#*=} ;;
    *) fail "unknown flag $flag; --help lists them" ;;
  esac
done
need project "$project"
need region "$region"
need bucket "$bucket"
cd "$(dirname "$0")/.."
tag=${tag:-$(git rev-parse --short HEAD)}
if ! gcloud artifacts repositories describe "$repository" --project="$project" \
  --location="$region" >/dev/null 2>&1; then
  run gcloud artifacts repositories create "$repository" --project="$project" \
    --location="$region" --repository-format=docker
fi
image=$region-docker.pkg.dev/$project/$repository/batch-inference
run gcloud builds submit . --project="$project" --config=templates/cloudbuild.yaml \
  --substitutions="_IMAGE=$image,_TAG=$tag,_BUCKET=$bucket,_REGION=$region,_GPU=$gpu,_TESTS=$tests"
