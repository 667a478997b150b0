# Every target sets up what it needs first; the logic lives in tools/.
.DEFAULT_GOAL := help
.PHONY: help demo test check fix one bench crash fuzz sim sim-planted test-models

SHELL := /bin/sh
RUN := tools/python -m

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: ## set up and run the main job on local models (FAST=1: on the scripted model)
	@$(RUN) tools.demo $(if $(filter 1,$(FAST)),--fast)

test: ## set up and run everything that must hold
	@$(RUN) tools.test

check: ## the quick loop: format, lint, layers, tidy, types, unit and API tests
	@$(RUN) tools.check

fix: ## format, sort and rewrite snapshots; read the diff afterwards
	@$(RUN) tools.fix

one: ## run one test by name, Rust or Python: make one T=name
	@$(RUN) tools.one "$(T)"

bench: ## measure: release build, JSON and a table
	@$(RUN) tools.bench

crash: ## kill processes at random, again and again: make crash ROUNDS=n
	@$(RUN) tools.crash "$(ROUNDS)"

fuzz: ## look for bytes that break a decoder: make fuzz SECONDS=60
	@$(RUN) tools.fuzz $(or $(SECONDS),60)

sim: ## simulate seeds with faults: make sim SEEDS=1000 SEED_START=0
	@$(RUN) tools.sim $(or $(SEEDS),1000) $(or $(SEED_START),0)

sim-planted: ## take one guard away at a time and see that the simulation notices
	@$(RUN) tools.planted

test-models: ## the tests that need the real models (pulls them first)
	@$(RUN) tools.test_models
