variable "project" {
  description = "Id of the Google Cloud project that all of this is made in."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project id has 6 to 30 lower-case letters, digits and hyphens and begins with a letter."
  }
}

variable "region" {
  description = "Region of buckets, images and workers. TPU workers need one that has them."
  type        = string
  default     = "us-central1"
}

variable "name" {
  description = "Prefix of the names of everything."
  type        = string
  default     = "switchgear"
}

variable "key_names" {
  description = "Environment variables of the providers' keys. Each becomes a secret without a value; add the value by hand."
  type        = set(string)
  default     = ["OPENAI_API_KEY", "ANTHROPIC_API_KEY"]
}

variable "vertex" {
  description = "Whether workloads have backends with platform = \"vertex\"."
  type        = bool
  default     = false
}

variable "launchers" {
  description = "Who may start jobs: members such as user:a@example.com or serviceAccount:…"
  type        = set(string)
  default     = []
}

variable "retention_days" {
  description = "Days that a deleted or replaced object of the output can be brought back."
  type        = number
  default     = 30
  validation {
    condition     = var.retention_days >= 7 && var.retention_days <= 90
    error_message = "Cloud Storage keeps soft-deleted objects for 7 to 90 days."
  }
}

variable "billing_account" {
  description = "Billing account of the budget alert; empty for none."
  type        = string
  default     = ""
}

variable "monthly_budget_usd" {
  description = "What the project should cost in a month; alerts at 50, 80 and 100 % of it. It stops nothing: caps on models are the workload's."
  type        = number
  default     = 1000
}
