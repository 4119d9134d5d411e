# shellcheck shell=bash
# Functions that the scripts beside this file share. They `source` it; it does nothing by itself.

# Ends the script because of wrong use; nothing was launched.
fail() {
  echo "error: $*" >&2
  exit 2
}

# Prints the comment at the head of the script, without its first line.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# Prints a command, and runs it unless --dry_run is set.
run() {
  printf '%q ' "$@" >&2
  echo >&2
  if [ "${dry_run:-false}" = false ]; then
    "$@"
  fi
}

# Checks that a required flag has a value: need NAME VALUE.
need() {
  [ -n "$2" ] || fail "--$1 is missing; --help lists the flags"
}

# Joins words with a delimiter that none of them contains, in gcloud's form: ^DELIMITER^a=1~~b=2.
joined() {
  local delimiter word all text
  all="$*"
  for delimiter in '~~' '||' '@@' '##'; do
    [[ $all == *"$delimiter"* ]] && continue
    text=$1
    shift
    for word in "$@"; do text+=$delimiter$word; done
    printf '^%s^%s' "$delimiter" "$text"
    return
  done
  fail "the values contain ~~, ||, @@ and ##: remove one of these, to separate the values with it"
}

# Reads the flags of a launch; sets `name`, `arguments` (for gcloud) and `parameters` (NAME=VALUE).
# launch_flags batch|streaming "$@"
launch_flags() {
  local kind=$1 project='' region='' bucket='' template='' account='' subnetwork='' network=''
  local kms_key='' labels='' workers='' max_workers='' machine='' gpu=''
  local reservation='' flexrs=false private=true experiments=() options=() flag value
  shift
  name='' arguments=() parameters=() dry_run=false
  for flag in "$@"; do
    value=${flag#*=}
    case $flag in
      --help | -h) usage; exit 0 ;;
      --dry_run) dry_run=true ;;
      --public_ips) private=false ;;
      --flexrs) flexrs=true ;;
      --project=*) project=$value ;;
      --region=*) region=$value ;;
      --bucket=*) bucket=${value#gs://} ;;
      --template=*) template=$value ;;
      --job=*) name=$value ;;
      --service_account=*) account=$value ;;
      --network=*) network=$value ;;
      --subnetwork=*) subnetwork=$value ;;
      --kms_key=*) kms_key=$value ;;
      --labels=*) labels=$value ;;
      --num_workers=*) workers=$value ;;
      --max_workers=*) max_workers=$value ;;
      --machine_type=*) machine=$value ;;
      --gpu=*) gpu=$value && parameters+=("gpu_type=$value") ;;
      --gpu_count=* | --gpu_driver=*) parameters+=("${flag#--}") ;;
      --reservation=*) reservation=$value ;;
      --experiment=*) experiments+=("$value") ;;
      --option=*) options+=("$value") ;;
      --*) fail "unknown flag $flag; --help lists them. A parameter is NAME=VALUE, without dashes" ;;
      *=*) parameters+=("$flag") ;;
      *) fail "'$flag' is neither a flag nor a parameter: write NAME=VALUE" ;;
    esac
  done
  need project "$project"
  need region "$region"
  need bucket "$bucket"
  [ ${#parameters[@]} -gt 0 ] || fail "there are no parameters: write NAME=VALUE for each"
  if [ -n "$gpu" ]; then
    [ "$flexrs" = false ] || fail "--flexrs has no GPUs: remove it or --gpu"
    template=${template:-gs://$bucket/templates/$kind-gpu.json}
  fi
  [ "$flexrs" = false ] || [ "$kind" = batch ] || fail "--flexrs is for batch jobs only: remove it"
  case $reservation in
    '' | none) ;;
    automatic) experiments+=(automatically_use_created_reservation) ;;
    *) fail "--reservation is '$reservation', but must be automatic or none" ;;
  esac
  name=${name:-$kind-inference-$(date -u +%Y%m%d-%H%M%S)}
  arguments=(
    "--project=$project" "--region=$region"
    "--template-file-gcs-location=${template:-gs://$bucket/templates/$kind.json}"
    "--temp-location=gs://$bucket/tmp" "--staging-location=gs://$bucket/staging"
    "--parameters=$(joined "${parameters[@]}")"
  )
  [ "$private" = false ] || arguments+=(--disable-public-ips)
  [ "$flexrs" = false ] || arguments+=(--flexrs-goal=COST_OPTIMIZED)
  [ "$kind" = batch ] || arguments+=(--enable-streaming-engine)
  local pair
  for pair in "service-account-email=$account" "network=$network" "subnetwork=$subnetwork" \
    "dataflow-kms-key=$kms_key" "additional-user-labels=$labels" "num-workers=$workers" \
    "max-workers=$max_workers" "worker-machine-type=$machine"; do
    [ -z "${pair#*=}" ] || arguments+=("--$pair")
  done
  if [ ${#experiments[@]} -gt 0 ]; then
    arguments+=("--additional-experiments=$(joined "${experiments[@]}")")
  fi
  if [ ${#options[@]} -gt 0 ]; then
    arguments+=("--additional-pipeline-options=$(joined "${options[@]}")")
  fi
}

# The id of the running job with a name; empty if there is none: job_id PROJECT REGION NAME.
job_id() {
  gcloud dataflow jobs list --project="$1" --region="$2" --status=active \
    --filter="name=$3" --format='value(id)' --limit=1
}
