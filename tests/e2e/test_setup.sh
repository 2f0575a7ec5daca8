#!/usr/bin/env bash
# deploy/setup: nothing missing is silence; without root and sudo the exact line to run; with root
# apt gets exactly the missing packages.
# shellcheck disable=SC2016 # what is in single quotes is expanded by the fakes
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

bin=$work/bin
mkdir "$bin"
for tool in bash cat dirname env grep nproc sed tail; do ln -s "$(type -P "$tool")" "$bin/$tool"; done
# fake NAME BODY: a command of that name on the only PATH that setup sees.
fake() {
    printf '#!%s\n%s\n' "$(type -P bash)" "$2" >"$bin/$1"
    chmod +x "$bin/$1"
}
export calls=$work/calls

# All there but two.
fake dpkg-query 'for p; do case $p in -*|*Status*|check|libpng-dev) ;; *) echo "$p installed" ;; esac; done'
fake id 'echo 1000'
run 5 env PATH="$bin" "$ROOT/deploy/setup"
says 'neither root nor sudo'
grep -qx 'apt-get install -y --no-install-recommends libpng-dev check' "$work/output" ||
    fail 'the line to run is not exact'

# sudo that would ask for a password, and no terminal to ask at.
fake sudo 'exit 1'
run 5 env PATH="$bin" "$ROOT/deploy/setup"

# sudo that works.
fake sudo '[[ $1 != -n ]] || exit 0; echo "sudo" >>"$calls"; exec "$@"'
fake apt-get 'echo "$*" >>"$calls"'
run 0 env PATH="$bin" "$ROOT/deploy/setup"
grep -q '^sudo$' "$calls" || fail 'sudo was not used'
grep -q -- '--no-install-recommends libpng-dev check$' "$calls" || fail 'apt got other packages'

# As root, where the first try needs new package lists.
fake id 'echo 0'
rm "$calls"
fake apt-get 'echo "$*" >>"$calls"; [[ $1 == update ]] || grep -q ^update "$calls"'
run 0 env PATH="$bin" "$ROOT/deploy/setup"
[[ $(wc -l <"$calls") == 3 ]] || fail "expected install, update, install: $(cat "$calls")"

# apt that fails twice: one clear line with the packages, exit 5.
fake apt-get 'exit 100'
run 5 env PATH="$bin" "$ROOT/deploy/setup"
says 'apt could not install: libpng-dev check'

# Nothing missing: no output.
fake dpkg-query 'for p; do echo "$p installed"; done'
run 0 env PATH="$bin" "$ROOT/deploy/setup" --dev
[[ ! -s $work/output ]] || fail 'output although nothing was missing'

run 2 env PATH="$bin" "$ROOT/deploy/setup" --nonsense
says "unknown option '--nonsense'"
