# What somebody should look at. The text of each says where.

locals {
  jobs = "resource.type = \"dataflow_job\" AND resource.labels.job_name = monitoring.regex.full_match(\"${var.name}-(batch|streaming)\")"
  # A user counter as PromQL, of all that was counted so far; %s are its name and the job's.
  counter = "{\"__name__\"=\"dataflow.googleapis.com/job/user_counter\",\"metric_name\"=~\"%s\",\"job_name\"=~\"%s\"}"

  thresholds = merge(
    {
      failed = {
        title  = "a job has failed"
        filter = "metric.type = \"dataflow.googleapis.com/job/is_failed\" AND ${local.jobs}"
        above  = 0
        for_s  = 0
        text   = "The job's first error is in its log. A run that does not reconcile fails as well: see docs/running.md."
      }
    },
    local.batches == 0 ? {} : {
      slow = {
        title  = "a batch job exceeds max_run_s"
        filter = "metric.type = \"dataflow.googleapis.com/job/elapsed_time\" AND resource.type = \"dataflow_job\" AND resource.labels.job_name = \"${var.name}-batch\""
        above  = var.batch.max_run_s
        for_s  = 60
        text   = "Throttled by the model, or more records than usual: compare requests and throttled time in the job's counters."
      }
    },
    local.streams == 0 ? {} : {
      system_lag = {
        title  = "the stream lags"
        filter = "metric.type = \"dataflow.googleapis.com/job/system_lag\" AND ${local.jobs}"
        above  = var.max_system_lag_s
        for_s  = 300
        text   = "An element has been in progress for this long. Look at the gauges outage_s and waiting_requests."
      }
      watermark_age = {
        title  = "the stream's watermark is old"
        filter = "metric.type = \"dataflow.googleapis.com/job/data_watermark_age\" AND ${local.jobs}"
        above  = 2 * var.max_system_lag_s
        for_s  = 300
        text   = "Messages wait in the subscription: add workers, or raise the model's quota."
      }
      dead_letters = {
        title  = "many dead letters"
        filter = "metric.type = \"pubsub.googleapis.com/topic/send_message_operation_count\" AND resource.type = \"pubsub_topic\" AND resource.labels.topic_id = \"${google_pubsub_topic.dead_letters[0].name}\""
        above  = var.max_dead_letters_per_minute / 60
        for_s  = 300
        text   = "Group the dead-letter table by error_type."
      }
    },
  )
}

resource "google_monitoring_alert_policy" "threshold" {
  for_each = local.thresholds

  project               = var.project
  display_name          = "${var.name}: ${each.value.title}"
  combiner              = "OR"
  notification_channels = var.notification_channels
  user_labels           = local.labels

  conditions {
    display_name = each.value.title

    condition_threshold {
      filter          = each.value.filter
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.above
      duration        = "${each.value.for_s}s"

      aggregations {
        alignment_period   = "60s"
        per_series_aligner = each.key == "dead_letters" ? "ALIGN_RATE" : "ALIGN_MAX"
      }
    }
  }

  documentation {
    content = each.value.text
  }

  depends_on = [google_project_service.needed]
}

locals {
  queries = merge(
    {
      throttled = {
        title = "throttled by the model"
        # More than half of the time, of ten callers.
        query = "sum(delta(${format(local.counter, "throttled_ms", "${var.name}-(batch|streaming)")}[10m])) > ${10 * 600 * 1000 / 2}"
        for_s = 600
        text  = "Request more quota, or set max_requests_per_minute to the quota so that fewer calls are refused."
      }
    },
    local.batches == 0 ? {} : {
      batch_dead_letters = {
        title = "many dead letters in a batch run"
        query = "sum(${format(local.counter, "dead_letters_.+", "${var.name}-batch")}) / sum(${format(local.counter, "records", "${var.name}-batch")}) > ${var.max_dead_letter_share}"
        for_s = 60
        text  = "Group the dead-letter table by error_type."
      }
    },
  )

  # What only a log says: a metric made of it could not be named in an alert until minutes later.
  entries = merge(
    {
      unreconciled = {
        title  = "a run does not reconcile"
        filter = "resource.type=\"dataflow_step\" AND resource.labels.job_name=~\"^${var.name}-(batch|streaming)$\" AND severity>=ERROR AND \"does not reconcile\""
        text   = "Its sinks do not hold exactly one row per record. docs/running.md, under Reconciliation, says what to look for."
      }
      refused = {
        title  = "a launch was refused"
        filter = "resource.type=\"dataflow_step\" AND resource.labels.job_name=~\"^${var.name}-(batch|streaming)$\" AND severity>=ERROR AND \"Template launch failed\""
        text   = "The last line of the launcher's console log says why: see docs/deploy.md, under Troubleshooting."
      }
    },
    local.batches == 0 ? {} : {
      not_launched = {
        title  = "Cloud Scheduler could not launch the batch job"
        filter = "resource.type=\"cloud_scheduler_job\" AND resource.labels.job_id=\"${var.name}-batch\" AND severity>=ERROR"
        text   = "There is no run. ALREADY_EXISTS: the previous job is still running. PERMISSION_DENIED: see docs/deploy.md, under Identities."
      }
    },
  )
}

resource "google_monitoring_alert_policy" "query" {
  for_each = local.queries

  project               = var.project
  display_name          = "${var.name}: ${each.value.title}"
  combiner              = "OR"
  notification_channels = var.notification_channels
  user_labels           = local.labels

  conditions {
    display_name = each.value.title

    condition_prometheus_query_language {
      query               = each.value.query
      duration            = "${each.value.for_s}s"
      evaluation_interval = "60s"
    }
  }

  documentation {
    content = each.value.text
  }

  depends_on = [google_project_service.needed]
}

resource "google_monitoring_alert_policy" "entry" {
  for_each = local.entries

  project               = var.project
  display_name          = "${var.name}: ${each.value.title}"
  combiner              = "OR"
  notification_channels = var.notification_channels
  user_labels           = local.labels

  conditions {
    display_name = each.value.title

    condition_matched_log {
      filter = each.value.filter
    }
  }

  alert_strategy {
    auto_close = "604800s"

    notification_rate_limit {
      period = "3600s"
    }
  }

  documentation {
    content = each.value.text
  }

  depends_on = [google_project_service.needed]
}
