#!/bin/sh
# Build an image of infra/operate/Dockerfile with what this machine has: docker, podman or buildah.
#
#   infra/operate/image.sh -t switchgear
#   infra/operate/image.sh --target worker --build-arg TPU=1 -t switchgear-worker
#
# Arguments go to the builder as they are. As root in a machine without namespaces of its own, buildah needs
# `--isolation chroot`; where a proxy has a certificate authority of its own, give `-v` its file and a pip.conf.
set -eu
cd "$(dirname "$0")/../.."
if command -v docker >/dev/null 2>&1 && docker version >/dev/null 2>&1; then
  builder="docker build"
elif command -v podman >/dev/null 2>&1; then
  builder="podman build"
elif command -v buildah >/dev/null 2>&1; then
  builder="buildah bud --layers"
else
  echo "image: no docker that answers, no podman and no buildah is here: apt-get install buildah" >&2
  exit 2
fi
echo "image: $builder (minutes, and some 2.5 GB)"
exec $builder -f infra/operate/Dockerfile "$@" .
