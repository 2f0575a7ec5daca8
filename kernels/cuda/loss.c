/*
 * Softmax cross-entropy: the object of the kernels in loss_kernels.cu.
 */
#include <stdlib.h>

#include "kernels/cuda/loss_kernels.h"

struct backend_loss {
    cuda_backend *be;
    loss_desc d;
    double *losses; /* [n] of the rows */
    int32_t *ranks; /* [n] of the rows' labels */
};

status cuda_loss_create(backend *be, int lane, const loss_desc *desc, backend_loss **ret,
                        errbuf *err)
{
    status st = STATUS_OK;
    TRY(cuda_check_lane(be, lane, err));
    if (desc->n < 1 || desc->classes < 1)
        return errbuf_set(err, STATUS_BAD_INPUT, "loss: %d rows of %d classes", desc->n,
                          desc->classes);
    backend_loss *l = calloc(1, sizeof *l);
    if (!l)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a loss");
    l->be = cuda_of(be);
    l->d = *desc;
    const size_t n = (size_t)desc->n;
    TRY_GOTO(cuda_alloc(be, n * sizeof *l->losses, (void **)&l->losses, err), st, cleanup);
    TRY_GOTO(cuda_alloc(be, n * sizeof *l->ranks, (void **)&l->ranks, err), st, cleanup);
    *ret = l;
    l = NULL;
cleanup:
    cuda_loss_destroy(&l);
    return st;
}

void cuda_loss_destroy(backend_loss **l)
{
    if (!l || !*l)
        return;
    backend *be = &(*l)->be->base;
    cuda_release(be, (*l)->losses);
    cuda_release(be, (*l)->ranks);
    free(*l);
    *l = NULL;
}

status cuda_loss_run(backend_loss *l, const float *logits, const int32_t *labels, int valid,
                     float scale, float *dlogits, loss_sums *sums)
{
    TRY(loss_rows(l->be, &l->d, logits, labels, valid, scale, dlogits, l->losses, l->ranks));
    return loss_join(l->be, l->d.n, l->losses, l->ranks, sums);
}
