output "data" {
  description = "Where input, models and outputs go."
  value       = "gs://${google_storage_bucket.data.name}"
}

output "image" {
  description = "Push the worker image here, and give it to runs by digest."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}/worker"
}

output "flags" {
  description = "What to give `switchgear run --engine dataflow --`, with the image's digest filled in."
  value = join(" ", [
    "--project=${var.project}",
    "--region=${var.region}",
    "--temp_location=gs://${google_storage_bucket.dataflow.name}/temp",
    "--staging_location=gs://${google_storage_bucket.dataflow.name}/staging",
    "--service_account_email=${google_service_account.worker.email}",
    "--subnetwork=regions/${var.region}/subnetworks/${google_compute_subnetwork.workers.name}",
    "--sdk_container_image=${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}/worker@sha256:…",
  ])
}
