#!/usr/bin/env bash
# deploy/mpitrain: its options, its signals and its exit codes, with an mpirun that only records.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

mkdir "$work/bin" "$work/tmp"
cat >"$work/bin/mpirun" <<'FAKE'
#!/usr/bin/env bash
# Writes its arguments and the signals that it gets; ends after SIGUSR1, a moment later, with 143.
# At once with CODE where that is set.
printf '%s\n' "$@" >"$RECORD.arguments"
trap 'echo USR1 >>"$RECORD.signals"; sleep 0.3; exit 143' USR1
trap 'echo TERM >>"$RECORD.signals"; exit 1' TERM
trap 'echo INT >>"$RECORD.signals"' INT
[[ ! ${CODE:-} ]] || exit "$CODE"
touch "$RECORD.ready"
while :; do sleep 0.05; done
FAKE
chmod +x "$work/bin/mpirun"
export RECORD=$work/record RINGTRAIN=/bin/echo PATH=$work/bin:$PATH TMPDIR=$work/tmp
mpitrain=$ROOT/deploy/mpitrain

argument() {
    grep -qxF -- "$1" "$RECORD.arguments"
}

# Each of INT, TERM and HUP, sent to the wrapper alone, becomes one USR1, and 143 comes out.
for signal in INT TERM HUP; do
    rm -f "$RECORD".*
    # A background job of a shell without job control would ignore INT: env gives it back.
    env --default-signal=INT "$mpitrain" -np 2 train "a job.json" >"$work/output" 2>&1 &
    pid=$!
    for _ in {1..200}; do [[ ! -e $RECORD.ready ]] && sleep 0.05; done
    [[ -e $RECORD.ready ]] || fail 'mpirun was not started'
    kill "-$signal" "$pid"
    code=0
    wait "$pid" || code=$?
    ((code == 143)) || fail "exit code $code after $signal"
    [[ $(cat "$RECORD.signals") == USR1 ]] || fail "mpirun got $(cat "$RECORD.signals") for $signal"
    says 'stopping'
done
argument 'a job.json' || fail 'an argument with a space was split'
argument none || fail 'ranks are bound'

# A second signal at once is the same request; one that comes later does not wait for the checkpoint.
rm -f "$RECORD".*
sed -i 's/sleep 0.3; exit 143/:/' "$work/bin/mpirun"
env --default-signal=INT "$mpitrain" -np 2 train job.json >"$work/output" 2>&1 &
pid=$!
for _ in {1..200}; do [[ ! -e $RECORD.ready ]] && sleep 0.05; done
kill -TERM "$pid"
kill -INT "$pid"
sleep 3.5
for _ in {1..200}; do [[ ! -e $RECORD.signals ]] && sleep 0.05; done
[[ $(cat "$RECORD.signals") == USR1 ]] || fail "a doubled signal became $(cat "$RECORD.signals")"
kill -TERM "$pid"
code=0
wait "$pid" || code=$?
((code == 1)) || fail "exit code $code after two signals"
[[ $(tr '\n' ' ' <"$RECORD.signals") == 'USR1 TERM ' ]] || fail "signals: $(cat "$RECORD.signals")"

# Exit codes pass through; nothing is left in the temporary folder.
for code in 0 2 6; do CODE=$code run "$code" "$mpitrain" -np 1 train job.json; done
[[ -z $(ls -A "$work/tmp") ]] || fail "left behind: $(ls -A "$work/tmp")"

# More ranks than cores, and mpirun options of the user's.
CODE=0 run 0 "$mpitrain" -np 4096 train job.json
argument --oversubscribe || fail '4096 ranks and no --oversubscribe'
CODE=0 run 0 "$mpitrain" -np 1 train job.json
argument --oversubscribe && fail '--oversubscribe for one rank'
CODE=0 run 0 "$mpitrain" -np 64 --hostfile "my hosts" --bind-to core -- train job.json
argument 'my hosts' || fail 'an mpirun option was lost'
argument none && fail '--bind-to was overridden'
argument --oversubscribe && fail '--oversubscribe on hosts that have slots of their own'
argument -- && fail 'the separator was handed on'
if [[ $(id -u) == 0 ]]; then
    argument --allow-run-as-root || fail 'mpirun would refuse root'
fi

run 2 "$mpitrain" train job.json
says '-np N'
run 2 "$mpitrain" -np two train job.json
says "not 'two'"
run 2 "$mpitrain" -np 2
says 'nothing to run'
run 2 "$mpitrain" -np 2 --hostfile hosts --
says 'nothing to run'
exit 0
