output "bucket" {
  description = "The bucket, for --bucket of the scripts."
  value       = google_storage_bucket.work.name
}

output "output_table" {
  description = "The table for results; those for dead letters and runs are beside it."
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
  description = "The topic to publish messages for the streaming job to."
  value       = one(google_pubsub_topic.input[*].id)
}

output "dead_letter_topic" {
  description = "The topic that receives messages without an answer."
  value       = one(google_pubsub_topic.dead_letters[*].id)
}
