# Storage, tables and topics. Identities are in iam.tf, jobs in jobs.tf, alerts in alerts.tf.

locals {
  labels  = merge({ pipeline = "batch-inference" }, var.labels)
  dataset = replace(var.name, "-", "_")
  tables = {
    answers = {
      schema     = "results"
      partition  = "created_at"
      clustering = ["run_id", "record_id"]
    }
    answers_dead_letters = {
      schema     = "dead_letters"
      partition  = "timestamp"
      clustering = ["run_id", "error_type"]
    }
    answers_runs = {
      schema     = "runs"
      partition  = "started_at"
      clustering = ["run_id"]
    }
  }
  streams = var.streaming == null ? 0 : 1
  batches = var.batch == null ? 0 : 1
}

resource "google_project_service" "needed" {
  for_each = toset(concat([
    "aiplatform.googleapis.com",
    "artifactregistry.googleapis.com",
    "bigquery.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "cloudscheduler.googleapis.com",
    "compute.googleapis.com",
    "dataflow.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "pubsub.googleapis.com",
    "secretmanager.googleapis.com",
    "storage.googleapis.com",
  ], var.kms_key == null ? [] : ["cloudkms.googleapis.com"]))

  project            = var.project
  service            = each.value
  disable_on_destroy = false
}

resource "google_storage_bucket" "work" {
  name                        = var.bucket
  project                     = var.project
  location                    = var.region
  labels                      = local.labels
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = !var.deletion_protection

  # What a crashed job left behind, when no batch run can still want it: a stream keeps nothing here.
  # No rule for staging/: a running job needs what it staged, however old that is.
  lifecycle_rule {
    condition {
      age            = 30
      matches_prefix = ["tmp/"]
    }
    action {
      type = "Delete"
    }
  }

  dynamic "encryption" {
    for_each = var.kms_key == null ? [] : [var.kms_key]
    content {
      default_kms_key_name = encryption.value
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.agents, google_project_service.needed]
}

resource "google_bigquery_dataset" "answers" {
  project    = var.project
  dataset_id = local.dataset
  location   = var.region
  labels     = local.labels

  delete_contents_on_destroy = !var.deletion_protection # the pipeline makes a view beside the tables

  dynamic "default_encryption_configuration" {
    for_each = var.kms_key == null ? [] : [var.kms_key]
    content {
      kms_key_name = default_encryption_configuration.value
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.agents, google_project_service.needed]
}

# For the result of an input_query: without it Beam would have to make a dataset.
resource "google_bigquery_dataset" "temporary" {
  count = local.batches

  project                     = var.project
  dataset_id                  = "${local.dataset}_temporary"
  location                    = var.region
  labels                      = local.labels
  default_table_expiration_ms = 30 * 24 * 3600 * 1000 # as tmp/ in the bucket
  delete_contents_on_destroy  = true

  dynamic "default_encryption_configuration" {
    for_each = var.kms_key == null ? [] : [var.kms_key]
    content {
      kms_key_name = default_encryption_configuration.value
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.agents, google_project_service.needed]
}

resource "google_artifact_registry_repository" "images" {
  project       = var.project
  location      = var.region
  repository_id = var.repository
  format        = "DOCKER"
  labels        = local.labels

  depends_on = [google_project_service.needed]
}

resource "google_bigquery_table" "answers" {
  for_each = local.tables

  project             = var.project
  dataset_id          = google_bigquery_dataset.answers.dataset_id
  table_id            = each.key
  labels              = local.labels
  schema              = file("${path.module}/schemas/${each.value.schema}.json")
  clustering          = each.value.clustering
  deletion_protection = var.deletion_protection

  time_partitioning {
    type  = "DAY"
    field = each.value.partition
  }
}

resource "google_pubsub_topic" "input" {
  count = local.streams

  project      = var.project
  name         = "${var.name}-input"
  labels       = local.labels
  kms_key_name = var.kms_key

  message_storage_policy {
    allowed_persistence_regions = [var.region]
  }

  depends_on = [google_kms_crypto_key_iam_member.agents, google_project_service.needed]
}

# No dead-letter policy here: a message that cannot be answered is acknowledged, and published to
# our own topic with its reason. Seven days are the most that Pub/Sub keeps.
resource "google_pubsub_subscription" "input" {
  count = local.streams

  project                    = var.project
  name                       = "${var.name}-input"
  topic                      = google_pubsub_topic.input[0].id
  labels                     = local.labels
  ack_deadline_seconds       = 600
  message_retention_duration = "604800s"
  retain_acked_messages      = false

  expiration_policy {
    ttl = ""
  }
}

resource "google_pubsub_topic" "dead_letters" {
  count = local.streams

  project      = var.project
  name         = "${var.name}-dead-letters"
  labels       = local.labels
  kms_key_name = var.kms_key

  message_storage_policy {
    allowed_persistence_regions = [var.region]
  }

  depends_on = [google_kms_crypto_key_iam_member.agents, google_project_service.needed]
}

resource "google_pubsub_subscription" "dead_letters" {
  count = local.streams

  project                    = var.project
  name                       = "${var.name}-dead-letters"
  topic                      = google_pubsub_topic.dead_letters[0].id
  labels                     = local.labels
  message_retention_duration = "604800s"

  expiration_policy {
    ttl = ""
  }
}
