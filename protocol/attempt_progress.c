/* The progress records of an attempt: the trainer's writer and the agent's reader; see attempt.h.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "protocol/attempt.h"
#include "protocol/strbuf.h"

#define MAX_TRIES 1000

_Static_assert(ATTEMPT_PROGRESS_TIME + 8 <= ATTEMPT_PROGRESS_RECORD, "fields fit the record");

/* -- fields of a record: aligned, so that each is one access; ordered among each other by release
 * and acquire (plain moves on x86), so that the version brackets the rest -- */

static void store64(unsigned char *record, size_t offset, uint64_t value)
{
    __atomic_store_n((uint64_t *)(void *)(record + offset), htole64(value), __ATOMIC_RELEASE);
}

static void store32(unsigned char *record, size_t offset, uint32_t value)
{
    __atomic_store_n((uint32_t *)(void *)(record + offset), htole32(value), __ATOMIC_RELEASE);
}

static uint64_t load64(const unsigned char *record, size_t offset)
{
    return le64toh(
        __atomic_load_n((const uint64_t *)(const void *)(record + offset), __ATOMIC_ACQUIRE));
}

static uint32_t load32(const unsigned char *record, size_t offset)
{
    return le32toh(
        __atomic_load_n((const uint32_t *)(const void *)(record + offset), __ATOMIC_ACQUIRE));
}

static status progress_path(const char *host_folder, char **ret_path, errbuf *err)
{
    strbuf b = {0};
    strbuf_add_format(&b, "%s/progress", host_folder);
    return strbuf_take(&b, ret_path, err);
}

/* -- writer -- */

static status map_records(int fd, const char *path, size_t size, void **ret_map, errbuf *err)
{
    /* Allocates and never shrinks: ranks open the file in any order, and a disk that is full must
     * show here, not as a SIGBUS in the middle of training. */
    int error;
    do
        error = posix_fallocate(fd, 0, (off_t)size);
    while (error == EINTR);
    if (error)
        return errbuf_set(err, STATUS_ENVIRONMENT, "cannot make room in %s: %s", path,
                          strerror(error));
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return errbuf_set(err, STATUS_ENVIRONMENT, "cannot map %s: %s", path, strerror(errno));
    *ret_map = map;
    return STATUS_OK;
}

status attempt_progress_open(attempt_progress *p, const char *host_folder, int local_rank,
                             int local_ranks, errbuf *err)
{
    ASSERT(local_rank >= 0 && local_rank < local_ranks && local_ranks <= ATTEMPT_MAX_RANKS);
    char *path = NULL;
    void *map = NULL;
    size_t size = (size_t)local_ranks * ATTEMPT_PROGRESS_RECORD;
    TRY(progress_path(host_folder, &path, err));
    status st;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        st = errbuf_set(err, STATUS_ENVIRONMENT, "cannot open %s: %s", path, strerror(errno));
    else
        st = map_records(fd, path, size, &map, err);
    if (fd >= 0)
        close(fd);
    free(path);
    TRY(st);
    p->map = map;
    p->size = size;
    p->record = (unsigned char *)map + (size_t)local_rank * ATTEMPT_PROGRESS_RECORD;
    return STATUS_OK;
}

void attempt_progress_update(attempt_progress *p, uint64_t step, attempt_phase phase)
{
    if (!p->record)
        return;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint32_t version = load32(p->record, ATTEMPT_PROGRESS_VERSION) | 1;
    store32(p->record, ATTEMPT_PROGRESS_VERSION, version);
    store64(p->record, ATTEMPT_PROGRESS_STEP, step);
    store32(p->record, ATTEMPT_PROGRESS_PHASE, (uint32_t)phase);
    store64(p->record, ATTEMPT_PROGRESS_TIME,
            (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
    store32(p->record, ATTEMPT_PROGRESS_VERSION, version + 1);
}

void attempt_progress_close(attempt_progress *p)
{
    if (!p)
        return;
    if (p->map)
        munmap(p->map, p->size);
    memset(p, 0, sizeof *p);
}

/* -- reader -- */

static bool read_record(const unsigned char *record, attempt_progress_view *ret)
{
    for (int i = 0; i < MAX_TRIES; i++) {
        attempt_progress_view view;
        uint32_t version = load32(record, ATTEMPT_PROGRESS_VERSION);
        view.step = load64(record, ATTEMPT_PROGRESS_STEP);
        view.phase = (attempt_phase)load32(record, ATTEMPT_PROGRESS_PHASE);
        view.time_ns = load64(record, ATTEMPT_PROGRESS_TIME);
        if (version % 2 == 0 && load32(record, ATTEMPT_PROGRESS_VERSION) == version) {
            *ret = view;
            return true;
        }
    }
    return false;
}

status attempt_progress_read(const char *host_folder, int local_rank, attempt_progress_view *ret,
                             errbuf *err)
{
    char *path = NULL;
    TRY(progress_path(host_folder, &path, err));
    status st = STATUS_OK;
    size_t size = ((size_t)local_rank + 1) * ATTEMPT_PROGRESS_RECORD;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *map = MAP_FAILED;
    /* A file that is too short would be a SIGBUS when read through the map. */
    if (fd >= 0 && lseek(fd, 0, SEEK_END) >= (off_t)size)
        map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        st = errbuf_set(err, STATUS_ENVIRONMENT, "cannot read record %d of %s: %s", local_rank,
                        path, fd < 0 ? strerror(errno) : "it is not there");
    else if (!read_record((unsigned char *)map + size - ATTEMPT_PROGRESS_RECORD, ret))
        st = errbuf_set(err, STATUS_ENVIRONMENT,
                        "record %d of %s is half-written: its writer died or is busy", local_rank,
                        path);
    if (map != MAP_FAILED)
        munmap(map, size);
    if (fd >= 0)
        close(fd);
    free(path);
    return st;
}

const char *attempt_phase_name(attempt_phase phase)
{
    static const char *const names[] = {"not started", "loading",       "tuning",  "training",
                                        "evaluating",  "checkpointing", "finished"};
    return phase <= ATTEMPT_FINISHED ? names[phase] : "unknown";
}
