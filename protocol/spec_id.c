/*
 * The job id (FORMATS 2): the first 16 bytes, in hex, of SHA-256 over the compact JSON
 *   {"data":DATA_HASH,"spec":RESULTS,"version":SPEC_VERSION}
 * where RESULTS is what spec_dump_results writes. A field that is added later must be left out of
 * RESULTS where it has the value that means 'as before', or every id in every store changes.
 */
#include <stdlib.h>
#include <string.h>

#include "protocol/sha256.h"
#include "protocol/spec_internal.h"

status spec_job_id(const spec *s, const char *data_hash, char ret_id[33], errbuf *err)
{
    size_t length = strlen(data_hash);
    if (length == 0 || strspn(data_hash, "0123456789abcdef") != length)
        return errbuf_set(err, STATUS_BAD_INPUT, "the data's content hash \"%.80s\" is not hex",
                          data_hash);
    char *results = NULL, *text = NULL, hex[SHA256_HEX_SIZE];
    TRY(spec_dump_results(s, &results, err));
    strbuf b = {0};
    strbuf_add_format(&b, "{\"data\":\"%s\",\"spec\":%s,\"version\":%d}", data_hash, results,
                      SPEC_VERSION);
    free(results);
    TRY(strbuf_take(&b, &text, err));
    sha256 h;
    sha256_init(&h);
    sha256_update(&h, text, strlen(text));
    sha256_final_hex(&h, hex);
    free(text);
    memcpy(ret_id, hex, 32);
    ret_id[32] = '\0';
    return STATUS_OK;
}
