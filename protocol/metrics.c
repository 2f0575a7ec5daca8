/* Metric records as text; see metrics.h. */
#include "protocol/metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "protocol/json.h"
#include "protocol/strbuf.h"

void metrics_format_time(const struct timespec *time, char ret[METRICS_TIME_SIZE])
{
    struct tm utc;
    char seconds[METRICS_TIME_SIZE - 8] = "1970-01-01T00:00:00";
    if (gmtime_r(&time->tv_sec, &utc))
        strftime(seconds, sizeof seconds, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(ret, METRICS_TIME_SIZE, "%s.%03dZ", seconds, (int)(time->tv_nsec / 1000000) % 1000);
}

void metrics_now(char ret[METRICS_TIME_SIZE])
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    metrics_format_time(&now, ret);
}

status metrics_line(const metrics_head *head, const cJSON *fields, char **ret_line, errbuf *err)
{
    static const char *const taken[] = {"job", "attempt", "seq", "time", "kind", "epoch", "step"};
    char now[METRICS_TIME_SIZE];
    metrics_now(now);
    strbuf b = {0};
    strbuf_add(&b, "{\"job\":");
    json_add_string(&b, head->job);
    strbuf_add_format(&b, ",\"attempt\":%" PRId64 ",\"seq\":%" PRId64 ",\"time\":", head->attempt,
                      head->seq);
    json_add_string(&b, head->time ? head->time : now);
    strbuf_add(&b, ",\"kind\":");
    json_add_string(&b, head->kind);
    strbuf_add_format(&b, ",\"epoch\":%" PRId64 ",\"step\":%" PRId64, head->epoch, head->step);
    for (const cJSON *field = fields ? fields->child : NULL; field; field = field->next) {
        for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++)
            ASSERT(strcmp(field->string, taken[i]) != 0);
        strbuf_add(&b, ",");
        json_add_string(&b, field->string);
        strbuf_add(&b, ":");
        json_add_value(&b, field);
    }
    strbuf_add(&b, "}\n");
    return strbuf_take(&b, ret_line, err);
}
