/* What decides the order of NCCL's float sums; see nccl_settings.h. */
#include "kernels/cuda/nccl_settings.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Blocks of NCCL's kernel. Nothing computes beside it, and more gain little below 50 MB. */
#define CHANNELS 16

/* Where the protocol LL (half the wire for data, least latency) stops being faster than Simple, a
 * rank on NVLink, by NCCL's cost model. */
#define LL_BYTES_A_RANK (512 << 10)
#define LL_RANKS        8

static const char *const names[NCCL_SETTINGS] = {"NCCL_ALGO", "NCCL_PROTO", "NCCL_NVLS_ENABLE"};

static bool user_sets_channels(void)
{
    static const char *const theirs[] = {"NCCL_MIN_CTAS",      "NCCL_MAX_CTAS",
                                         "NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS",
                                         "NCCL_MIN_NRINGS",    "NCCL_MAX_NRINGS"};
    for (size_t i = 0; i < sizeof theirs / sizeof *theirs; i++)
        if (getenv(theirs[i]))
            return true;
    return false;
}

/* Trees where there are several hosts: a ring's latency grows with the ranks. NVLS off: its sums
 * are not repeatable, and what it allocates may fail or hang. */
void nccl_settings_choose(const comm_device_options *o, nccl_settings *ret)
{
    memset(ret, 0, sizeof *ret);
    if (o->exact)
        return;
    const comm *host = o->host;
    const int64_t ranks = host->size < LL_RANKS ? host->size : LL_RANKS;
    const int64_t bytes = o->elements * (int64_t)sizeof(float);
    const char *const ours[NCCL_SETTINGS] = {
        [NCCL_SET_ALGO] = host->local_size == host->size ? "Ring" : "ring;allreduce:tree",
        [NCCL_SET_PROTO] = bytes <= ranks * LL_BYTES_A_RANK ? "LL" : "Simple",
        [NCCL_SET_NVLS] = "0",
    };
    for (int i = 0; i < NCCL_SETTINGS; i++) {
        const char *theirs = getenv(names[i]);
        snprintf(ret->value[i], sizeof ret->value[i], "%s", theirs ? theirs : ours[i]);
    }
    ret->channels = user_sets_channels() ? 0 : CHANNELS;
}

void nccl_settings_name(const nccl_settings *s, char *name, int size)
{
    char channels[16] = "user";
    if (s->channels)
        snprintf(channels, sizeof channels, "%d", s->channels);
    snprintf(name, (size_t)size, "nccl-%s-%s-%s", s->value[NCCL_SET_ALGO], s->value[NCCL_SET_PROTO],
             channels);
    for (char *p = name; *p; p++)
        *p = (char)tolower((unsigned char)*p);
}

void nccl_environment_enter(nccl_environment *e, const nccl_settings *s)
{
    memset(e, 0, sizeof *e);
    for (int i = 0; i < NCCL_SETTINGS; i++) {
        if (!s->value[i][0])
            continue;
        const char *old = getenv(names[i]);
        e->old[i] = old ? strdup(old) : NULL;
        e->set[i] = setenv(names[i], s->value[i], 1) == 0;
    }
}

void nccl_environment_leave(nccl_environment *e)
{
    for (int i = 0; i < NCCL_SETTINGS; i++) {
        if (e->set[i] && e->old[i])
            setenv(names[i], e->old[i], 1);
        else if (e->set[i])
            unsetenv(names[i]);
        free(e->old[i]);
    }
}
