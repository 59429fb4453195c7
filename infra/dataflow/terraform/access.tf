resource "google_project_service" "needed" {
  for_each = toset(concat([
    "artifactregistry.googleapis.com",
    "billingbudgets.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "compute.googleapis.com",
    "dataflow.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "secretmanager.googleapis.com",
    "storage.googleapis.com",
    "tpu.googleapis.com",
  ], var.vertex ? ["aiplatform.googleapis.com"] : []))
  service            = each.value
  disable_on_destroy = false
}

# What workers are: they read and write the two buckets, read their keys and their image, and report to
# Dataflow. They can start nothing and see no other data of the project.
resource "google_service_account" "worker" {
  account_id   = "${var.name}-worker"
  display_name = "Switchgear's Dataflow workers"
  depends_on   = [google_project_service.needed]
}

# Google's role for workers (roles/dataflow.worker, November 2026) without its rights on Cloud Storage: those
# are to read and to make objects in every bucket of the project. Here each bucket has its own, below.
resource "google_project_iam_custom_role" "worker" {
  role_id     = "${replace(var.name, "-", "_")}_dataflow_worker"
  title       = "Dataflow worker without other buckets"
  description = "What a Dataflow worker does besides reading and writing objects."
  permissions = [
    "autoscaling.sites.readRecommendations",
    "autoscaling.sites.writeMetrics",
    "autoscaling.sites.writeState",
    "compute.instanceGroupManagers.update",
    "compute.instances.delete",
    "compute.instances.setDiskAutoDelete",
    "dataflow.jobs.get",
    "dataflow.shuffle.read",
    "dataflow.shuffle.write",
    "dataflow.streamingWorkItems.ImportState",
    "dataflow.streamingWorkItems.commitWork",
    "dataflow.streamingWorkItems.getData",
    "dataflow.streamingWorkItems.getWork",
    "dataflow.streamingWorkItems.getWorkerMetadata",
    "dataflow.workItems.lease",
    "dataflow.workItems.sendMessage",
    "dataflow.workItems.update",
    "logging.logEntries.create",
    "monitoring.timeSeries.create",
  ]
  depends_on = [google_project_service.needed]
}

resource "google_project_iam_member" "worker_reports" {
  project = var.project
  role    = google_project_iam_custom_role.worker.name
  member  = google_service_account.worker.member
}

# Who stages or reads a job's own files looks at the bucket first: storage.buckets.get, which the role on
# objects has not.
resource "google_storage_bucket_iam_member" "worker_staging" {
  bucket = google_storage_bucket.dataflow.name
  role   = "roles/storage.legacyBucketReader"
  member = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "launcher_staging" {
  for_each = var.launchers
  bucket   = google_storage_bucket.dataflow.name
  role     = "roles/storage.legacyBucketReader"
  member   = each.value
}

resource "google_storage_bucket_iam_member" "worker_objects" {
  for_each = {
    data     = google_storage_bucket.data.name
    dataflow = google_storage_bucket.dataflow.name
  }
  bucket = each.value
  role   = "roles/storage.objectUser"
  member = google_service_account.worker.member
}

resource "google_secret_manager_secret_iam_member" "worker_keys" {
  for_each  = google_secret_manager_secret.key
  secret_id = each.value.id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.worker.member
}

resource "google_artifact_registry_repository_iam_member" "worker_image" {
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.worker.member
}

# Who starts jobs: plans, watches and settles, so it reads and writes the same buckets, and may have jobs
# run as the worker's account. It sees no key.
resource "google_project_iam_member" "launcher_starts" {
  for_each   = var.launchers
  project    = var.project
  role       = "roles/dataflow.developer"
  member     = each.value
  depends_on = [google_project_service.needed]
}

resource "google_service_account_iam_member" "launcher_as_worker" {
  for_each           = var.launchers
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value
}

resource "google_storage_bucket_iam_member" "launcher_data" {
  for_each = var.launchers
  bucket   = google_storage_bucket.data.name
  role     = "roles/storage.objectUser"
  member   = each.value
}

resource "google_storage_bucket_iam_member" "launcher_dataflow" {
  for_each = var.launchers
  bucket   = google_storage_bucket.dataflow.name
  role     = "roles/storage.objectUser"
  member   = each.value
}

# Models on Vertex take no key: workers ask them as their account, launchers submit and collect batches there.
resource "google_project_iam_member" "worker_vertex" {
  count   = var.vertex ? 1 : 0
  project = var.project
  role    = "roles/aiplatform.user"
  member  = google_service_account.worker.member
}

resource "google_project_iam_member" "launcher_vertex" {
  for_each   = var.vertex ? var.launchers : toset([])
  project    = var.project
  role       = "roles/aiplatform.user"
  member     = each.value
  depends_on = [google_project_service.needed]
}
