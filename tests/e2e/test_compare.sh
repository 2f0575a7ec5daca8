#!/usr/bin/env bash
# ringtrain compare as a user meets it: streams, exit codes, files, odd names.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${RINGTRAIN:?the program; ctest sets it}"
cd "$work" || exit 1

# make RUN RING DOF TOP1: a run folder as a finished training leaves it.
make() {
    mkdir -p "$1/attempt-1"
    printf '{"name": "%s"}\n' "${1##*/}" >"$1/job.json"
    printf '{"outcome": "done", "epochs": 3, "ring_size": %s, "dof": %s, "generated": %s, %s, %s}\n' \
        "$2" "$3" $(($2 > 0 ? 174336 : 0)) "\"final\": {\"top1\": $4}, \"best\": {\"top1\": 0.7}" \
        '"images_per_second": 1234, "wire_floats": 2000' >"$1/attempt-1/result.json"
}
make "runs/dense" 0 175752 0.65
make "runs/ring-4608" 4608 6024 0.5
make "runs/it's \$(touch here) \`touch here\`" 576 1992 0.25

run 0 "$RINGTRAIN" compare --plot "a plot" runs/*
says '4,608'
says '3.4 %'
says '50.0 %'
says '8,000'
[[ -s 'a plot.svg' && -s 'a plot.png' ]] || fail 'no plot'
[[ ! -e here ]] || fail 'a name was run as a command'
grep -q 'ring-4608' 'a plot.svg' || fail 'points have no names'
[[ $(ls -A) == $(printf 'a plot.png\na plot.svg\noutput\nruns') ]] || fail "left behind: $(ls -A)"

# Machines read stdout, where nothing but JSON stands.
"$RINGTRAIN" compare --json --plot plot runs/dense runs/ring-4608 >json 2>notes || fail 'exit code'
grep -q '"dof":[[:space:]]*6024' json || fail 'not in the JSON'
[[ $(head -c 1 json) == '[' && $(tail -c 2 json) == ']' ]] || fail 'something else than JSON on stdout'

# Without gnuplot the table is still printed.
mkdir empty
run 5 env PATH="$work/empty" "$RINGTRAIN" compare --plot none runs/dense
says 'gnuplot is not installed'
says '175,752'
[[ ! -e none.svg ]] || fail 'half a plot'

run 2 "$RINGTRAIN" compare
says 'no run folder given'
# What would mean nothing is not ignored.
run 2 "$RINGTRAIN" compare --set train.lr=1 runs/dense
says '--set'
run 2 "$RINGTRAIN" compare --backend cpu runs/dense
says '--backend'
run 2 "$RINGTRAIN" compare runs/dense nowhere
says 'nowhere'
run 2 "$RINGTRAIN" compare --plot no/such/folder/plot runs/dense
says 'no/such/folder/plot'
