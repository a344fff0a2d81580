# make run [PROFILE=smollm2] [RUN=name] [ARGS="--from 12 -p k=5"]   make test [ARGS="-k merge"]   make lab
PYTHON ?= python3
PROFILE ?= smollm2
RUN ?=
ARGS ?=
READY := .venv/ready-$(shell cksum < pyproject.toml | tr ' ' '-')

.PHONY: run test lab
.DEFAULT_GOAL := run

run: $(READY)
	@.venv/bin/python -m lib.run $(PROFILE) $(if $(RUN),--run $(RUN)) $(ARGS)

test: $(READY)
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

lab: $(READY)
	@.venv/bin/jupyter lab notebooks

# The stamp carries the checksum of pyproject.toml: a changed pin sets up again, an unchanged one costs nothing.
$(READY): pyproject.toml
	@echo "setting up .venv (some minutes and a few GB the first time)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --editable '.[dev]'
	@rm -f .venv/ready-* && touch $@
