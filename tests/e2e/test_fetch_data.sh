#!/usr/bin/env bash
# deploy/fetch-data against a server of our own: success, nothing to do, 404, a wrong checksum, a
# download cut short and resumed, an archive that is not the set.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
command -v python3 >/dev/null || exit 77
if [[ ${CURL:-} == no ]]; then
    command -v wget >/dev/null || exit 77
else
    command -v curl >/dev/null || command -v wget >/dev/null || exit 77
fi

# Archives with the official names and layout, small.
mkdir -p "$work/make/cifar-10-batches-bin" "$work/make/cifar-100-binary" "$work/www"
for i in 1 2 3 4 5; do head -c 30730 /dev/urandom >"$work/make/cifar-10-batches-bin/data_batch_$i.bin"; done
head -c 30730 /dev/urandom >"$work/make/cifar-10-batches-bin/test_batch.bin"
for i in train test; do head -c 30740 /dev/urandom >"$work/make/cifar-100-binary/$i.bin"; done
tar -C "$work/make" -czf "$work/www/cifar-10-binary.tar.gz" cifar-10-batches-bin
tar -C "$work/make" -czf "$work/www/cifar-100-binary.tar.gz" cifar-100-binary
sum() { md5sum <"$work/www/$1" | cut -d' ' -f1; }
sum10=$(sum cifar-10-binary.tar.gz) sum100=$(sum cifar-100-binary.tar.gz)

# Byte ranges as the real server has them; /cut/ drops the connection after 10,000 bytes; every
# request is logged with its range.
cat >"$work/server.py" <<'SERVER'
import http.server, os, re, sys
os.chdir(sys.argv[1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        cut = self.path.startswith('/cut/')
        ranges = self.headers.get('Range')
        with open('../requests', 'a') as log:
            log.write('%s %s\n' % (self.path, ranges or 'whole'))
        try:
            data = open(self.path.rsplit('/', 1)[1], 'rb').read()
        except OSError:
            return self.send_error(404)
        start = int(re.match(r'bytes=(\d+)-', ranges).group(1)) if ranges else 0
        self.send_response(206 if ranges else 200)
        self.send_header('Content-Length', str(len(data) - start))
        if ranges:
            self.send_header('Content-Range', 'bytes %d-%d/%d' % (start, len(data) - 1, len(data)))
        self.end_headers()
        self.wfile.write(data[start:start + 10000] if cut else data[start:])
        self.close_connection = True
    def log_message(self, *arguments):
        pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
with open('../port.new', 'w') as f:
    f.write(str(server.server_port))
os.rename('../port.new', '../port')
server.serve_forever()
SERVER
python3 "$work/server.py" "$work/www" &
server=$!
stop_server() {
    kill "$server" 2>/dev/null
    rm -rf "$work"
}
finish=(stop_server)
# With wget alone where CURL=no (a PATH without curl).
if [[ ${CURL:-} == no ]]; then
    mkdir "$work/bin"
    for tool in /usr/bin/*; do ln -s "$tool" "$work/bin/"; done
    rm -f "$work/bin/curl"
    PATH=$work/bin
fi
for _ in {1..200}; do [[ ! -e $work/port ]] && sleep 0.05; done
address=http://127.0.0.1:$(cat "$work/port")
unset http_proxy HTTP_PROXY ALL_PROXY all_proxy
export RINGMASTER_DATA_URL=$address
fetch=$ROOT/deploy/fetch-data
sums=(--md5 "cifar10=$sum10" --md5 "cifar100=$sum100")
both="$work/both sets"

# Success, from another folder, with a relative destination that has a space.
cd "$work" || exit 1
run 0 "$fetch" "both sets" "${sums[@]}"
diff -r "$work/make" "$both" || fail 'the unpacked sets differ from what was served, or more is there'

# Again: nothing is asked of the server.
rm requests
run 0 "$fetch" "$both" "${sums[@]}"
says 'is there already'
[[ ! -e requests ]] || fail 'asked the server although all was there'

# 404: one line with the address, exit 5, nothing unpacked.
mv "$work/www/cifar-100-binary.tar.gz" "$work/kept"
run 5 "$fetch" "$work/none" cifar100 "${sums[@]}"
says "$address/cifar-100-binary.tar.gz failed"
[[ -z $(ls -A "$work/none") ]] || fail "left behind: $(ls -A "$work/none")"
mv "$work/kept" "$work/www/cifar-100-binary.tar.gz"

# The official checksum, which these archives do not have.
run 3 "$fetch" "$work/bad" cifar10
says 'another checksum than c32a1d4ab5d03f1284b67883e8d87530'
[[ -z $(ls -A "$work/bad") ]] || fail "left behind: $(ls -A "$work/bad")"

# Cut short: exit 5 and the part kept; the next run goes on from there.
RINGMASTER_DATA_URL=$address/cut run 5 "$fetch" "$work/cut" cifar10 "${sums[@]}"
says 'run again to go on'
[[ -s $work/cut/cifar-10-binary.tar.gz.part && ! -e $work/cut/cifar-10-batches-bin ]] ||
    fail 'the part is not there, or more than the part'
rm requests
run 0 "$fetch" "$work/cut" cifar10 "${sums[@]}"
grep -qE 'bytes=[1-9][0-9]*-' requests || fail "not resumed: $(cat requests)"
diff -r "$work/make/cifar-10-batches-bin" "$work/cut/cifar-10-batches-bin" || fail 'resumed wrongly'

# The right checksum on something that is not the set.
tar -C "$work/make/cifar-100-binary" -czf "$work/www/cifar-10-binary.tar.gz" train.bin
run 3 "$fetch" "$work/other" cifar10 --md5 "cifar10=$(sum cifar-10-binary.tar.gz)"
says 'does not hold cifar-10-batches-bin'
[[ ! -e $work/other/cifar-10-batches-bin ]] || fail 'half a set was put in place'

# A folder of that name without the files is not touched.
mkdir -p "$work/mine/cifar-100-binary"
echo mine >"$work/mine/cifar-100-binary/notes"
run 3 "$fetch" "$work/mine" cifar100 "${sums[@]}"
[[ $(cat "$work/mine/cifar-100-binary/notes") == mine ]] || fail "the user's folder was changed"

run 2 "$fetch"
run 2 "$fetch" "$work/x" imagenet
says "unknown set 'imagenet'"
