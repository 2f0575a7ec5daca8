/* Reading and atomic writing of whole files; see file.h. */
#include "protocol/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol/strbuf.h"

#define MAX_TEMPORARIES 10000
#define MAX_WRITE       ((size_t)1 << 30) /* below what one write(2) takes on Linux */
#define MIN_READ        ((size_t)1 << 12)
#define OPEN_FILES      "/proc/self/fd"

struct atomic_file {
    int fd;
    char *path, *temporary;
};

/* -- reading -- */

static status read_error(const char *path, int error, errbuf *err)
{
    switch (error) {
    case ENOMEM:
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory reading %s", path);
    case EIO:
    case EMFILE:
    case ENFILE:
    case ESTALE:
        return errbuf_set(err, STATUS_ENVIRONMENT, "cannot read %s: %s", path, strerror(error));
    default:
        return errbuf_set(err, STATUS_BAD_INPUT, "cannot read %s: %s", path, strerror(error));
    }
}

/* Fills *bytes (grown as needed) up to the end of the file or one byte beyond max_bytes. */
static status read_fd(int fd, const char *path, size_t max_bytes, size_t expected, char **bytes,
                      size_t *length, errbuf *err)
{
    size_t capacity = expected < max_bytes ? expected : max_bytes;
    capacity = (capacity < MIN_READ ? MIN_READ : capacity) + 2;
    *length = 0;
    for (;;) {
        char *grown = realloc(*bytes, capacity);
        if (!grown)
            return read_error(path, ENOMEM, err);
        *bytes = grown;
        while (*length < capacity - 1) {
            ssize_t n = read(fd, grown + *length, capacity - 1 - *length);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0)
                return read_error(path, errno, err);
            if (n == 0) {
                grown[*length] = '\0';
                return STATUS_OK;
            }
            *length += (size_t)n;
            if (*length > max_bytes)
                return errbuf_set(err, STATUS_BAD_INPUT, "%s is larger than %zu bytes", path,
                                  max_bytes);
        }
        capacity *= 2;
    }
}

status file_read_all(const char *path, size_t max_bytes, char **ret_bytes, size_t *ret_length,
                     errbuf *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return read_error(path, errno, err);
    struct stat info;
    char *bytes = NULL;
    size_t length = 0;
    status st;
    if (fstat(fd, &info) < 0)
        st = read_error(path, errno, err);
    else if (S_ISDIR(info.st_mode))
        st = read_error(path, EISDIR, err);
    else
        st = read_fd(fd, path, max_bytes, (size_t)info.st_size, &bytes, &length, err);
    close(fd);
    if (st != STATUS_OK) {
        free(bytes);
        return st;
    }
    *ret_bytes = bytes;
    *ret_length = length;
    return STATUS_OK;
}

/* -- writing -- */

/* A path that no host could write is bad input; everything else may be better elsewhere. */
static status write_error(const char *path, int error, errbuf *err)
{
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "disk full writing %s (%s); the file before is kept", path,
                          strerror(error));
    bool is_input = error == ENOTDIR || error == EISDIR || error == ENAMETOOLONG || error == ELOOP;
    return errbuf_set(err, is_input ? STATUS_BAD_INPUT : STATUS_ENVIRONMENT,
                      "cannot write %s: %s; the file before is kept", path, strerror(error));
}

static int write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, bytes, length < MAX_WRITE ? length : MAX_WRITE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        bytes += n;
        length -= (size_t)n;
    }
    return 0;
}

status file_write_fd(int fd, const char *path, const void *bytes, size_t length, errbuf *err)
{
    int error = write_all(fd, bytes, length);
    return error ? write_error(path, error, err) : STATUS_OK;
}

void atomic_file_discard(atomic_file **f)
{
    if (!f || !*f)
        return;
    if ((*f)->fd >= 0)
        close((*f)->fd);
    if ((*f)->temporary)
        unlink((*f)->temporary);
    free((*f)->temporary);
    free((*f)->path);
    free(*f);
    *f = NULL;
}

/* Makes a file of that name, or gives it to the file without one that is open. */
static int claim_name(atomic_file *f, const char *name)
{
    char open_file[64];
    if (f->fd < 0) {
        f->fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        return f->fd < 0 ? errno : 0;
    }
    snprintf(open_file, sizeof open_file, OPEN_FILES "/%d", f->fd);
    return linkat(AT_FDCWD, open_file, AT_FDCWD, name, AT_SYMLINK_FOLLOW) < 0 ? errno : 0;
}

/* Takes PATH.tmp-<pid>-<n>; a name that a dead process (or another host) left is passed over. */
static status take_temporary_name(atomic_file *f, errbuf *err)
{
    for (int n = 0; n < MAX_TEMPORARIES; n++) {
        strbuf name = {0};
        strbuf_add_format(&name, "%s.tmp-%ld-%d", f->path, (long)getpid(), n);
        char *temporary = NULL;
        TRY(strbuf_take(&name, &temporary, err));
        int error = claim_name(f, temporary);
        if (!error) {
            f->temporary = temporary;
            return STATUS_OK;
        }
        free(temporary);
        if (error != EEXIST)
            return write_error(f->path, error, err);
    }
    return write_error(f->path, EEXIST, err);
}

/* Without a name until it is whole, so that a writer that is killed leaves nothing behind; with one
 * from the start where the file system cannot do that. */
