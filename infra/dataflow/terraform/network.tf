# Workers have no public address: Google's services through private access, the model providers through NAT.
resource "google_compute_network" "workers" {
  name                    = var.name
  auto_create_subnetworks = false
  depends_on              = [google_project_service.needed]
}

resource "google_compute_subnetwork" "workers" {
  name                     = var.name
  region                   = var.region
  network                  = google_compute_network.workers.id
  ip_cidr_range            = "10.64.0.0/20"
  private_ip_google_access = true
}

# Dataflow's workers speak to each other on these two ports (its shuffle), and to nobody else.
resource "google_compute_firewall" "between_workers" {
  name        = "${var.name}-between-workers"
  network     = google_compute_network.workers.id
  direction   = "INGRESS"
  source_tags = ["dataflow"]
  target_tags = ["dataflow"]
  allow {
    protocol = "tcp"
    ports    = ["12345-12346"]
  }
}

resource "google_compute_firewall" "to_providers" {
  name               = "${var.name}-to-providers"
  network            = google_compute_network.workers.id
  direction          = "EGRESS"
  destination_ranges = ["0.0.0.0/0"]
  priority           = 1000
  allow {
    protocol = "tcp"
    ports    = ["443"]
  }
}

resource "google_compute_firewall" "nowhere_else" {
  name               = "${var.name}-nowhere-else"
  network            = google_compute_network.workers.id
  direction          = "EGRESS"
  destination_ranges = ["0.0.0.0/0"]
  priority           = 65000
  deny {
    protocol = "all"
  }
}

resource "google_compute_firewall" "out_to_workers" {
  name               = "${var.name}-out-to-workers"
  network            = google_compute_network.workers.id
  direction          = "EGRESS"
  destination_ranges = [google_compute_subnetwork.workers.ip_cidr_range]
  priority           = 1000
  target_tags        = ["dataflow"]
  allow {
    protocol = "tcp"
    ports    = ["12345-12346"]
  }
}

resource "google_compute_router" "nat" {
  name    = var.name
  region  = var.region
  network = google_compute_network.workers.id
}

resource "google_compute_router_nat" "nat" {
  name                               = var.name
  router                             = google_compute_router.nat.name
  region                             = var.region
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "LIST_OF_SUBNETWORKS"
  subnetwork {
    name                    = google_compute_subnetwork.workers.id
    source_ip_ranges_to_nat = ["ALL_IP_RANGES"]
  }
}
