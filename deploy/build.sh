#!/usr/bin/env bash
# Builds and pushes all images, and pins them by digest in a kustomize overlay. For a pipeline with docker buildx.
#
#   deploy/build.sh PREFIX TAG [cpu|cuda] [OVERLAY]
#   deploy/build.sh registry.example/team 1.4.0 cuda k8s/overlays/gpu
#
# Environment: PYTHON_DIGEST (required: "@sha256:..." of python:3.11-slim-bookworm), REGISTRY ("mirror.example/"),
# PIP_EXTRA_INDEX_URL, FAMILY (folder of the weights, below the repository; default deploy/models/emoji).
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=${1:?PREFIX, such as registry.example/team} tag=${2:?TAG} variant=${3:-cpu} overlay=${4:-}
: "${PYTHON_DIGEST:?pin the base image: PYTHON_DIGEST=@sha256:...}"

arguments=(--build-arg "VARIANT=$variant" --build-arg "PYTHON_DIGEST=$PYTHON_DIGEST")
for name in REGISTRY PIP_EXTRA_INDEX_URL FAMILY; do
    [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}")
done
metadata=$(mktemp)
trap 'rm -f "$metadata"' EXIT
for target in gateway encoder decoder denoiser editor family family-copy; do
    image=$prefix/$target:$tag-$variant
    docker buildx build --file deploy/Dockerfile --target "$target" --tag "$image" "${arguments[@]}" \
        --provenance=mode=max --sbom=true --push --metadata-file "$metadata" .
    digest=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["containerimage.digest"])' "$metadata")
    echo "$image@$digest"
    [ -z "$overlay" ] || (cd "$overlay" && kustomize edit set image "sfumato/$target=$prefix/$target@$digest")
done