static status open_temporary(atomic_file *f, errbuf *err)
{
    char *folder = NULL;
    TRY(file_parent(f->path, &folder, err));
    if (access(OPEN_FILES, F_OK) == 0)
        f->fd = open(folder, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
    free(folder);
    return f->fd >= 0 ? STATUS_OK : take_temporary_name(f, err);
}

status atomic_file_open(const char *path, atomic_file **ret_file, errbuf *err)
{
    atomic_file *f = calloc(1, sizeof *f);
    if (!f)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory writing %s", path);
    f->fd = -1;
    status st = string_copy(path, &f->path, err);
    if (st == STATUS_OK)
        st = open_temporary(f, err);
    if (st != STATUS_OK) {
        atomic_file_discard(&f);
        return st;
    }
    *ret_file = f;
    return STATUS_OK;
}

status atomic_file_write(atomic_file **f, const void *bytes, size_t length, errbuf *err)
{
    status st = file_write_fd((*f)->fd, (*f)->path, bytes, length, err);
    if (st != STATUS_OK)
        atomic_file_discard(f);
    return st;
}

status atomic_file_commit(atomic_file **f, errbuf *err)
{
    int error = fsync((*f)->fd) < 0 ? errno : 0;
    if (!error && !(*f)->temporary) {
        status st = take_temporary_name(*f, err);
        if (st != STATUS_OK) {
            atomic_file_discard(f);
            return st;
        }
    }
    /* Network file systems report a full disk as late as at close. */
    if (close((*f)->fd) < 0 && !error && errno != EINTR)
        error = errno;
    (*f)->fd = -1;
    if (!error && rename((*f)->temporary, (*f)->path) < 0)
        error = errno;
    if (error) {
        status st = write_error((*f)->path, error, err);
        atomic_file_discard(f);
        return st;
    }
    free((*f)->temporary); /* renamed: there is nothing left to remove */
    (*f)->temporary = NULL;
    char *folder = NULL;
    status st = file_parent((*f)->path, &folder, err);
    if (st == STATUS_OK)
        st = file_sync_dir(folder, err);
    free(folder);
    atomic_file_discard(f);
    return st;
}

status file_write_atomic(const char *path, const void *bytes, size_t length, errbuf *err)
{
    atomic_file *f = NULL;
    TRY(atomic_file_open(path, &f, err));
    TRY(atomic_file_write(&f, bytes, length, err));
    return atomic_file_commit(&f, err);
}

/* -- folders and paths -- */

status file_sync_dir(const char *path, errbuf *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = fd < 0 ? errno : 0;
    /* Some file systems have nothing to sync for a folder and say EINVAL. */
    if (!error && fsync(fd) < 0 && errno != EINVAL)
        error = errno;
    if (fd >= 0)
        close(fd);
    if (error)
        return errbuf_set(err, STATUS_ENVIRONMENT, "cannot make the folder %s durable: %s", path,
                          strerror(error));
    return STATUS_OK;
}

status file_parent(const char *path, char **ret_folder, errbuf *err)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    while (length > 1 && path[length - 1] == '/')
        length--;
    strbuf b = {0};
    strbuf_add_bytes(&b, length ? path : ".", length ? length : 1);
    return strbuf_take(&b, ret_folder, err);
}

/* One folder, whose parent is there. */
static status make_dir(const char *path, errbuf *err)
{
    if (mkdir(path, 0777) == 0) {
        char *parent = NULL;
        TRY(file_parent(path, &parent, err));
        status st = file_sync_dir(parent, err);
        free(parent);
        return st;
    }
    int error = errno;
    struct stat info;
    /* Also EACCES and EROFS where the folder is there: only what is missing must be made. */
    if (stat(path, &info) == 0) {
        if (S_ISDIR(info.st_mode))
            return STATUS_OK;
        error = ENOTDIR;
    }
    bool is_full = error == ENOSPC || error == EDQUOT;
    bool is_input = error == ENOTDIR || error == ENAMETOOLONG || error == ELOOP;
    return errbuf_set(err, is_input ? STATUS_BAD_INPUT : STATUS_ENVIRONMENT, "%s the folder %s: %s",
                      is_full ? "disk full making" : "cannot make", path, strerror(error));
}

status file_make_dirs(const char *path, errbuf *err)
{
    char *copy = NULL;
    if (path[0] == '\0')
        return errbuf_set(err, STATUS_BAD_INPUT, "cannot make a folder without a name");
    TRY(string_copy(path, &copy, err));
    status st = STATUS_OK;
    for (char *p = copy + 1; *p && st == STATUS_OK; p++) {
        if (*p != '/' || p[-1] == '/')
            continue;
        *p = '\0';
        st = make_dir(copy, err);
        *p = '/';
    }
    if (st == STATUS_OK)
        st = make_dir(copy, err);
    free(copy);
    return st;
}

status file_absolute(const char *path, char **ret_path, errbuf *err)
{
    strbuf b = {0};
    if (path[0] != '/') {
        char *here = getcwd(NULL, 0);
        if (!here)
            return errbuf_set(err, STATUS_ENVIRONMENT, "cannot name the current folder: %s",
                              strerror(errno));
        strbuf_add(&b, strcmp(here, "/") == 0 ? "" : here);
        free(here);
    }
    for (const char *p = path; *p;) {
        size_t length = strcspn(p, "/");
        if (length > 0 && !(length == 1 && p[0] == '.')) {
            strbuf_add(&b, "/");
            strbuf_add_bytes(&b, p, length);
        }
        p += length;
        p += *p == '/';
    }
    if (b.length == 0)
        strbuf_add(&b, "/");
    return strbuf_take(&b, ret_path, err);
}
