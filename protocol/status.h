/*
 * Status codes and error text: how every fallible call of Ringmaster reports.
 *
 * A fallible function returns a `status`, takes an `errbuf *` as its last parameter, leaves its
 * outputs untouched on failure, and writes one clear line at the place where the failure is
 * first seen: what was wrong, where, what to do. Callers pass the status up unchanged and may put
 * context in front (errbuf_prefix). Only main prints, and only main exits: the value of a status
 * is the process's exit code (FORMATS 5).
 */
#ifndef RINGMASTER_PROTOCOL_STATUS_H
#define RINGMASTER_PROTOCOL_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum status {
    STATUS_OK = 0,
    STATUS_BAD_INPUT = 2,     /* spec, arguments, checkpoint of another spec or plan */
    STATUS_DATA = 3,          /* training or validation data cannot be used */
    STATUS_NUMERICAL = 4,     /* non-finite loss or gradient */
    STATUS_ENVIRONMENT = 5,   /* disk full, device lost, library missing, peer lost */
    STATUS_OUT_OF_MEMORY = 6, /* an allocation that should have fitted failed */
    STATUS_INTERRUPTED = 130, /* stopped by SIGINT, checkpoint written */
    STATUS_TERMINATED = 143,  /* stopped by SIGTERM, SIGUSR1 or `stop`, checkpoint written */
} status;

/* One error line. `code` is the status that was reported with it. Zero-initialise before use. */
typedef struct errbuf {
    status code;
    char text[1000];
} errbuf;

/* Stores the line (first failure wins: a set errbuf is not overwritten) and returns `code`.
 * `err` may be NULL. */
status errbuf_set(errbuf *err, status code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __clang_analyzer__
/* It does not see into other files: without this, every failure might be a success to it. */
#define errbuf_set(err, code, ...) ((void)(errbuf_set)((err), (code), __VA_ARGS__), (code))
#endif

/* Puts "context: " in front of the line that is there. Does nothing where none is set. */
void errbuf_prefix(errbuf *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Forgets the line, so that the buffer can take another. */
void errbuf_clear(errbuf *err);

/* "done", "bad input", … : the words for a status in messages and in result.json. */
const char *status_name(status code);

/* An invariant that only a programmer can break; always on, aborts with file and line. */
void assert_failed(const char *what, const char *file, int line) __attribute__((noreturn));

#ifdef __cplusplus
}
#endif

#define CHECK_RESULT __attribute__((warn_unused_result))

/* The only two macros that change control flow. */
#define TRY(expr)                     \
    do {                              \
        status try_status_ = (expr);  \
        if (try_status_ != STATUS_OK) \
            return try_status_;       \
    } while (0)

#define TRY_GOTO(expr, st, label) \
    do {                          \
        (st) = (expr);            \
        if ((st) != STATUS_OK)    \
            goto label;           \
    } while (0)

#define ASSERT(cond)                                  \
    do {                                              \
        if (!(cond))                                  \
            assert_failed(#cond, __FILE__, __LINE__); \
    } while (0)

#endif
