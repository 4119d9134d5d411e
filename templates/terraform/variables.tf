variable "project" {
  description = "The project that runs the jobs and is billed for them."
  type        = string
}

variable "region" {
  description = "The region of workers, bucket and dataset: all data stays there."
  type        = string
  default     = "us-central1"
}

variable "name" {
  description = "The prefix of every name that the module creates."
  type        = string
  default     = "inference"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,19}$", var.name))
    error_message = "name must be 3 to 20 lower-case letters, digits and -, and begin with a letter."
  }
}

variable "bucket" {
  description = "The name of the bucket to create: temporary files, staging, sources of builds and, below templates/, the specs."
  type        = string
}

variable "repository" {
  description = "The name of the Artifact Registry repository to create for the images."
  type        = string
  default     = "inference"
}

variable "jobs" {
  description = "Whether to launch the jobs: false for the first apply, until templates/build.sh has put the specs into the bucket."
  type        = bool
  default     = true
}

variable "parameters" {
  description = "The templates' parameters, of both jobs: model, prompt_file, … (docs/parameters.md)."
  type        = map(string)
}

variable "batch" {
  description = "The batch job: its own parameters (an input) and its schedule, as in cron. null for no batch job."
  type = object({
    parameters = map(string)
    schedule   = string
    time_zone  = optional(string, "Etc/UTC")
    max_run_s  = optional(number, 6 * 3600)
  })
  default = null
}

variable "streaming" {
  description = "The streaming job's own parameters; {} for none, null for no streaming job."
  type        = map(string)
  default     = null
}

variable "input_datasets" {
  description = "Datasets for input_table and input_query, as project:dataset: the module lets workers read them."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for name in var.input_datasets : can(regex("^[^:]+:[A-Za-z0-9_]+$", name))])
    error_message = "each of input_datasets must be project:dataset."
  }
}

variable "template" {
  description = "The suffix of the specs: empty, or -gpu for workers with GPUs."
  type        = string
  default     = ""

  validation {
    condition     = contains(["", "-gpu"], var.template)
    error_message = "template must be empty or -gpu."
  }
}

variable "machine_type" {
  description = "The workers' machine type; with gpu_type, that of workers without GPUs. null for Dataflow's default."
  type        = string
  default     = null
}

variable "max_workers" {
  description = "The maximum number of workers per job."
  type        = number
  default     = 10
}

variable "additional_experiments" {
  description = "Experiments and service options, such as automatically_use_created_reservation."
  type        = list(string)
  default     = []
}

variable "subnetwork" {
  description = "regions/R/subnetworks/S, with Private Google Access: workers have no public addresses. null for the default network's."
  type        = string
  default     = null
}

variable "kms_key" {
  description = "projects/P/locations/R/keyRings/K/cryptoKeys/C for all stored data; the module lets Google's service agents use it. null for Google's keys."
  type        = string
  default     = null
}

variable "api_key_secret" {
  description = "The id of a Secret Manager secret that workers may read (backend openai). null for none."
  type        = string
  default     = null
}

variable "use_vertex_ai" {
  description = "Whether workers may call Vertex AI (backends gemini and vertex_endpoint)."
  type        = bool
  default     = true
}

variable "labels" {
  description = "Labels of every resource that can have them."
  type        = map(string)
  default     = {}
}

variable "notification_channels" {
  description = "Ids of the monitoring channels for alerts."
  type        = list(string)
  default     = []
}

variable "max_system_lag_s" {
  description = "The lag of the streaming job that raises an alert."
  type        = number
  default     = 900
}

variable "max_dead_letters_per_minute" {
  description = "The rate of the stream's messages on the dead-letter topic that raises an alert."
  type        = number
  default     = 10
}

variable "max_dead_letter_share" {
  description = "The dead letters of a batch run, as a share of its records, that raise an alert."
  type        = number
  default     = 0.05
}

variable "deletion_protection" {
  description = "Whether a destroy keeps tables, and a bucket that is not empty."
  type        = bool
  default     = true
}
