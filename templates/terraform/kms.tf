# The customer's key: Google's service agents encrypt with it, not our identities.

data "google_project" "this" {
  count = var.kms_key == null ? 0 : 1

  project_id = var.project

  depends_on = [google_project_service.needed]
}

# Asking for these two makes them, where the project has none yet.
data "google_storage_project_service_account" "this" {
  count = var.kms_key == null ? 0 : 1

  project = var.project

  depends_on = [google_project_service.needed]
}

data "google_bigquery_default_service_account" "this" {
  count = var.kms_key == null ? 0 : 1

  project = var.project

  depends_on = [google_project_service.needed]
}

resource "google_project_service_identity" "agents" {
  provider = google-beta
  for_each = toset(var.kms_key == null ? [] : ["dataflow.googleapis.com", "pubsub.googleapis.com"])

  project = var.project
  service = each.value

  depends_on = [google_project_service.needed]
}

locals {
  number = one(data.google_project.this[*].number)
  agents = var.kms_key == null ? {} : {
    storage  = data.google_storage_project_service_account.this[0].email_address
    bigquery = data.google_bigquery_default_service_account.this[0].email
    pubsub   = "service-${local.number}@gcp-sa-pubsub.iam.gserviceaccount.com"
    dataflow = "service-${local.number}@dataflow-service-producer-prod.iam.gserviceaccount.com"
    compute  = "service-${local.number}@compute-system.iam.gserviceaccount.com"
  }
}

resource "google_kms_crypto_key_iam_member" "agents" {
  for_each = local.agents

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:${each.value}"

  depends_on = [google_project_service_identity.agents]
}
