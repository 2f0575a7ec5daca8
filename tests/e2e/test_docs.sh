#!/usr/bin/env bash
# docs/spec.md is what `ringtrain train --fields` prints, the exit codes of README.md are those of
# `ringtrain --help`, and every file that README.md links to or names with a folder is there.
# shellcheck disable=SC2013,SC2016 # words without spaces; backticks of Markdown
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${RINGTRAIN:?the program; ctest sets it}"

run 0 "$RINGTRAIN" train --fields
sed -n '/^```$/,/^```$/p' "$ROOT/docs/spec.md" | sed '/^```$/d' >"$work/spec"
diff "$work/spec" "$work/output" || fail 'docs/spec.md is out of date: ringtrain train --fields'

run 0 "$RINGTRAIN" --help
for code in $(sed -n 's/^| \([0-9]\{1,3\}\) |.*/\1/p' "$ROOT/README.md"); do
    grep -qE "(^|[^0-9])$code " "$work/output" || fail "README.md has exit code $code, --help does not"
done

grep -ohE '`(deploy|tests|docs|kernels|trainer|protocol|\.ci)/[A-Za-z0-9_./-]*' "$ROOT/README.md" "$ROOT"/docs/*.md |
    tr -d '`' | sort -u >"$work/names"
grep -oE '\]\([a-z][^)]*\)' "$ROOT/README.md" | tr -d '])(' >>"$work/names"
while read -r name; do
    [[ $name != *DATE* ]] || continue
    [[ -e $ROOT/$name ]] || fail "README.md or docs/ name $name, which is not there"
done <"$work/names"
