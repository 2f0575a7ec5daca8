/* comm `self`; see comm_self.h. */
#include "kernels/comm_self.h"

#include <stdlib.h>
#include <string.h>

static void self_close(comm *c)
{
    free(c);
}

static status self_all_reduce_float(comm *c, float *data, int64_t count, errbuf *err)
{
    (void)c, (void)data, (void)count, (void)err;
    return STATUS_OK;
}

static status self_all_reduce_int64(comm *c, int64_t *data, int64_t count, errbuf *err)
{
    (void)c, (void)data, (void)count, (void)err;
    return STATUS_OK;
}

static status self_all_gather(comm *c, const void *mine, int64_t bytes, void *all, errbuf *err)
{
    (void)c, (void)err;
    memmove(all, mine, (size_t)bytes);
    return STATUS_OK;
}

static status self_broadcast(comm *c, void *data, int64_t bytes, int root, errbuf *err)
{
    (void)c, (void)data, (void)bytes, (void)root, (void)err;
    return STATUS_OK;
}

static status self_barrier(comm *c, errbuf *err)
{
    (void)c, (void)err;
    return STATUS_OK;
}

static void self_publish(comm *c, uint64_t step)
{
    (void)c, (void)step;
}

static void self_give_up(comm *c, const errbuf *why)
{
    (void)c, (void)why;
}

static void self_silent(comm *c, double seconds, comm_peer *ret)
{
    (void)c, (void)seconds;
    *ret = (comm_peer){.rank = -1};
}

__attribute__((noreturn)) static void self_abort(comm *c, int exit_code)
{
    (void)c;
    _Exit(exit_code);
}

static const comm_ops self_ops = {
    .name = "self",
    .close = self_close,
    .all_reduce_float = self_all_reduce_float,
    .all_reduce_int64 = self_all_reduce_int64,
    .all_gather = self_all_gather,
    .broadcast = self_broadcast,
    .barrier = self_barrier,
    .publish = self_publish,
    .give_up = self_give_up,
    .silent = self_silent,
    .abort = self_abort,
};

status comm_self_open(comm **ret_comm, errbuf *err)
{
    comm *c = calloc(1, sizeof *c);
    if (!c)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening the self comm");
    c->ops = &self_ops;
    c->rank = 0;
    c->size = 1;
    c->local_rank = 0;
    c->local_size = 1;
    *ret_comm = c;
    return STATUS_OK;
}
