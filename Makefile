# Everything runs inside .venv, which is made once from constraints.txt. `make help` lists what
# there is. PYTHON=… chooses the interpreter, ARGS="…" is passed on to the program.

SHELL := /bin/sh
.ONESHELL:
.SHELLFLAGS := -eu -c
.DEFAULT_GOAL := help
.PHONY: help run test test-slow lint wheel wheel-test engine-test tpu-plans clean

ARGS ?=
# The version on which everything is tested comes first.
PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3)
PIP_INSTALL := -m pip --disable-pip-version-check install -q -c constraints.txt
REQUIREMENTS := setup.py pyproject.toml constraints.txt

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 — /p' Makefile

run: .venv/.base ## the whole job on gin/wlp_distill.gin; ARGS="--gin.NAME=value" changes it
	@exec .venv/bin/python launch/run.py --gin_file=gin/wlp_distill.gin $(ARGS)

# Two workers: most of a test's time is Python tracing and compiling on one core. Files stay whole,
# since their fixtures are shared.
test: .venv/.test ## the tests but the slow ones; ARGS="-k name" chooses some
	@exec .venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

# Two workers here too: most wait for processes of their own, which compile on one core each.
test-slow: .venv/.test ## the slow tests: whole runs, many processes, a browser, a scheduler
	@exec .venv/bin/python -m pytest -n 2 --dist loadfile -m slow $(ARGS)

# pyright knows no mapped packages (dora_jax.tasks is tasks/), so it reads a copy in which they
# lie where they are imported from; its output names the files as they are here.
lint: .venv/.test ## ruff and pyright
	@status=0
	.venv/bin/python -m ruff check . || status=1
	.venv/bin/python -m ruff format --check . || status=1
	rm -rf build/typecheck
	mkdir -p build/typecheck
	cp -R pyproject.toml dora_jax tests $(wildcard benchmarks) build/typecheck/
	cp -R tasks launch build/typecheck/dora_jax/
	.venv/bin/python -m pyright --project build/typecheck --pythonpath .venv/bin/python \
	  > build/typecheck/report || status=1
	sed 's,[^ ]*build/typecheck/,,; s,dora_jax/\(tasks\|launch\)/,\1/,' build/typecheck/report
	exit $$status

wheel: .venv/.base
	@rm -rf build/wheel build/lib build/bdist.*
	.venv/bin/python -m pip --disable-pip-version-check wheel -q --no-deps -w build/wheel .

# The dependencies are those of .venv, by a .pth file; the package is the wheel's alone, because
# the .pth of the editable install does not count in a folder that is itself named by a .pth.
wheel-test: wheel .venv/.test ## builds the wheel, installs it elsewhere and tests it there
	@elsewhere=$$(mktemp -d)
	trap 'rm -rf "$$elsewhere"' EXIT
	.venv/bin/python -m venv "$$elsewhere/venv"
	python="$$elsewhere/venv/bin/python"
	"$$python" -m pip --disable-pip-version-check install -q --no-deps build/wheel/*.whl
	site='import sysconfig; print(sysconfig.get_path("purelib"))'
	.venv/bin/python -c "$$site" > "$$("$$python" -c "$$site")/dependencies.pth"
	cp tests/installed/check_wheel.py "$$elsewhere/"
	cd "$$elsewhere"
	"$$python" -m pytest -q -p no:cacheprovider check_wheel.py

engine-test: wheel .venv-engine/.installed ## the engine where TensorFlow cannot be imported
	@.venv-engine/bin/python -m pip --disable-pip-version-check install -q --no-deps \
	  --force-reinstall build/wheel/*.whl
	scratch=$$(mktemp -d)
	trap 'rm -rf "$$scratch"' EXIT
	.venv/bin/python tests/installed/check_engine.py prepare "$$scratch"
	cp tests/installed/check_engine.py "$$scratch/"
	python="$$PWD/.venv-engine/bin/python"
	cd "$$scratch"
	"$$python" check_engine.py run "$$scratch"

# libtpu lies in a folder of its own: in .venv, JAX would look for a TPU at every start.
tpu-plans: build/libtpu/.installed ## compiles the paper's run for TPU slices, without one; ARGS="--slice=v5e-64"
	@PYTHONPATH=build/libtpu .venv/bin/python launch/tpu_plans.py --slice=all \
	  --json=build/tpu_plans.json $(ARGS)

clean: ## removes what was built; .venv and runs/ stay
	@rm -rf build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# A candidate is tried by running it: pyenv's shims exist for versions that are not switched on.
.venv/.created:
	@without_venv=
	for python in $(PYTHONS); do
	  version=$$("$$python" -c 'import sys
	v = sys.version_info
	print(f"{v[0]}.{v[1]}")
	sys.exit(not (3, 11) <= v[:2] <= (3, 13))' 2>/dev/null) || continue
	  if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
	    echo "Making .venv with Python $$version ($$python)"
	    "$$python" -m venv .venv
	    touch $@
	    exit
	  fi
	  without_venv="$${without_venv:-$$version}"
	done
	if [ -n "$$without_venv" ]; then
	  echo "Python $$without_venv is here, but not its venv module. Install that, then try again:" >&2
	  echo "  Debian, Ubuntu: sudo apt-get install python$$without_venv-venv" >&2
	else
	  echo "Found no Python 3.11, 3.12 or 3.13 (tried: $(subst ",,$(PYTHONS)))." >&2
	  echo "Install one, then try again; or name it: make run PYTHON=/path/to/python3.12" >&2
	  echo "  Debian 12, Ubuntu 24.04: sudo apt-get install python3 python3-venv" >&2
	  echo "  Fedora: sudo dnf install python3.12" >&2
	  echo "  any other: pyenv install 3.12, conda create -n dora python=3.12, or uv python install 3.12" >&2
	fi
	exit 1

.venv/.base: .venv/.created $(REQUIREMENTS)
	@echo "Installing the pinned dependencies into .venv (a few minutes, once)"
	.venv/bin/python $(PIP_INSTALL) -e .
	touch $@

.venv/.test: .venv/.base
	@echo "Installing what the tests need into .venv (once)"
	.venv/bin/python $(PIP_INSTALL) -e '.[test]'
	touch $@

build/libtpu/.installed: .venv/.base constraints.txt
	@echo "Installing libtpu into build/libtpu (once)"
	.venv/bin/python $(PIP_INSTALL) --no-deps --upgrade --target build/libtpu libtpu
	touch $@

.venv-engine/.installed: .venv/.base requirements-engine.txt constraints.txt
	@echo "Installing the engine's shorter list into .venv-engine (once)"
	.venv/bin/python -m venv --clear .venv-engine
	.venv-engine/bin/python $(PIP_INSTALL) -r requirements-engine.txt
	touch $@
