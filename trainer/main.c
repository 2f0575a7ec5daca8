/*
 * ringtrain: trains, evaluates and measures ring-backed networks. This file reads the command line,
 * runs one command, prints its error line and turns its status into the exit code (FORMATS 5).
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "trainer/command.h"

#define RANK_0_SECONDS 3
/* About 0.1 ms: libgomp's own, over 5 ms, is what a thread takes from the others of a machine that
 * has more to do, at every join; a quiet machine shows no difference (tests/bench/results). */
#define SPIN_COUNT "2000"

static const command *const commands[] = {
    &command_train, &command_eval,    &command_info,
    &command_bench, &command_metrics, &command_compare,
};
#define COMMANDS (sizeof commands / sizeof *commands)

static const char common_help[] =
    "Every command takes:\n"
    "  --json            output for machines\n"
    "  --help            this text\n"
    "Those that work with a spec:\n"
    "  --set KEY=VALUE   set a field of the spec, e.g. --set train.lr=0.05; repeatable\n"
    "  --backend NAME    short for --set backend.name=NAME\n"
    "\n"
    "Exit codes: 0 done; 2 bad input; 3 data; 4 numerical; 5 environment; 6 out of memory;\n"
    "130 after SIGINT; 143 after SIGTERM or SIGUSR1 (checkpoint written, run again to resume).\n";

static void print_usage(FILE *to)
{
    fprintf(to,
            "ringtrain %s: trains networks whose conv weights come from one small ring\n\n"
            "Usage: ringtrain COMMAND [options]\n\nCommands:\n",
            RINGMASTER_VERSION);
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(to, "  %-9s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(to, "\n%s\n`ringtrain COMMAND --help` explains a command.\n", common_help);
}

static const command *find_command(const char *name)
{
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

/* A command line being read. `value` holds "--name=value" halves that point into copies. */
typedef struct reader {
    const command *cmd;
    int argc, at;
    char **argv;
    char backend[64]; /* "backend.name=X" */
} reader;

static status take_value(reader *r, const char *name, const char *inlined, const char **ret,
                         errbuf *err)
{
    if (inlined) {
        *ret = inlined;
        return STATUS_OK;
    }
    if (r->at + 1 >= r->argc)
        return errbuf_set(err, STATUS_BAD_INPUT, "option --%s needs a value", name);
    *ret = r->argv[++r->at];
    return STATUS_OK;
}

static status add_set(command_options *o, const char *assignment, errbuf *err)
{
    if (o->sets == COMMAND_MAX_SETS)
        return errbuf_set(err, STATUS_BAD_INPUT, "more than %d --set options", COMMAND_MAX_SETS);
    o->set[o->sets++] = assignment;
    return STATUS_OK;
}

static status take_own_flag(reader *r, command_options *o, const char *name, const char *inlined,
                            errbuf *err)
{
    for (int i = 0; i < r->cmd->flag_count; i++) {
        const command_flag *flag = &r->cmd->flags[i];
        if (strcmp(flag->name, name) != 0)
            continue;
        if (o->extras == (int)(sizeof o->extra / sizeof *o->extra))
            return errbuf_set(err, STATUS_BAD_INPUT, "too many options");
        o->extra[o->extras].name = flag->name;
        o->extra[o->extras].value = NULL;
        if (flag->takes_value)
            TRY(take_value(r, name, inlined, &o->extra[o->extras].value, err));
        else if (inlined)
            return errbuf_set(err, STATUS_BAD_INPUT, "option --%s takes no value", name);
        o->extras++;
        return STATUS_OK;
    }
    return errbuf_set(err, STATUS_BAD_INPUT, "unknown option --%s; see `ringtrain %s --help`", name,
                      r->cmd->name);
}

/* One "--name", "--name=value" or "--name value". */
static status take_option(reader *r, command_options *o, errbuf *err)
{
    char name[64];
    const char *text = r->argv[r->at] + 2, *equals = strchr(text, '=');
    size_t length = equals ? (size_t)(equals - text) : strlen(text);
    snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name - 1),
             text);
    const char *inlined = equals ? equals + 1 : NULL, *value = NULL;
    if (strcmp(name, "help") == 0) {
        o->help = true;
    } else if (strcmp(name, "json") == 0) {
        o->json = true;
    } else if (strcmp(name, "set") == 0) {
        TRY(take_value(r, name, inlined, &value, err));
        TRY(add_set(o, value, err));
    } else if (strcmp(name, "backend") == 0) {
        TRY(take_value(r, name, inlined, &value, err));
        snprintf(r->backend, sizeof r->backend, "backend.name=%s", value);
        TRY(add_set(o, r->backend, err));
    } else {
        TRY(take_own_flag(r, o, name, inlined, err));
    }
    return STATUS_OK;
}

