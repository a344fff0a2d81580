# make run [PROFILE=smollm2] [RUN=name] [ARGS="--from 12 -p k=5"]   make test [ARGS="-k merge"]   make lab   make lock
PYTHON ?= python3
PROFILE ?= smollm2
RUN ?=
ARGS ?=
# cpu or cuda; empty: cuda beside a GPU or where pip is offered no CPU build of torch, else cpu
LOCK ?=
READY := .venv/ready-$(shell cat pyproject.toml lock/*.txt | cksum | tr ' ' '-')

.PHONY: run test lab lock
.DEFAULT_GOAL := run

run: $(READY)
	@.venv/bin/python -m lib.run $(PROFILE) $(if $(RUN),--run $(RUN)) $(ARGS)

test: $(READY)
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/lint-imports --no-logo
	@.venv/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

lab: $(READY)
	@.venv/bin/jupyter lab notebooks

# The stamp carries the checksum of the pins: a changed one sets up again, an unchanged one costs nothing.
$(READY): pyproject.toml $(wildcard lock/*.txt)
	@$(PYTHON) -m venv .venv
	@lock=$(LOCK); if [ -z "$$lock" ]; then \
	  lock=cuda; cpu=$$(grep -o '^torch==[^ ]*' lock/cpu.txt); \
	  if ! nvidia-smi >/dev/null 2>&1 && .venv/bin/python -m pip install -qq --dry-run --no-deps "$$cpu" 2>/dev/null; \
	  then lock=cpu; fi; fi; \
	echo "setting up .venv from lock/$$lock.txt (some minutes and a few GB the first time)"; \
	.venv/bin/python -m pip install --quiet --no-deps --require-hashes -r lock/$$lock.txt
	@.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@rm -f .venv/ready-* && touch $@

# Every transitive version and hash, for Python 3.11 to 3.13 on Linux and macOS. The CPU build of torch is not on every
# package index: it is taken from where pip finds it, and lock/cpu.txt names its hash.
COMPILE = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-annotate --custom-compile-command "make lock" --extra dev pyproject.toml
lock: .venv/bin/uv
	@$(COMPILE) --output-file lock/cuda.txt
	@grep -o '^torch==[0-9.]*' lock/cuda.txt | sed 's/$$/+cpu/' > .venv/cpu-torch.txt
	@$(COMPILE) --output-file lock/cpu.txt --override .venv/cpu-torch.txt \
	  $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))

.venv/bin/uv:
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet $$(grep -o '"uv==[0-9.]*"' pyproject.toml | tr -d '"')
