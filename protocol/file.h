/*
 * Files that are read or written whole. What is written whole never shows up half: it goes under a
 * temporary name in the same folder, is fsynced, renamed, and the folder is fsynced (FORMATS 3). A
 * writer that is killed leaves the file before, and no temporary where the file system can have
 * files without a name.
 * A failed write is STATUS_ENVIRONMENT, removes the temporary and leaves the file before alone.
 */
#ifndef RINGMASTER_PROTOCOL_FILE_H
#define RINGMASTER_PROTOCOL_FILE_H

#include <stddef.h>
#include <sys/types.h>

#include "protocol/status.h"

/* Reads a regular file (or a pipe; "-" is not special) of at most max_bytes; *ret_bytes has a NUL
 * behind ret_length bytes, the caller frees it. Missing, unreadable, a folder, too large:
 * STATUS_BAD_INPUT; an I/O error: STATUS_ENVIRONMENT. */
CHECK_RESULT status file_read_all(const char *path, size_t max_bytes, char **ret_bytes,
                                  size_t *ret_length, errbuf *err);

/* All bytes to a descriptor, over short writes and EINTR. `path` is for the message. */
CHECK_RESULT status file_write_fd(int fd, const char *path, const void *bytes, size_t length,
                                  errbuf *err);

CHECK_RESULT status file_write_atomic(const char *path, const void *bytes, size_t length,
                                      errbuf *err);

/* The same for files too large to hold in memory: open, write in pieces, then commit or discard.
 * A failed write or commit has already discarded (*f is NULL then). One thread at a time. */
typedef struct atomic_file atomic_file;
CHECK_RESULT status atomic_file_open(const char *path, atomic_file **ret_file, errbuf *err);
CHECK_RESULT status atomic_file_write(atomic_file **f, const void *bytes, size_t length,
                                      errbuf *err);
CHECK_RESULT status atomic_file_commit(atomic_file **f, errbuf *err);
void atomic_file_discard(atomic_file **f); /* NULL-safe */

/* mkdir -p; the new entries are durable. A folder that is there already is fine. */
CHECK_RESULT status file_make_dirs(const char *path, errbuf *err);
/* Makes the entries of a folder durable. */
CHECK_RESULT status file_sync_dir(const char *path, errbuf *err);
/* The folder that holds path's last part ("." where there is none); caller frees. */
CHECK_RESULT status file_parent(const char *path, char **ret_folder, errbuf *err);
/* Absolute, without "." parts and doubled slashes; links and ".." stay. Caller frees. */
CHECK_RESULT status file_absolute(const char *path, char **ret_path, errbuf *err);

#endif
