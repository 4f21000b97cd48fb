# mlstack: every command. `make` alone prints this list.
.DEFAULT_GOAL := help
MLSTACK := .venv/bin/mlstack

# Arguments of make reach a command as MLSTACK_<name> in the environment, so neither make nor a shell evaluates them as code.
ARGUMENTS := ACTIVATE ARTIFACTS BACKUP FILE FROM JSON KEEP LINES MODEL NAME OLDER_THAN PART PREFIX QUICK REASON REPETITIONS REPORT RESULTS SEED \
  SERVICE TESTS TO YES
$(foreach name,$(ARGUMENTS),$(eval export MLSTACK_$(name) := $$(value $(name))))
unexport $(ARGUMENTS)
# Only YES=1, y or yes on make's own command line answers a question; an exported YES does not.
CONFIRMED := $(and $(filter command,$(origin YES)),$(findstring |$(value YES)|,|1|y|yes|),--yes)

.PHONY: $(shell grep -oE '^[a-z-]+:' $(MAKEFILE_LIST) | tr -d ':')

##@ Every day
up: ## Build what is missing, start everything, wait until it is healthy
	@scripts/up.sh

down: ## Stop everything; keep all data
	@scripts/venv.sh && $(MLSTACK) down

status: ## Services, volumes, schema and last backup (JSON=1 for scripts)
	@scripts/venv.sh && $(MLSTACK) status $${MLSTACK_JSON:+--json}

doctor: ## Check everything by using it; cause and fix of each failure (JSON=1 for scripts)
	@scripts/venv.sh && $(MLSTACK) doctor $${MLSTACK_JSON:+--json}

urls: ## Print every address
	@scripts/venv.sh && $(MLSTACK) urls

logs: ## Follow the logs (SERVICE=mlflow for one)
	@scripts/venv.sh && $(MLSTACK) logs -- $${MLSTACK_SERVICE:+"$$MLSTACK_SERVICE"}

##@ Optional parts
add: ## Switch an optional part on: build it, start it, wait until it is healthy (PART=…)
	@scripts/up.sh add -- "$$MLSTACK_PART"

remove: ## Switch a part off and stop it; its data stays (PART=…)
	@scripts/venv.sh && $(MLSTACK) remove -- "$$MLSTACK_PART"

key: ## Generate a key for a program that uses the scoring service (NAME=…)
	@scripts/venv.sh && $(MLSTACK) key --name="$$MLSTACK_NAME"

key-remove: ## Take the key of a program away (NAME=…)
	@scripts/venv.sh && $(MLSTACK) key-remove --name="$$MLSTACK_NAME"

policy: ## Show a model's policies (MODEL=…), store one (FILE=…) or activate one (ACTIVATE=… REASON=…)
	@scripts/venv.sh && $(MLSTACK) policy --model="$$MLSTACK_MODEL" $${MLSTACK_FILE:+--file="$$MLSTACK_FILE"} \
	  $${MLSTACK_ACTIVATE:+--activate="$$MLSTACK_ACTIVATE"} $${MLSTACK_REASON:+--reason="$$MLSTACK_REASON"}

##@ Backup and upgrade
backup: ## Copy everything while the stack runs (KEEP=n removes all but the newest n)
	@scripts/venv.sh && $(MLSTACK) backup $${MLSTACK_KEEP:+--keep="$$MLSTACK_KEEP"}

restore: ## Replace the stack's data with BACKUP=…, after asking; without BACKUP: list the backups
	@scripts/up.sh restore $(CONFIRMED) -- $${MLSTACK_BACKUP:+"$$MLSTACK_BACKUP"}

verify: ## Restore BACKUP=… (or the newest) into a temporary stack, and compare
	@scripts/up.sh verify -- $${MLSTACK_BACKUP:+"$$MLSTACK_BACKUP"}

storage: ## Copy all objects to the other store and use it, after asking (TO=versitygw or TO=minio)
	@scripts/up.sh storage --to="$$MLSTACK_TO" $(CONFIRMED)

upgrade: ## Back up, build newer images, migrate, start, check; roll back if that fails
	@scripts/up.sh upgrade

##@ Set-up
env: ## Write .env with fresh secrets, or add new variables; existing values stay
	@scripts/venv.sh && $(MLSTACK) env

