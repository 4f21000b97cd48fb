# mlstack: every command. `make` alone prints this list.
.DEFAULT_GOAL := help
MLSTACK := .venv/bin/mlstack
.PHONY: $(shell grep -oE '^[a-z-]+:' $(MAKEFILE_LIST) | tr -d ':')

##@ Every day
up: ## Build what is missing, start everything, wait until it is healthy
	@scripts/up.sh

down: ## Stop everything; all data stays
	@scripts/venv.sh && $(MLSTACK) down

status: ## Each service and whether it is well
	@scripts/venv.sh && $(MLSTACK) status

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

reset: ## Delete all data of this stack, after asking (YES=1 answers)
	@scripts/venv.sh && $(MLSTACK) reset $(if $(YES),--yes)

##@ For developers
test: ## Every check and test, on a stack of its own
	@scripts/test.sh $(TESTS)

lint: ## ruff and mypy
	@scripts/venv.sh && .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

lock: ## Renew the hash-locked requirements (needs uv)
	@scripts/lock.sh

help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