static status read_options(reader *r, command_options *o, errbuf *err)
{
    bool only_arguments = false;
    for (; r->at < r->argc; r->at++) {
        const char *text = r->argv[r->at];
        if (!only_arguments && strcmp(text, "--") == 0) {
            only_arguments = true;
        } else if (!only_arguments && strcmp(text, "-h") == 0) {
            o->help = true;
        } else if (!only_arguments && strncmp(text, "--", 2) == 0) {
            TRY(take_option(r, o, err));
        } else {
            if (o->args == COMMAND_MAX_ARGS)
                return errbuf_set(err, STATUS_BAD_INPUT, "more than %d arguments",
                                  COMMAND_MAX_ARGS);
            o->arg[o->args++] = text;
        }
    }
    return STATUS_OK;
}

/* Ranks of a world agree on one error; rank 0 prints it. */
static bool is_quiet_rank(void)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!rank)
        rank = getenv("PMIX_RANK");
    return rank && strcmp(rank, "0") != 0;
}

/* A launcher ends all ranks as soon as one has failed: rank 0, which says why, must be that one. A
 * rank that is still there after a while has failed alone, and says so itself. */
static void let_rank_0_fail_first(void)
{
    struct timespec a_while = {.tv_sec = RANK_0_SECONDS};
    sigset_t end;
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigprocmask(SIG_UNBLOCK, &end, NULL);
    nanosleep(&a_while, NULL);
}

static int run_command(const command *cmd, int argc, char **argv)
{
    errbuf err = {0};
    command_options options = {0};
    reader r = {.cmd = cmd, .argc = argc, .argv = argv, .at = 2};
    status st = read_options(&r, &options, &err);
    if (st == STATUS_OK && options.help) {
        printf("%s\n%s", cmd->help, common_help);
        return 0;
    }
    if (st == STATUS_OK)
        st = cmd->run(&options, &err);
    if (fflush(stdout) != 0 && st == STATUS_OK)
        st = errbuf_set(&err, STATUS_ENVIRONMENT, "cannot write to standard output");
    if (st != STATUS_OK && is_quiet_rank())
        let_rank_0_fail_first();
    if (st != STATUS_OK)
        fprintf(stderr, "ringtrain %s: %s\n", cmd->name, err.text[0] ? err.text : status_name(st));
    return (int)st;
}

/* libgomp reads its environment when it is loaded, before main: the program starts itself once
 * more. Where that fails, or the user has said how to wait, things stay as they are. */
static void bound_spinning(char **argv)
{
    char program[4096]; /* not /proc/self/exe itself: tools would call the process "exe" */
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY"))
        return;
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0 || setenv("GOMP_SPINCOUNT", SPIN_COUNT, 1) != 0)
        return;
    program[length] = '\0';
    execv(program, argv);
}

int main(int argc, char **argv)
{
    bound_spinning(argv);
    if (argc < 2) {
        print_usage(stderr);
        return STATUS_BAD_INPUT;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("ringtrain %s (%s)\n", RINGMASTER_VERSION, RINGMASTER_REVISION);
        return 0;
    }
    const command *cmd = find_command(argv[1]);
    if (!cmd) {
        fprintf(stderr, "ringtrain: unknown command '%s'; `ringtrain --help` lists them\n",
                argv[1]);
        return STATUS_BAD_INPUT;
    }
    return run_command(cmd, argc, argv);
}