user: ## Create an MLflow account for a person, or give it another password (NAME=…)
	@scripts/venv.sh && $(MLSTACK) user --name="$$MLSTACK_NAME" $(CONFIRMED)

user-remove: ## Remove a person's account; its runs stay (NAME=…)
	@scripts/venv.sh && $(MLSTACK) user-remove --name="$$MLSTACK_NAME" $(CONFIRMED)

rotate: ## Replace every secret of the running stack; all data stays
	@scripts/venv.sh && $(MLSTACK) rotate $(CONFIRMED)

import: ## Add what another MLflow holds, after asking: FROM=mlruns, mlflow.db or https://server (PREFIX=old/, YES=1)
	@scripts/venv.sh && $(MLSTACK) import --from="$$MLSTACK_FROM" $${MLSTACK_PREFIX:+--prefix="$$MLSTACK_PREFIX"} $${MLSTACK_ARTIFACTS:+--artifacts="$$MLSTACK_ARTIFACTS"} $(CONFIRMED)

gc: ## Permanently delete what was deleted or replaced 30 days ago, after asking (OLDER_THAN=7d, YES=1)
	@scripts/venv.sh && $(MLSTACK) gc $${MLSTACK_OLDER_THAN:+--older-than="$$MLSTACK_OLDER_THAN"} $(CONFIRMED)

reset: ## Delete all data of this stack, after asking (YES=1 answers)
	@scripts/venv.sh && $(MLSTACK) reset $(CONFIRMED)

##@ For developers
test: ## Style, types, unit, integration and stack tests, on temporary stacks (12 minutes)
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" REPORT="$$MLSTACK_REPORT" scripts/test.sh

test-commands: ## Every command of the README; doctor, gc, import, status, up on broken stacks and in copied folders (8 minutes)
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" scripts/test.sh tests/commands

test-parts: ## The optional parts, on temporary stacks (20 minutes)
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" scripts/test.sh tests/parts

test-faults: ## Inject every fault while a client works (20 minutes; PART=scoring, ray for that part; REPORT=1 writes docs/reliability.md)
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" REPORT="$$MLSTACK_REPORT" PART="$$MLSTACK_PART" scripts/test-faults.sh

test-slow: ## Backups, an upgrade from MLflow 2.22, a year of work lost and restored, every kind of model, Ray (50 minutes; REPORT=1 writes docs/models.md, docs/scale.md)
	@scripts/engine.sh && scripts/base-image.sh && scripts/venv.sh check && PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" .venv/bin/pytest --timeout 3000 tests/slow

test-conformance: ## Compare with genuine MLflow: answers, rows, clients (8 minutes; SEED=n for other malformed calls; REPORT=1 writes docs/conformance.md)
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" SEED="$$MLSTACK_SEED" REPORT="$$MLSTACK_REPORT" scripts/test-conformance.sh

test-browser: ## A real browser: MLflow's page and MinIO's console (REPORT=1 writes docs/images)
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" REPORT="$$MLSTACK_REPORT" scripts/test-browser.sh

test-all: test test-commands test-parts test-faults test-slow test-conformance test-browser ## All tests above (150 minutes)
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" PART=scoring scripts/test-faults.sh
	@PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$MLSTACK_TESTS" PART=ray scripts/test-faults.sh

bench: ## This stack beside MLflow at its defaults (20 minutes; QUICK=1, LINES=loop,file, REPORT=1 writes docs/performance.md, docs/scoring.md)
	@scripts/engine.sh && scripts/base-image.sh && scripts/venv.sh check && .venv/bin/python -m benchmarks $${MLSTACK_QUICK:+--quick} $${MLSTACK_LINES:+--lines="$$MLSTACK_LINES"} $${MLSTACK_REPETITIONS:+--repetitions="$$MLSTACK_REPETITIONS"} $${MLSTACK_RESULTS:+--results="$$MLSTACK_RESULTS"} $${MLSTACK_REPORT:+--report docs}

check: ## Style, types, import contracts, linters and unit tests; needs no Docker
	@scripts/check.sh

lock: ## Update the hash-locked requirements (needs uv)
	@scripts/lock.sh

help: ## Print this list
	@awk -f scripts/help.awk $(MAKEFILE_LIST)
