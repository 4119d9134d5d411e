#!/usr/bin/env bash
# Launches a streaming job from the template. It runs until you drain it (drain.sh) or cancel it.
#
#   templates/run_streaming.sh --project=P --region=R --bucket=B --job=NAME [FLAG…] NAME=VALUE…
#
# NAME=VALUE are the template's parameters: docs/parameters.md lists them all. For example
#
#   templates/run_streaming.sh --project=p --region=us-central1 --bucket=b --job=answers \
#     input_subscription=projects/p/subscriptions/tickets \
#     prompt_file=gs://b/prompts/classify.jinja model=gemini-2.5-flash \
#     output_table=p:support.answers dead_letter_topic=projects/p/topics/tickets-failed
#
#   --project=P           the project that runs the job and is billed for it
#   --region=R            the workers' region; use the region of the data
#   --bucket=B            for temporary files, staging and, below templates/, the specs
#   --job=NAME            the job's name; an update needs the same one
#   --template=URI        the spec (gs://B/templates/streaming.json, or streaming-gpu.json with --gpu)
#   --service_account=E   the workers' identity; by default the project's default account
#   --network=N --subnetwork=S   the network of the workers' addresses
#   --public_ips          gives workers public addresses; without it they need Private Google Access
#   --kms_key=K           encrypts the job's disks and state
#   --labels=K=V,…        labels of the job and its machines
#   --num_workers=N --max_workers=N --machine_type=M
#   --gpu=TYPE            such as nvidia-l4, for the workers that call the model (backend=vllm); with
#                         --gpu_count=N and --gpu_driver=VERSION. --machine_type is that of all others
#   --reservation=automatic   uses a reservation of machines with GPUs
#   --experiment=E        another experiment or service option, such as
#                         streaming_mode_at_least_once; can be repeated
#   --option=NAME=VALUE   another option of Apache Beam; can be repeated
#   --dry_run             only prints the command
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

launch_flags streaming "$@"
run gcloud dataflow flex-template run "$name" "${arguments[@]}"
