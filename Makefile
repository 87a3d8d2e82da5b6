# make demo   the app on http://127.0.0.1:7860
# make test   every check and every test, the browser's too
# make soak   fifty visitors on a real app for five minutes
# make quick  the tests that take a moment: no bundled model, no browser, no training process, nothing broken
# make audit  what is installed, against the known vulnerabilities; needs PyPI's advisories in reach
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# A test file at a time on each of two cores, in their own order.
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test soak quick lint audit chromium screenshot clean

demo: .venv/.demo
	$(BIN)/python -m qlora_demo fetch
	$(BIN)/python app.py

test: .venv/.dev lint chromium
	$(PYTEST) $(SPREAD)

soak: .venv/.dev
	QLORA_DEMO_SOAK_SECONDS=300 $(PYTEST) -s tests/robust/test_soak.py

quick: .venv/.dev
	$(PYTEST) $(SPREAD) --ignore tests/robust -m "not bundled and not browser and not processes and not slow"

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# Strict: a package that could not be looked up is a failure, and no silent pass.
audit: .venv/.demo
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.audit/bin/pip-audit --strict --path "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"

# A Chromium of the system is used where there is one; Playwright's own is the last resort.
chromium: .venv/.dev
	@command -v chromium chromium-browser google-chrome >/dev/null \
	|| (command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium) \
	|| $(BIN)/python -m playwright install chromium

screenshot: .venv/.dev chromium
	QLORA_DEMO_SCREENSHOTS=test-artifacts $(PYTEST) tests/browser
	cd test-artifacts && cp train.png chat.png evaluate.png ../docs

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.demo: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv .audit
