# Sfumato. `make` lists the targets.
PYTHON ?= python3.11
BIN := .venv/bin
FAMILY ?= deploy/models/emoji
INSTALLED := .venv/.installed
SUPPLY := .venv-supply

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-integration test-others check format bench bench-gpu bench-edit load load-smoke soak full-size triton-test edit-durability guidance-report edit-report video-report attention-report dashboard-picture k8s-check k8s-trial locks sbom licences audit fuzz train evaluate clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv with everything in it.

$(INSTALLED): requirements.lock pyproject.toml clients/python/pyproject.toml protos/pyproject.toml protos/setup.py $(wildcard protos/sfumato/v1/*.proto)
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps ./protos --editable clients/python --editable .
	mkdir -p .venv/src && ln -sfn $(CURDIR)/services .venv/src/sfumato
	touch $@

demo: setup ## Make out/demo.png from words: starts the services, generates, stops them.
	$(BIN)/sfumato generate "a cat on a blue background, noto style" --seed 7 --guidance-scale 5 --family $(FAMILY) --output out/demo.png

test: setup ## Run all tests; those that start services wait a lot, so they and the others run side by side.
	@$(MAKE) --no-print-directory --jobs 2 test-integration test-others

test-integration:
	$(BIN)/pytest -q tests/integration

test-others:
	$(BIN)/pytest -q tests --ignore tests/integration

check: setup ## Lint, types, layers, protos. Quick.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd .venv/src && MYPYPATH=. ../bin/mypy --config-file ../../pyproject.toml -p sfumato
	$(BIN)/mypy clients/python/sfumato_client
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint

k8s-check: setup ## Render, validate and scan the Kubernetes manifests; lint the Dockerfile and compose files.
	$(BIN)/python -m tests.k8s.check

k8s-trial: setup ## Run the cpu overlay's pods here; restart, drain, scale them under load (root, iproute2).
	$(BIN)/python -m tests.k8s.trial --clients 8 --output out/k8s-trial.json

format: setup ## Format the code.
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: setup ## Latency and throughput against diffusers' in-process pipeline; where a step goes; docs/performance.md.
	$(BIN)/python -m tests.bench.pipeline --family $(FAMILY)
	$(BIN)/python -m tests.bench.engines --family $(FAMILY)
	$(BIN)/python -m tests.bench.guided_step --family $(FAMILY)
	$(BIN)/python -m tests.bench.throughput --family $(FAMILY)
	$(BIN)/python -m tests.bench.step_profile --family $(FAMILY)
	$(BIN)/python -m tests.bench.row_batches --family $(FAMILY)

bench-gpu: setup ## On a machine with a GPU: services against diffusers eager and compiled, bf16, SD 1.5's size.
	$(BIN)/python -m tests.bench.gpu

load: setup ## Every endpoint under steady load, bursts, slow readers, clients that vanish; out/load.md (6 minutes).
	$(BIN)/python -m tests.load --family $(FAMILY)

load-smoke: setup ## The same in half a minute, with tiny weights: does every kind of client and endpoint work.
	$(BIN)/pytest -q -o addopts="-ra --import-mode=importlib" tests/load

soak: setup ## Twenty minutes of mixed load: memory of every service, wrong or lost results; out/load.md.
	$(BIN)/python -m tests.load --family $(FAMILY) --shapes soak --seconds 1200

bench-edit: setup ## An iteration in the editor against one of the bare loop, in one run.
	$(BIN)/python -m tests.bench.edit_iteration --family $(FAMILY)

edit-durability: setup ## Kill the editor, and the gateway, 20 times each over a batch of edits.
	$(BIN)/python -m tests.bench.edit_durability --family $(FAMILY) --kills 20

edit-report: setup ## What each editing method reaches, by a judge CLIP (hours; goes on where it stopped).
	$(BIN)/python -m tests.bench.edit_report --family $(FAMILY)

video-report: setup ## Videos taken apart and edited, on clips whose truth is known (half an hour; goes on where it stopped).
	$(BIN)/python -m tests.bench.video_report --family $(FAMILY)

guidance-report: setup ## Curves of every kind of guidance over its scale, by a judge CLIP (20 minutes).
	$(BIN)/python -m tests.bench.guidance_report --family $(FAMILY)

attention-report: setup ## Whether words' attention maps lie where the things are, by a judge CLIP.
	$(BIN)/python -m tests.bench.attention_report --family $(FAMILY)

triton-test: setup ## Generation through a real Triton Inference Server, killed and back (2 minutes; 55 MB from PyPI).
	$(BIN)/pytest -q -o addopts="-ra --import-mode=importlib" tests/triton

full-size: setup ## Stable Diffusion 1.5, 2.1, XL at full size against diffusers, CLIP against open_clip (20 GB).
	$(BIN)/pytest -q -o addopts="-ra --import-mode=importlib" tests/full_size

dashboard-picture: setup ## Draw the dashboard from a real load run (5 minutes; Debian's prometheus).
	$(BIN)/python -m tests.bench.dashboard_picture --family $(FAMILY)

fuzz: setup ## Send 100,000 mutated messages to all RPCs of running services; figures to out/fuzz.txt.
	$(BIN)/python -m tests.fuzz.run --messages 100000

train: setup ## Train the emoji family (hours on a CPU); goes on where it stopped.
	$(BIN)/python -m sfumato.trainer all --checkpoints out/train --family $(FAMILY)

evaluate: setup ## Figures and contact sheet of the emoji family.
	$(BIN)/python -m sfumato.trainer evaluate --checkpoints out/train --family $(FAMILY)

$(SUPPLY)/.installed: deploy/supply-tools.txt
	test -d $(SUPPLY) || $(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

locks: setup ## Write the locks with hashes that images are installed from (minutes; needs PyPI).
	$(BIN)/python deploy/hash_lock.py cpu
	$(BIN)/python deploy/hash_lock.py cuda

sbom: setup $(SUPPLY)/.installed ## out/sbom.cdx.json: the bill of materials, CycloneDX.
	mkdir -p out && $(SUPPLY)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible -o out/sbom.cdx.json

licences: setup $(SUPPLY)/.installed ## out/licences.md: each dependency's licence.
	mkdir -p out && $(SUPPLY)/bin/pip-licenses --python $(BIN)/python --from=mixed --format=markdown --order=license --output-file out/licences.md

audit: $(SUPPLY)/.installed ## Known vulnerabilities of what is locked (needs PyPI).
	$(SUPPLY)/bin/pip-audit --requirement requirements.lock --disable-pip --no-deps --strict --progress-spinner off

clean: ## Remove what was made.
	rm -rf .venv .venv-supply out build protos/build protos/sfumato_protos
