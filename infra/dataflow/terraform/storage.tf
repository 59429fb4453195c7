# Input, models and outputs. Objects are read and written under generation preconditions, so access is by
# bucket only and nothing is public. A commit record or a ledger segment that somebody deletes can be
# brought back for `retention_days`.
resource "google_storage_bucket" "data" {
  name                        = "${var.project}-${var.name}-data"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  soft_delete_policy {
    retention_duration_seconds = var.retention_days * 86400
  }
  depends_on = [google_project_service.needed]
}

# Dataflow's own files: nobody needs them after a week.
resource "google_storage_bucket" "dataflow" {
  name                        = "${var.project}-${var.name}-dataflow"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  soft_delete_policy {
    retention_duration_seconds = 0
  }
  lifecycle_rule {
    condition {
      age = 7
    }
    action {
      type = "Delete"
    }
  }
  depends_on = [google_project_service.needed]
}

resource "google_artifact_registry_repository" "images" {
  repository_id = var.name
  location      = var.region
  format        = "DOCKER"
  docker_config {
    immutable_tags = true
  }
  depends_on = [google_project_service.needed]
}

resource "google_secret_manager_secret" "key" {
  for_each  = var.key_names
  secret_id = each.value
  replication {
    auto {}
  }
  depends_on = [google_project_service.needed]
}
