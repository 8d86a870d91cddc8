# `just` runs what a change must pass; `just --list` shows the rest.

python := ".venv-test/bin/python"
bin := ".venv-test/bin"

default: lint types test

# An environment with everything the recipes need.
setup:
    python3 -m venv .venv-test && .venv-test/bin/pip install -e '.[test]'

lint:
    {{ bin }}/ruff check .
    {{ bin }}/ruff format --check .
    {{ bin }}/lint-imports

types:
    {{ bin }}/mypy
    {{ bin }}/mypy tests/typing/api.py

test *args:
    {{ python }} -m pytest {{ args }}

# Mend what can be mended.
fix:
    {{ bin }}/ruff check --fix .
    {{ bin }}/ruff format .

# The full counts of suites that run shortened by default.
test-all:
    {{ python }} -m pytest --slow

bench *args:
    {{ bin }}/vecmill bench local {{ args }}

# Pages that are made from the code.
docs:
    {{ python }} scripts/make_cli_reference.py

build:
    {{ python }} -m pip wheel --no-deps -w dist .

lock:
    uv pip compile --universal --generate-hashes --extra test --python-version 3.11 \
        --no-emit-index-url --no-header -q pyproject.toml -o requirements.lock

# What runs for every change, from a copy of the clone.
ci:
    .ci/run
