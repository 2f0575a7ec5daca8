/* Threads and cores of a rank; see placement.h. */
#include "trainer/placement.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Ranks with different masks are not each other's peers, also where the masks overlap: whoever gave
 * them out knew why. */
void placement_choose(const rank_place *all, int size, int rank, cpu_set_t *ret_cores)
{
    const rank_place *mine = &all[rank];
    int peers = 0, place = 0;
    for (int r = 0; r < size; r++) {
        if (strcmp(all[r].host, mine->host) != 0 || !CPU_EQUAL(&all[r].mask, &mine->mask))
            continue;
        place += r < rank;
        peers++;
    }
    ASSERT(peers > 0); /* this rank is one */
    int cores = CPU_COUNT(&mine->mask), each = cores / peers, seen = 0;
    CPU_ZERO(ret_cores);
    for (int core = 0; core < CPU_SETSIZE; core++) {
        if (!CPU_ISSET(core, &mine->mask))
            continue;
        if (seen >= place * each && seen < (place + 1) * each)
            CPU_SET(core, ret_cores);
        seen++;
    }
}

static status gather_places(comm *c, rank_place **ret_all, errbuf *err)
{
    rank_place mine;
    memset(&mine, 0, sizeof mine);
    gethostname(mine.host, sizeof mine.host - 1);
    if (sched_getaffinity(0, sizeof mine.mask, &mine.mask) != 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "cannot read the affinity mask: %s",
                          strerror(errno));
    rank_place *all = calloc((size_t)c->size, sizeof *all);
    if (!all)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory placing ranks");
    status st = c->ops->all_gather(c, &mine, sizeof mine, all, err);
    if (st != STATUS_OK) {
        free(all);
        return st;
    }
    *ret_all = all;
    return STATUS_OK;
}

status placement_settle(comm *c, int64_t asked, int *ret_threads, errbuf *err)
{
    rank_place *all = NULL;
    TRY(gather_places(c, &all, err));
    cpu_set_t cores;
    placement_choose(all, c->size, c->rank, &cores);
    free(all);
    int count = CPU_COUNT(&cores);
    int threads = asked > 0 ? (int)asked : (count > 0 ? count : 1);
    int *every = calloc((size_t)c->size, sizeof *every);
    if (!every)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory placing ranks");
    status st = c->ops->all_gather(c, &threads, sizeof threads, every, err);
    for (int r = 0; r < c->size && st == STATUS_OK; r++)
        threads = every[r] < threads ? every[r] : threads;
    free(every);
    if (st != STATUS_OK)
        return st;
    /* Too few cores for the threads: leave it to the system. */
    if (c->size > 1 && count >= threads)
        (void)sched_setaffinity(0, sizeof cores, &cores);
    *ret_threads = threads;
    return STATUS_OK;
}

status placement_pin(const int *cores, int count, errbuf *err)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = 0; i < count; i++)
        CPU_SET(cores[i], &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "cannot run on the %d cores of the attempt: %s",
                          count, strerror(errno));
    return STATUS_OK;
}
