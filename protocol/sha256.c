/* SHA-256; see sha256.h. */
#include "protocol/sha256.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

static const uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static uint32_t load_big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void compress_portable(uint32_t state[8], const uint8_t *blocks, size_t count)
{
    for (; count > 0; count--, blocks += 64) {
        uint32_t w[64], v[8];
        for (int t = 0; t < 16; t++)
            w[t] = load_big_endian(blocks + 4 * t);
        for (int t = 16; t < 64; t++) {
            uint32_t a = w[t - 15], b = w[t - 2];
            w[t] = w[t - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[t - 7] +
                   (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
        }
        memcpy(v, state, sizeof v);
        /* The eight variables change names instead of places. */
        for (int t = 0; t < 64; t += 8) {
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                uint32_t a = v[(8 - i) & 7], b = v[(9 - i) & 7], c = v[(10 - i) & 7];
                uint32_t e = v[(12 - i) & 7], f = v[(13 - i) & 7], g = v[(14 - i) & 7];
                uint32_t t1 = v[(15 - i) & 7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                              ((e & f) ^ (~e & g)) + round_constants[t + i] + w[t + i];
                uint32_t t2 =
                    (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
                v[(11 - i) & 7] += t1;
                v[(15 - i) & 7] = t1 + t2;
            }
        }
        for (int i = 0; i < 8; i++)
            state[i] += v[i];
    }
}

#if defined(__x86_64__)
/* The instructions keep the state as the vectors {F,E,B,A} and {H,G,D,C} (low lane first), do four
 * rounds with two of them, and make four schedule words from the sixteen before. */
__attribute__((target("sha,sse4.1,ssse3"))) static void compress_sha_ni(uint32_t state[8],
                                                                        const uint8_t *blocks,
                                                                        size_t count)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef = _mm_set_epi32((int)state[0], (int)state[1], (int)state[4], (int)state[5]);
    __m128i cdgh = _mm_set_epi32((int)state[2], (int)state[3], (int)state[6], (int)state[7]);
    for (; count > 0; count--, blocks += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(blocks + 16 * i)), swap);
#pragma GCC unroll 16
        for (int g = 0; g < 16; g++) {
            __m128i words = w[g & 3];
            __m128i sum =
                _mm_add_epi32(words, _mm_loadu_si128((const __m128i *)(round_constants + 4 * g)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
            if (g < 12) {
                /* w[t-16] + s0(w[t-15]) + w[t-7], then s1 of the newest words. */
                __m128i next = _mm_sha256msg1_epu32(words, w[(g + 1) & 3]);
                next = _mm_add_epi32(next, _mm_alignr_epi8(w[(g + 3) & 3], w[(g + 2) & 3], 4));
                w[g & 3] = _mm_sha256msg2_epu32(next, w[(g + 3) & 3]);
            }
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    state[0] = (uint32_t)_mm_extract_epi32(abef, 3);
    state[1] = (uint32_t)_mm_extract_epi32(abef, 2);
    state[4] = (uint32_t)_mm_extract_epi32(abef, 1);
    state[5] = (uint32_t)_mm_extract_epi32(abef, 0);
    state[2] = (uint32_t)_mm_extract_epi32(cdgh, 3);
    state[3] = (uint32_t)_mm_extract_epi32(cdgh, 2);
    state[6] = (uint32_t)_mm_extract_epi32(cdgh, 1);
    state[7] = (uint32_t)_mm_extract_epi32(cdgh, 0);
}

static bool has_sha_ni(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSE4_1) || !(c & bit_SSSE3))
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}
#endif

void sha256_init_portable(sha256 *h)
{
    static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memset(h, 0, sizeof *h);
    memcpy(h->state, initial, sizeof initial);
    h->compress = compress_portable;
}

void sha256_init(sha256 *h)
{
    sha256_init_portable(h);
#if defined(__x86_64__)
    if (has_sha_ni())
        h->compress = compress_sha_ni;
#endif
}

bool sha256_is_accelerated(const sha256 *h)
{
    return h->compress != compress_portable;
}

void sha256_update(sha256 *h, const void *bytes, size_t length)
{
    const uint8_t *p = bytes;
    size_t used = h->total % 64;
    h->total += length;
    if (used > 0) {
        size_t room = 64 - used, n = length < room ? length : room;
        if (n > 0)
            memcpy(h->block + used, p, n);
        p += n;
        length -= n;
        if (used + n < 64)
            return;
        h->compress(h->state, h->block, 1);
    }
    if (length >= 64)
        h->compress(h->state, p, length / 64);
    p += length / 64 * 64;
    if (length % 64 > 0)
        memcpy(h->block, p, length % 64);
}

void sha256_final(sha256 *h, uint8_t ret_digest[SHA256_BYTES])
{
    uint8_t padding[128] = {0x80};
    uint64_t bits = h->total * 8;
    size_t used = h->total % 64;
    size_t zeros_to = (used < 56 ? 56 : 120) - used;
    for (int i = 0; i < 8; i++)
        padding[zeros_to + (size_t)i] = (uint8_t)(bits >> (56 - 8 * i));
    sha256_update(h, padding, zeros_to + 8);
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < 4; k++)
            ret_digest[4 * i + k] = (uint8_t)(h->state[i] >> (24 - 8 * k));
}

void sha256_final_hex(sha256 *h, char ret_hex[SHA256_HEX_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    uint8_t digest[SHA256_BYTES];
    sha256_final(h, digest);
    for (int i = 0; i < SHA256_BYTES; i++) {
        ret_hex[2 * i] = digits[digest[i] >> 4];
        ret_hex[2 * i + 1] = digits[digest[i] & 15];
    }
    ret_hex[2 * SHA256_BYTES] = '\0';
}
