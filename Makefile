# The fleet on this machine, in containers, and the project's tests. `make help` lists the targets.
#   ENV    the lab's environment: single (default), fleet, or another folder of inventories/
#   SUITE  its Debian, when it is made: bookworm (default) or trixie (default for fleet)

ENV ?= single
SCENARIOS := fleet single
LONG_STAGES := apps-long versions wheel sanity servers upstream installed
LONG_SCENARIOS := faults operations upgrade

export LAB_SUITE := $(SUITE)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export LC_ALL := C.UTF-8
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help up down lab-args lab-secret lock-app test test-all lint unit apps oldest versions apps-long wheel sanity servers upstream installed molecule matrix bench functions fixtures docs lock collection release clean

help: ## List the targets
	@sed -n 's/^\([a-z% -]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

# --- the fleet in the lab ---

up: ## Make ENV's hosts, run site.yml on them, prove the fleet
	@lab/bootstrap lab
	@lab/lab.py up $(ENV)

down: ## Remove what `make up` made for ENV; ENV=all: for every one
	@lab/bootstrap check
	@lab/lab.py $(if $(filter all,$(ENV)),destroy-all,destroy $(ENV))

lab-args: ## Print the arguments with which ansible and ansible-playbook reach ENV
	@lab/lab.py args $(ENV)

lab-secret: ## Print a secret of ENV by its NAME: flower, for example
	@lab/lab.py secret $(ENV) $(NAME)

lock-app: ## Write the lock of the app of ENV, or of the inventory in ARGS="-i ..."; UPGRADE=1 takes the newest versions
	@lab/bootstrap lab
	@ansible-playbook $(or $(ARGS),$$(lab/lab.py args $(ENV))) playbooks/lock_app.yml $(if $(UPGRADE),-e fleet_lock_upgrade=true)

# --- tests; the last line has the counts ---

test: ## Run all tests, the fast ones first; the first stage that fails is the last
	@lab/bootstrap lab tools
	@lab/test.py lint unit apps oldest $(SCENARIOS)

test-all: ## Run all tests, and those that take long: every fault and every playbook, with tasks counted
	@lab/bootstrap lab tools
	@lab/test.py lint unit apps oldest $(LONG_STAGES) $(SCENARIOS) $(LONG_SCENARIOS)

lint unit apps oldest versions apps-long wheel sanity upstream: ## Run one of these stages; oldest and versions are the runtime with other versions of Celery, sanity is Ansible's own checks, upstream Celery's and kombu's own tests
	@lab/bootstrap tools
	@lab/test.py $@

servers installed: ## Run the tests of the server with other servers; or the installed collection on a host
	@lab/bootstrap lab tools
	@lab/test.py $@

molecule: ## Run all Molecule scenarios
	@lab/bootstrap lab
	@lab/test.py $(SCENARIOS)

molecule-%: ## Run one Molecule scenario
	@lab/bootstrap lab
	@lab/test.py $*

matrix: ## Run the tests with each supported version of Ansible and Celery; SESSION=NAME runs one, UPSTREAM=1 the newest
	@lab/bootstrap tools
	@nox $(if $(PYTHON),--force-python $(PYTHON)) $(if $(UPSTREAM),--session newest,$(if $(SESSION),--session "$(SESSION)")); \
	 code=$$?; python3 -m tools.matrix_table; exit $$code

bench: ## Measure what nodes and other task queues cost, and what kills lose (.cache/bench)
	@lab/bootstrap tools bench
	@python3 -m bench
	@python3 -m bench.kills

# --- upkeep ---

functions: ## Write the scripts of the runtime and its libraries as functions of Redis, and its names of keys
	@lab/bootstrap tools
	@.venv/bin/python tools/redis_functions.py

fixtures: ## Write the access rules with which the runtime's tests run Redis, as the role redis renders them
	@lab/bootstrap tools
	@WRITE_FIXTURES=1 pytest --quiet tests/unit/test_runtime_acl.py

docs: ## Write the tables of the docs: the roles' variables, and what becomes of each setting of Celery
	@lab/bootstrap tools
	@python3 tools/role_docs.py
	@PYTHONPATH=.ansible/collections:app/runtime/tests/lib python3 -m tests.unit.settings_table

lock: ## Pin the Python packages; UPGRADE=1 takes their newest versions
	@lab/bootstrap tools
	@requirements/lock $(if $(UPGRADE),--upgrade)

collection: ## Build the collection of this commit, with the runtime's wheel inside (dist)
	@lab/bootstrap tools
	@python3 tools/collection.py

release: ## Write VERSION in every place, and the changelogs from their fragments
	@lab/bootstrap tools
	@python3 tools/release.py $(VERSION)

clean: ## Remove every environment, the images, the caches and .venv
	@lab/bootstrap check
	@lab/lab.py clean
