# The batch job is launched by Cloud Scheduler, the streaming job by Terraform. Both need the specs
# in the bucket: apply with jobs = false, run templates/build.sh, apply again. They depend on all that
# their identities may do, so that a job is drained before any of it is taken away.

locals {
  output_table = "${var.project}:${google_bigquery_dataset.answers.dataset_id}.${google_bigquery_table.answers["answers"].table_id}"
  spec_folder  = "gs://${google_storage_bucket.work.name}/templates"
  shared       = merge({ output_table = local.output_table }, var.parameters)

  batch_parameters = merge(local.shared, try(var.batch.parameters, {}))
  from_bigquery    = ["input_query", "input_table", "input_dead_letters"] # others refuse temp_dataset
  temporary = [
    for dataset in google_bigquery_dataset.temporary : "${var.project}:${dataset.dataset_id}"
    if length(setintersection(keys(local.batch_parameters), local.from_bigquery)) > 0
  ]

  # The runtime environment of the API; what is null is left out.
  environment = { for name, value in {
    tempLocation          = "gs://${google_storage_bucket.work.name}/tmp"
    stagingLocation       = "gs://${google_storage_bucket.work.name}/staging"
    serviceAccountEmail   = google_service_account.worker.email
    ipConfiguration       = "WORKER_IP_PRIVATE"
    maxWorkers            = var.max_workers
    machineType           = var.machine_type
    subnetwork            = var.subnetwork
    kmsKeyName            = var.kms_key
    additionalExperiments = length(var.additional_experiments) == 0 ? null : var.additional_experiments
    additionalUserLabels  = local.labels
  } : name => value if value != null }

  batch_request = {
    jobName              = "${var.name}-batch"
    containerSpecGcsPath = "${local.spec_folder}/batch${var.template}.json"
    parameters           = merge({ for name in local.temporary : "temp_dataset" => name }, local.batch_parameters)
    environment          = local.environment
  }
}

# The job has the same name each time: while one runs, Dataflow refuses the next.
resource "google_cloud_scheduler_job" "batch" {
  count = var.jobs ? local.batches : 0

  project   = var.project
  region    = var.region
  name      = "${var.name}-batch"
  schedule  = var.batch.schedule
  time_zone = var.batch.time_zone

  retry_config {
    retry_count = 0
  }

  http_target {
    http_method = "POST"
    uri         = "https://dataflow.googleapis.com/v1b3/projects/${var.project}/locations/${var.region}/flexTemplates:launch"
    headers     = { "Content-Type" = "application/json" }
    body        = base64encode(jsonencode({ launchParameter = local.batch_request }))

    oauth_token {
      service_account_email = google_service_account.scheduler[0].email
      scope                 = "https://www.googleapis.com/auth/cloud-platform"
    }
  }

  depends_on = [
    google_artifact_registry_repository_iam_member.worker,
    google_bigquery_dataset_iam_member.input,
    google_bigquery_dataset_iam_member.temporary,
    google_bigquery_dataset_iam_member.worker,
    google_kms_crypto_key_iam_member.agents,
    google_project_iam_member.scheduler,
    google_project_iam_member.worker,
    google_secret_manager_secret_iam_member.worker,
    google_service_account_iam_member.scheduler,
    google_storage_bucket_iam_member.scheduler,
    google_storage_bucket_iam_member.worker,
  ]
}

resource "google_dataflow_flex_template_job" "streaming" {
  provider = google-beta
  count    = var.jobs ? local.streams : 0

  project                      = var.project
  region                       = var.region
  name                         = "${var.name}-streaming"
  container_spec_gcs_path      = "${local.spec_folder}/streaming${var.template}.json"
  on_delete                    = "drain"
  skip_wait_on_job_termination = false
  enable_streaming_engine      = true
  service_account_email        = google_service_account.worker.email
  temp_location                = local.environment.tempLocation
  staging_location             = local.environment.stagingLocation
  ip_configuration             = "WORKER_IP_PRIVATE"
  subnetwork                   = var.subnetwork
  kms_key_name                 = var.kms_key
  machine_type                 = var.machine_type
  max_workers                  = var.max_workers
  additional_experiments       = var.additional_experiments
  labels                       = local.labels

  parameters = merge(local.shared, {
    input_subscription = google_pubsub_subscription.input[0].id
    dead_letter_topic  = google_pubsub_topic.dead_letters[0].id
  }, var.streaming)

  depends_on = [
    google_artifact_registry_repository_iam_member.worker,
    google_bigquery_dataset_iam_member.worker,
    google_bigquery_table.answers,
    google_kms_crypto_key_iam_member.agents,
    google_project_iam_member.worker,
    google_pubsub_subscription_iam_member.worker,
    google_pubsub_topic_iam_member.worker,
    google_secret_manager_secret_iam_member.worker,
    google_storage_bucket_iam_member.worker,
  ]
}
