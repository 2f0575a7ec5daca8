/* Relations between the fields of a spec that need neither data, net nor world. */
#include <inttypes.h>
#include <string.h>

#include "protocol/spec_internal.h"

static status validate_rings(const spec *s, errbuf *err)
{
    int given = (s->rpg.size != 0) + (s->rpg.share != 0) + (s->rpg.sizes.count != 0);
    const char *first = s->rpg.size ? "rpg.size" : s->rpg.share != 0 ? "rpg.share" : "rpg.sizes";
    const char *last = s->rpg.sizes.count  ? "rpg.sizes"
                       : s->rpg.share != 0 ? "rpg.share"
                                           : "rpg.size";
    if (s->rpg.scope == SCOPE_NONE) {
        if (given > 0)
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "rpg.scope none has no ring, but %s is given: leave it out, or set "
                              "rpg.scope global or block",
                              first);
        return STATUS_OK;
    }
    if (given == 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "no ring size: give exactly one of rpg.size (elements)%s rpg.share "
                          "(of the generated weights)%s; or rpg.scope none for a dense network",
                          s->rpg.scope == SCOPE_BLOCK ? "," : " or",
                          s->rpg.scope == SCOPE_BLOCK ? " or rpg.sizes (one a ring)" : "");
    if (given > 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%s and %s are both given: keep one (size or share 0, sizes {} = not "
                          "given)",
                          first, last);
    if (s->rpg.sizes.count > 0 && s->rpg.scope != SCOPE_BLOCK)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "rpg.sizes names one ring a block and needs rpg.scope block; use "
                          "rpg.size for one global ring");
    if (!s->rpg.permute && s->rpg.index != INDEX_EVEN)
        return errbuf_set(err, STATUS_BAD_INPUT, "rpg.permute false goes with rpg.index even only");
    return STATUS_OK;
}

static status validate_data(const spec *s, errbuf *err)
{
    if (s->data.kind != DATA_SYNTHETIC && s->data.path[0] == '\0')
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "data.kind %s needs data.path: the folder that holds the images",
                          spec_find_field("data.kind")->names[s->data.kind]);
    if (s->data.kind == DATA_SYNTHETIC && s->data.subset > s->data.train_count)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "data.subset %" PRId64 " is more than data.train_count %" PRId64,
                          s->data.subset, s->data.train_count);
    if (s->data.kind == DATA_SYNTHETIC && s->data.eval_subset > s->data.eval_count)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "data.eval_subset %" PRId64 " is more than data.eval_count %" PRId64,
                          s->data.eval_subset, s->data.eval_count);
    if (s->model.classes == 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "model.classes 1: there is nothing to tell apart; 0 takes what the data "
                          "has");
    return STATUS_OK;
}

/* Batch, shards and ranks, as far as they are given (FORMATS 1). */
static status validate_shards(const spec *s, errbuf *err)
{
    int64_t batch = s->train.batch, shard = s->train.shard, workers = s->resources.workers;
    if (shard > 0 && batch % shard != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "train.batch %" PRId64 " is not a multiple of train.shard %" PRId64,
                          batch, shard);
    if (workers > 0 && shard > 0 && batch / shard % workers != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "the %" PRId64 " shards of a batch (train.batch / train.shard) do not "
                          "divide by resources.workers %" PRId64,
                          batch / shard, workers);
    if (workers > 0 && batch % workers != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "train.batch %" PRId64 " does not divide by resources.workers %" PRId64,
                          batch, workers);
    if (s->train.exact && shard > 0 && batch / shard > 64)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "train.exact sums at most 64 shards, train.shard %" PRId64
                          " makes %" PRId64 ": raise train.shard",
                          shard, batch / shard);
    return STATUS_OK;
}

static status validate_train(const spec *s, errbuf *err)
{
    TRY(validate_shards(s, err));
    if (s->train.warmup > (double)s->train.epochs)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "train.warmup %g is longer than train.epochs %" PRId64, s->train.warmup,
                          s->train.epochs);
    if (s->train.nesterov && s->train.momentum == 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "train.nesterov needs train.momentum above 0");
    if (s->train.decay_on == DECAY_RING && s->rpg.scope == SCOPE_NONE)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "train.decay_on ring needs a ring, rpg.scope is none; use all or "
                          "weights");
    if (s->train.precision != PRECISION_FP32 &&
        (s->backend.name == BACKEND_CPU || s->backend.name == BACKEND_REFERENCE))
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "train.precision %s needs a GPU, backend.name %s computes in fp32 only",
                          spec_find_field("train.precision")->names[s->train.precision],
                          spec_find_field("backend.name")->names[s->backend.name]);
    if (s->backend.plan[0] == '\0')
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "backend.plan is empty: give default, tune or the path of a plan file");
    return STATUS_OK;
}

status spec_validate(const spec *s, errbuf *err)
{
    size_t count;
    const spec_field *fields = spec_fields(&count);
    for (size_t i = 0; i < count; i++)
        TRY(spec_check_value(s, &fields[i], fields[i].path, err));
    TRY(validate_rings(s, err));
    TRY(validate_data(s, err));
    return validate_train(s, err);
}
