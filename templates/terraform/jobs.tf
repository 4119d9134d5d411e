# The batch job is launched by Cloud Scheduler, the streaming job by Terraform. Both need the specs
# in the bucket: run templates/build.sh between the bucket's creation and theirs.

locals {
  output_table = "${var.project}:${google_bigquery_dataset.answers.dataset_id}.${google_bigquery_table.answers["answers"].table_id}"
  spec_folder  = "gs://${google_storage_bucket.work.name}/templates"
  shared       = merge({ output_table = local.output_table }, var.parameters)

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
}

# The job has the same name each time: while one runs, Dataflow refuses the next.
resource "google_cloud_scheduler_job" "batch" {
  count = local.batches

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
    body = base64encode(jsonencode({
      launchParameter = {
        jobName              = "${var.name}-batch"
        containerSpecGcsPath = "${local.spec_folder}/batch${var.template}.json"
        parameters           = merge(local.shared, var.batch.parameters)
        environment          = local.environment
      }
    }))

    oauth_token {
      service_account_email = google_service_account.scheduler[0].email
      scope                 = "https://www.googleapis.com/auth/cloud-platform"
    }
  }

  depends_on = [
    google_project_iam_member.scheduler,
    google_project_iam_member.worker,
    google_service_account_iam_member.scheduler,
  ]
}

resource "google_dataflow_flex_template_job" "streaming" {
  provider = google-beta
  count    = local.streams

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
    google_bigquery_dataset_iam_member.worker,
    google_project_iam_member.worker,
    google_pubsub_subscription_iam_member.worker,
    google_pubsub_topic_iam_member.worker,
    google_storage_bucket_iam_member.worker,
  ]
}
