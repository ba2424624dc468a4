#!/usr/bin/env bash
# Style, types, then every test of the suite. Arguments go to pytest (`./vla test -k executor`).
set -euo pipefail
if [ $# = 0 ]; then
  ruff check .
  ruff format --check .
  mypy
fi

# Some tests, chosen by path or name, start faster in one process.
[ $# = 0 ] || { [ $# = 2 ] && [ "$1" = -m ]; } || exec python -m pytest "$@"

# Two processes share the files of the packages; then whole systems, which are several processes each, run one by one.
shared=0 whole=0
python -m pytest src -n 2 --dist loadfile "$@" || shared=$?
[ $shared -le 1 ] || [ $shared = 5 ] || exit $shared  # stopped by the user, or not run at all
python -m pytest tests "$@" || whole=$?
[ $shared != 5 ] || exit $whole  # pytest's code where there is no test of this mark
[ $whole != 5 ] || exit $shared
exit $((shared > whole ? shared : whole))
