/*
 * SHA-256 (FIPS 180-4), incremental. Uses the CPU's SHA instructions where it has them; the choice
 * is made at sha256_init and kept in the context.
 */
#ifndef RINGMASTER_PROTOCOL_SHA256_H
#define RINGMASTER_PROTOCOL_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES    32
#define SHA256_HEX_SIZE 65 /* with the NUL */

typedef struct sha256 {
    uint32_t state[8];
    uint64_t total; /* bytes so far */
    uint8_t block[64];
    void (*compress)(uint32_t state[8], const uint8_t *blocks, size_t count);
} sha256;

void sha256_init(sha256 *h);
/* The portable path, whatever the CPU has (tests compare the two). */
void sha256_init_portable(sha256 *h);
bool sha256_is_accelerated(const sha256 *h);
void sha256_update(sha256 *h, const void *bytes, size_t length);
/* The context must be initialised again before another use. */
void sha256_final(sha256 *h, uint8_t ret_digest[SHA256_BYTES]);
void sha256_final_hex(sha256 *h, char ret_hex[SHA256_HEX_SIZE]);

#endif
