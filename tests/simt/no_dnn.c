/* kernels/cuda/dnn.h without cuDNN: no engine for anything, so that the backend's own kernels run.
 */
#include <cjson/cJSON.h>
#include <stdlib.h>

#include "kernels/cuda/dnn.h"

struct dnn {
    char nothing;
};

status dnn_open(const dnn_options *options, dnn **ret, errbuf *err)
{
    (void)options;
    dnn *d = calloc(1, sizeof *d);
    if (!d)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory");
    *ret = d;
    return STATUS_OK;
}

void dnn_close(dnn **d)
{
    if (!d)
        return;
    free(*d);
    *d = NULL;
}

status dnn_describe(const dnn *d, cJSON **ret, errbuf *err)
{
    (void)d;
    cJSON *plan = cJSON_CreateObject();
    if (!plan || !cJSON_AddStringToObject(plan, "version", dnn_version()) ||
        !cJSON_AddObjectToObject(plan, "engines")) {
        cJSON_Delete(plan);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for the plan");
    }
    *ret = plan;
    return STATUS_OK;
}

const char *dnn_version(void)
{
    return "0.0.0";
}

const char *dnn_missing(const dnn *d)
{
    (void)d;
    return "built without cuDNN";
}

const char *dnn_last_error(const dnn *d)
{
    (void)d;
    return "built without cuDNN";
}

status dnn_conv_create(dnn *d, dnn_conv_kind kind, const conv_desc *desc, int channels,
                       dnn_type type, dnn_op **ret, errbuf *err)
{
    (void)d, (void)kind, (void)desc, (void)channels, (void)type, (void)err;
    *ret = NULL;
    return STATUS_OK;
}

status dnn_bn_create(dnn *d, dnn_bn_kind kind, const bn_desc *desc, bool two_gradients,
                     dnn_type type, dnn_op **ret, errbuf *err)
{
    (void)d, (void)kind, (void)desc, (void)two_gradients, (void)type, (void)err;
    *ret = NULL;
    return STATUS_OK;
}

size_t dnn_mask_bytes(shape x)
{
    return (size_t)(shape_elements(x) + 7) / 8;
}

void dnn_op_destroy(dnn_op **op)
{
    if (op)
        *op = NULL;
}

status dnn_run(dnn_op *op, void *const *pointers)
{
    (void)op, (void)pointers;
    return STATUS_ENVIRONMENT;
}
