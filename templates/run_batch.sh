#!/usr/bin/env bash
# Launches a batch job from the template.
#
#   templates/run_batch.sh --project=P --region=R --bucket=B [FLAG…] NAME=VALUE…
#
# NAME=VALUE are the template's parameters: docs/parameters.md lists them all. For example
#
#   templates/run_batch.sh --project=p --region=us-central1 --bucket=b --max_workers=10 \
#     input_files='gs://b/tickets/*.jsonl' prompt_file=gs://b/prompts/classify.jinja \
#     model=gemini-2.5-flash output_table=p:support.answers
#
#   --project=P           the project that runs the job and is billed for it
#   --region=R            the workers' region; use the region of the data
#   --bucket=B            for temporary files, staging and, below templates/, the specs
#   --template=URI        the spec (gs://B/templates/batch.json, or batch-gpu.json with --gpu)
#   --job=NAME            the job's name (batch-inference- and the time)
#   --service_account=E   the workers' identity; by default the project's default account
#   --network=N --subnetwork=S   the network of the workers' addresses
#   --public_ips          gives workers public addresses; without it they need Private Google Access
#   --kms_key=K           encrypts the job's disks and state
#   --labels=K=V,…        labels of the job and its machines
#   --num_workers=N --max_workers=N --machine_type=M
#   --flexrs              costs less, starts within six hours
#   --gpu=TYPE            such as nvidia-l4, for the workers that call the model (backend=vllm); with
#                         --gpu_count=N and --gpu_driver=VERSION. --machine_type is that of all others
#   --reservation=automatic   uses a reservation of machines with GPUs
#   --experiment=E        another experiment or service option; can be repeated
#   --option=NAME=VALUE   another option of Apache Beam; can be repeated
#   --dry_run             only prints the command
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

launch_flags batch "$@"
run gcloud dataflow flex-template run "$name" "${arguments[@]}"
