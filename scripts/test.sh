#!/usr/bin/env bash
# Style, types, then every test of the suite. Arguments go to pytest (`./vla test -k executor`).
set -euo pipefail
if [ $# = 0 ]; then
  ruff check .
  ruff format --check .
  mypy
fi
exec python -m pytest "$@"
