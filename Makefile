# Two commands do all: `make demo` shows the whole of imagefs on a disk of its own, `make test` checks it.
# Both install what is missing first: packages through apt as root (anybody else is told the line to
# run), Python packages into .venv. `make install` is for users.

PYTHON ?= python3
PREFIX ?= /opt/imagefs
BINDIR ?= /usr/local/bin
VENV := .venv

# Debian 12 and Ubuntu 24.04; a|b are names of one thing in different releases.
RUN_PACKAGES := fuse3
DISK_PACKAGES := dosfstools e2fsprogs fdisk gdisk mtools ntfs-3g
TEST_PACKAGES := acl apfsprogs attr bsdextrautils btrfs-progs bzip2 cryptsetup-bin erofs-utils ewf-tools exfat-fuse exfatprogs f2fs-tools fio fusefat gddrescue genisoimage hdparm libarchive-tools libcap2-bin libfuse2t64|libfuse2 libnbd-bin lvm2 lz4 makefs mdadm nbdkit ovmf partclone procps \
	qemu-system-x86 qemu-utils rsync sleuthkit squashfs-tools syslinux syslinux-common syslinux-efi time unzip wimtools xfsprogs xorriso xz-utils zstd
BENCH_PACKAGES := borgbackup casync ewf-tools fio libnbd-bin ntfs-3g python3-pyfuse3 qemu-system-common qemu-utils restic sleuthkit time xmount zstd
APFS_VERSION := 1.1
APFS_DISKS := .cache/sources/dissect_apfs-$(APFS_VERSION).tar.gz
VENV_PACKAGES := $(shell $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || echo python3 python3-venv)

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH

.PHONY: help setup packages sources demo test slow bench install uninstall wheel clean

help:
	@echo "make demo       see the whole of imagefs at work on a disk of its own"
	@echo "make test       lint, types, layers and all fast tests"
	@echo "make slow       soak tests, fuzzing, matrices"
	@echo "make bench      measure beside qemu-img, borg, restic and zstd"
	@echo "make install    for users: $(PREFIX) and the link $(BINDIR)/imagefs (PREFIX=, BINDIR=, EXTRAS=inner)"
	@echo "make uninstall, make wheel, make clean"

setup: packages sources $(VENV)/ready $(APFS_DISKS)

packages:
	@sh fixtures/packages.sh $(foreach name,$(VENV_PACKAGES) $(RUN_PACKAGES) $(DISK_PACKAGES) $(TEST_PACKAGES),'$(name)')

# Disks that other projects test with: BitLocker's are in the sources of cryptsetup.
sources: | packages
	@sh fixtures/sources.sh .cache/sources cryptsetup

# APFS's are in the source package of a library that is not used here (AGPL): nothing of it is installed or run.
$(APFS_DISKS): | $(VENV)/ready
	@echo "fetching the sources of dissect.apfs"
	@$(VENV)/bin/python -m pip download --quiet --no-deps --no-binary dissect.apfs --dest .cache/sources \
		dissect.apfs==$(APFS_VERSION) || echo "not to be had" >&2

$(VENV)/ready: pyproject.toml | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: setup
	$(VENV)/bin/python -m fixtures.demo $(DEMO_ARGS)

test: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	pytest -n 2 -m "not slow" $(TEST_ARGS)

slow: setup
	pytest -m slow --timeout 3600 $(TEST_ARGS)

bench: setup
	@sh fixtures/packages.sh $(foreach name,$(BENCH_PACKAGES),'$(name)')
	$(VENV)/bin/python -m benchmarks.run $(BENCH_ARGS)

# From a copy, so that nothing built by root stays behind in the source tree.
install:
	@sh fixtures/packages.sh $(foreach name,$(VENV_PACKAGES) $(RUN_PACKAGES),'$(name)')
	@umask 022 && set -e && copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && \
	cp -R imagefs mounter pyproject.toml README.md LICENSE "$$copy" && \
	$(PYTHON) -m venv --clear "$(PREFIX)" && \
	"$(PREFIX)/bin/python" -m pip install --quiet "$$copy$(if $(EXTRAS),[$(EXTRAS)])" && \
	mkdir -p "$(BINDIR)" && ln -sfn "$(PREFIX)/bin/imagefs" "$(BINDIR)/imagefs" && \
	echo "installed: $(BINDIR)/imagefs"

uninstall:
	@if [ "$$(readlink "$(BINDIR)/imagefs")" = "$(PREFIX)/bin/imagefs" ]; then rm "$(BINDIR)/imagefs"; fi
	@if [ -f "$(PREFIX)/pyvenv.cfg" ]; then rm -r "$(PREFIX)"; fi

wheel: setup
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@rm -rf build

clean:
	rm -rf $(VENV) build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
