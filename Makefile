# mlstack: every command. `make` alone prints this list.
.DEFAULT_GOAL := help
MLSTACK := .venv/bin/mlstack
.PHONY: $(shell grep -oE '^[a-z-]+:' $(MAKEFILE_LIST) | tr -d ':')

##@ Every day
up: ## Build what is missing, start everything, wait until it is healthy
	@scripts/up.sh

down: ## Stop everything; all data stays
	@scripts/venv.sh && $(MLSTACK) down

status: ## Services, volumes, schema and backup on one screen (JSON=1 for scripts)
	@scripts/venv.sh && $(MLSTACK) status $(if $(JSON),--json)

doctor: ## Check everything by using it; cause and fix of what is not well (JSON=1 for scripts)
	@scripts/venv.sh && $(MLSTACK) doctor $(if $(JSON),--json)

urls: ## Where everything is
	@scripts/venv.sh && $(MLSTACK) urls

logs: ## Follow the logs (SERVICE=mlflow for one)
	@scripts/venv.sh && $(MLSTACK) logs $(SERVICE)

##@ Kept safe
backup: ## Copy everything while the stack runs (KEEP=n removes all but the newest n)
	@scripts/venv.sh && $(MLSTACK) backup $(if $(KEEP),--keep $(KEEP))

restore: ## Put BACKUP=… in the place of what the stack holds, after asking; without it: list them
	@scripts/up.sh restore $(if $(BACKUP),"$(BACKUP)") $(if $(YES),--yes)

verify: ## Restore BACKUP=… (or the newest) into a stack that is thrown away, and compare
	@scripts/up.sh verify $(if $(BACKUP),"$(BACKUP)")

upgrade: ## Back up, build newer images, migrate, start, check; goes back by itself if that fails
	@scripts/up.sh upgrade

##@ Set-up
env: ## Write .env with fresh secrets, or add what is new; values that are there stay
	@scripts/venv.sh && $(MLSTACK) env

user: ## Make an account in MLflow for a person (NAME=…)
	@scripts/venv.sh && $(MLSTACK) user --name '$(NAME)'

user-remove: ## Remove a person's account; what it logged stays (NAME=…)
	@scripts/venv.sh && $(MLSTACK) user-remove --name '$(NAME)' $(if $(YES),--yes)

rotate: ## Make every secret anew, on the running stack; all data stays
	@scripts/venv.sh && $(MLSTACK) rotate $(if $(YES),--yes)

gc: ## Delete for good what was deleted or replaced 30 days ago, after asking (OLDER_THAN=7d, YES=1)
	@scripts/venv.sh && $(MLSTACK) gc $(if $(OLDER_THAN),--older-than $(OLDER_THAN)) $(if $(YES),--yes)

reset: ## Delete all data of this stack, after asking (YES=1 answers)
	@scripts/venv.sh && $(MLSTACK) reset $(if $(YES),--yes)

##@ For developers
test: ## Every check and test, on a stack of its own
	@scripts/test.sh $(TESTS)

test-faults: ## Every fault, with a client at work (25 minutes; REPORT=1 writes docs/reliability.md)
	@REPORT=$(REPORT) scripts/test-faults.sh $(TESTS)

test-slow: ## Backups, an upgrade from MLflow 2.22, a year of work lost and had back (25 minutes)
	@scripts/engine.sh && scripts/base-image.sh && scripts/venv.sh check && .venv/bin/pytest --timeout 3000 tests/slow $(TESTS)

test-conformance: ## Compare with genuine MLflow: answers, rows, clients (8 minutes; SEED=n for other odd calls; REPORT=1 writes docs/conformance.md)
	@SEED=$(SEED) REPORT=$(REPORT) scripts/test-conformance.sh $(TESTS)

bench: ## This stack beside MLflow at its defaults (20 minutes; QUICK=1, LINES=loop,file, REPORT=1 writes docs/performance.md)
	@scripts/engine.sh && scripts/base-image.sh && scripts/venv.sh check && .venv/bin/python -m benchmarks $(if $(QUICK),--quick) $(if $(LINES),--lines $(LINES)) $(if $(REPETITIONS),--repetitions $(REPETITIONS)) $(if $(RESULTS),--results $(RESULTS)) $(if $(REPORT),--report docs/performance.md)

check: ## Style, types, walls, linters and unit tests; needs no Docker
	@scripts/check.sh

lock: ## Renew the hash-locked requirements (needs uv)
	@scripts/lock.sh

help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
