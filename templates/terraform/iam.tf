# Three identities: one that works, one that may only launch, one that builds. No keys are made.

resource "google_service_account" "worker" {
  project      = var.project
  account_id   = "${var.name}-worker"
  display_name = "Launcher and workers of batch inference"

  depends_on = [google_project_service.needed]
}

resource "google_service_account" "scheduler" {
  count = local.batches

  project      = var.project
  account_id   = "${var.name}-scheduler"
  display_name = "Launches batch inference"

  depends_on = [google_project_service.needed]
}

resource "google_service_account" "builder" {
  project      = var.project
  account_id   = "${var.name}-builder"
  display_name = "Builds the images and specs of batch inference"

  depends_on = [google_project_service.needed]
}

locals {
  worker  = "serviceAccount:${google_service_account.worker.email}"
  builder = "serviceAccount:${google_service_account.builder.email}"
  # dataflow.viewer: the launcher of an update lists jobs to find the one that it replaces, which
  # dataflow.worker does not include.
  worker_roles = concat(
    [
      "roles/dataflow.worker", "roles/dataflow.viewer",
      "roles/bigquery.jobUser", "roles/bigquery.readSessionUser",
    ],
    var.use_vertex_ai ? ["roles/aiplatform.user"] : [],
  )
}

resource "google_project_iam_member" "worker" {
  for_each = toset(local.worker_roles)

  project = var.project
  role    = each.value
  member  = local.worker
}

resource "google_storage_bucket_iam_member" "worker" {
  bucket = google_storage_bucket.work.name
  role   = "roles/storage.objectAdmin"
  member = local.worker
}

resource "google_bigquery_dataset_iam_member" "worker" {
  project    = var.project
  dataset_id = google_bigquery_dataset.answers.dataset_id
  role       = "roles/bigquery.dataEditor"
  member     = local.worker
}

resource "google_bigquery_dataset_iam_member" "temporary" {
  count = local.batches

  project    = var.project
  dataset_id = google_bigquery_dataset.temporary[0].dataset_id
  role       = "roles/bigquery.dataEditor"
  member     = local.worker
}

resource "google_bigquery_dataset_iam_member" "input" {
  for_each = toset(var.input_datasets)

  project    = split(":", each.value)[0]
  dataset_id = split(":", each.value)[1]
  role       = "roles/bigquery.dataViewer"
  member     = local.worker
}

resource "google_artifact_registry_repository_iam_member" "worker" {
  project    = var.project
  location   = var.region
  repository = google_artifact_registry_repository.images.repository_id
  role       = "roles/artifactregistry.reader"
  member     = local.worker
}

resource "google_secret_manager_secret_iam_member" "worker" {
  count = var.api_key_secret == null ? 0 : 1

  project   = var.project
  secret_id = var.api_key_secret
  role      = "roles/secretmanager.secretAccessor"
  member    = local.worker

  depends_on = [google_project_service.needed]
}

resource "google_pubsub_subscription_iam_member" "worker" {
  for_each = toset(local.streams == 0 ? [] : ["roles/pubsub.subscriber", "roles/pubsub.viewer"])

  project      = var.project
  subscription = google_pubsub_subscription.input[0].name
  role         = each.value
  member       = local.worker
}

resource "google_pubsub_topic_iam_member" "worker" {
  count = local.streams

  project = var.project
  topic   = google_pubsub_topic.dead_letters[0].name
  role    = "roles/pubsub.publisher"
  member  = local.worker
}

resource "google_project_iam_member" "scheduler" {
  count = local.batches

  project = var.project
  role    = "roles/dataflow.developer"
  member  = "serviceAccount:${google_service_account.scheduler[0].email}"
}

resource "google_service_account_iam_member" "scheduler" {
  count = local.batches

  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = "serviceAccount:${google_service_account.scheduler[0].email}"
}

resource "google_storage_bucket_iam_member" "scheduler" {
  count = local.batches

  bucket = google_storage_bucket.work.name
  role   = "roles/storage.objectViewer"
  member = "serviceAccount:${google_service_account.scheduler[0].email}"
}

# The build: writes its log, reads its source from the bucket and puts the specs there, pushes images,
# and asks Dataflow whether the specs would launch as the worker.
resource "google_project_iam_member" "builder" {
  for_each = toset(["roles/logging.logWriter", "roles/dataflow.developer"])

  project = var.project
  role    = each.value
  member  = local.builder
}

resource "google_storage_bucket_iam_member" "builder" {
  bucket = google_storage_bucket.work.name
  role   = "roles/storage.objectAdmin"
  member = local.builder
}

resource "google_artifact_registry_repository_iam_member" "builder" {
  project    = var.project
  location   = var.region
  repository = google_artifact_registry_repository.images.repository_id
  role       = "roles/artifactregistry.writer"
  member     = local.builder
}

resource "google_service_account_iam_member" "builder" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = local.builder
}
