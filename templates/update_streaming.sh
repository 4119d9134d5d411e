#!/usr/bin/env bash
# Replaces a running streaming job by one with other parameters or another image. State and
# unfinished messages go over; Dataflow refuses an update that would lose some.
#
#   templates/update_streaming.sh --project=P --region=R --bucket=B --job=NAME [FLAG…] NAME=VALUE…
#
# Takes the flags of run_streaming.sh, which lists them, and all parameters again: an update
# inherits none. In addition
#
#   --mappings=OLD=NEW,…           steps that were renamed between the two versions
#   --compatibility=VERSION        the Apache Beam version whose behaviour to keep, such as 2.77.0
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

mappings='' rest=() named=false
for flag in "$@"; do
  case $flag in
    --mappings=*) mappings=${flag#*=} ;;
    --compatibility=*) rest+=("--option=update_compatibility_version=${flag#*=}") ;;
    --job=?*) named=true rest+=("$flag") ;;
    --help | -h) usage; exit 0 ;;
    *) rest+=("$flag") ;;
  esac
done
[ "$named" = true ] || fail "--job is missing: the name of the job to replace"
launch_flags streaming "${rest[@]}"
arguments+=(--update)
[ -z "$mappings" ] || arguments+=("--transform-name-mappings=$mappings")
run gcloud dataflow flex-template run "$name" "${arguments[@]}"
