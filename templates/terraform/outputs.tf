output "bucket" {
  description = "For --bucket of the scripts."
  value       = google_storage_bucket.work.name
}

output "output_table" {
  description = "Where results go; dead letters and runs are beside it."
  value       = local.output_table
}

output "worker" {
  description = "The workers' service account, for --service_account of the other scripts and --worker of build.sh."
  value       = google_service_account.worker.email
}

output "builder" {
  description = "The build's service account, for --service_account of templates/build.sh."
  value       = google_service_account.builder.email
}

output "input_topic" {
  description = "Where messages for the streaming job are published."
  value       = one(google_pubsub_topic.input[*].id)
}

output "dead_letter_topic" {
  description = "Where messages that could not be answered arrive."
  value       = one(google_pubsub_topic.dead_letters[*].id)
}
