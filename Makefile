# mlstack: every command. `make` alone prints this list.
.DEFAULT_GOAL := help
MLSTACK := .venv/bin/mlstack

# What is given to make reaches a command as MLSTACK_<name> in the environment: neither make nor a shell reads it as code.
ARGUMENTS := BACKUP JSON KEEP LINES NAME OLDER_THAN QUICK REPETITIONS REPORT RESULTS SEED SERVICE TESTS YES
$(foreach name,$(ARGUMENTS),$(eval export MLSTACK_$(name) := $$(value $(name))))
unexport $(ARGUMENTS)
# A question is answered by YES=1, y or yes on make's own command line; what is exported in a shell answers none.
CONFIRMED := $(and $(filter command,$(origin YES)),$(findstring |$(value YES)|,|1|y|yes|),--yes)

.PHONY: $(shell grep -oE '^[a-z-]+:' $(MAKEFILE_LIST) | tr -d ':')

##@ Every day
up: ## Build what is missing, start everything, wait until it is healthy
	@scripts/up.sh

down: ## Stop everything; all data stays
	@scripts/venv.sh && $(MLSTACK) down

status: ## Services, volumes, schema and backup on one screen (JSON=1 for scripts)
	@scripts/venv.sh && $(MLSTACK) status $${MLSTACK_JSON:+--json}

doctor: ## Check everything by using it; cause and fix of what is not well (JSON=1 for scripts)
	@scripts/venv.sh && $(MLSTACK) doctor $${MLSTACK_JSON:+--json}

urls: ## Where everything is
	@scripts/venv.sh && $(MLSTACK) urls

logs: ## Follow the logs (SERVICE=mlflow for one)
	@scripts/venv.sh && $(MLSTACK) logs -- $${MLSTACK_SERVICE:+"$$MLSTACK_SERVICE"}

##@ Kept safe
backup: ## Copy everything while the stack runs (KEEP=n removes all but the newest n)
	@scripts/venv.sh && $(MLSTACK) backup $${MLSTACK_KEEP:+--keep="$$MLSTACK_KEEP"}

restore: ## Put BACKUP=… in the place of what the stack holds, after asking; without it: list them
	@scripts/up.sh restore $(CONFIRMED) -- $${MLSTACK_BACKUP:+"$$MLSTACK_BACKUP"}

verify: ## Restore BACKUP=… (or the newest) into a stack that is thrown away, and compare
	@scripts/up.sh verify -- $${MLSTACK_BACKUP:+"$$MLSTACK_BACKUP"}

upgrade: ## Back up, build newer images, migrate, start, check; goes back by itself if that fails
	@scripts/up.sh upgrade

##@ Set-up
env: ## Write .env with fresh secrets, or add what is new; values that are there stay
	@scripts/venv.sh && $(MLSTACK) env

user: ## Make an account in MLflow for a person (NAME=…)
	@scripts/venv.sh && $(MLSTACK) user --name="$$MLSTACK_NAME"

user-remove: ## Remove a person's account; what it logged stays (NAME=…)
	@scripts/venv.sh && $(MLSTACK) user-remove --name="$$MLSTACK_NAME" $(CONFIRMED)

rotate: ## Make every secret anew, on the running stack; all data stays
	@scripts/venv.sh && $(MLSTACK) rotate $(CONFIRMED)

gc: ## Delete for good what was deleted or replaced 30 days ago, after asking (OLDER_THAN=7d, YES=1)
	@scripts/venv.sh && $(MLSTACK) gc $${MLSTACK_OLDER_THAN:+--older-than="$$MLSTACK_OLDER_THAN"} $(CONFIRMED)

reset: ## Delete all data of this stack, after asking (YES=1 answers)
	@scripts/venv.sh && $(MLSTACK) reset $(CONFIRMED)

##@ For developers
test: ## Types, style, unit, integration and stack tests, on stacks of their own
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" scripts/test.sh

test-faults: ## Every fault, with a client at work (25 minutes; REPORT=1 writes docs/reliability.md)
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" REPORT="$$MLSTACK_REPORT" scripts/test-faults.sh

test-slow: ## Backups, an upgrade from MLflow 2.22, a year of work lost and had back (25 minutes)
	@scripts/engine.sh && scripts/base-image.sh && scripts/venv.sh check && PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" .venv/bin/pytest --timeout 3000 tests/slow

test-conformance: ## Compare with genuine MLflow: answers, rows, clients (8 minutes; SEED=n for other odd calls; REPORT=1 writes docs/conformance.md)
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" SEED="$$MLSTACK_SEED" REPORT="$$MLSTACK_REPORT" scripts/test-conformance.sh

test-all: test test-faults test-slow test-conformance ## All of these (90 minutes)

bench: ## This stack beside MLflow at its defaults (20 minutes; QUICK=1, LINES=loop,file, REPORT=1 writes docs/performance.md)
	@scripts/engine.sh && scripts/base-image.sh && scripts/venv.sh check && .venv/bin/python -m benchmarks $${MLSTACK_QUICK:+--quick} $${MLSTACK_LINES:+--lines="$$MLSTACK_LINES"} $${MLSTACK_REPETITIONS:+--repetitions="$$MLSTACK_REPETITIONS"} $${MLSTACK_RESULTS:+--results="$$MLSTACK_RESULTS"} $${MLSTACK_REPORT:+--report docs/performance.md}

check: ## Style, types, walls, linters and unit tests; needs no Docker
	@scripts/check.sh

lock: ## Renew the hash-locked requirements (needs uv)
	@scripts/lock.sh

help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
