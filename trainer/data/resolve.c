/*
 * What a spec leaves open about its data: size, augmentation, normalisation, classes.
 */
#include "trainer/data/dataset.h"

#include <inttypes.h>

#include "trainer/data/source.h"

status dataset_classes(const spec *s, int *ret_classes, errbuf *err)
{
    switch ((enum spec_data_kind)s->data.kind) {
    case DATA_SYNTHETIC:
        *ret_classes = synthetic_classes(s);
        return STATUS_OK;
    case DATA_CIFAR10:
        *ret_classes = 10;
        return STATUS_OK;
    case DATA_CIFAR100:
        *ret_classes = 100;
        return STATUS_OK;
    case DATA_FOLDER:
        return folder_classes(s->data.path, ret_classes, err);
    }
    return errbuf_set(err, STATUS_BAD_INPUT, "data.kind has the unknown value %d", s->data.kind);
}

static int normalise_for(int kind)
{
    switch (kind) {
    case DATA_CIFAR100:
        return NORMALISE_CIFAR100;
    case DATA_FOLDER:
        return NORMALISE_IMAGENET;
    default:
        return NORMALISE_CIFAR10;
    }
}

status spec_resolve_data(spec *s, errbuf *err)
{
    int classes = 0;
    bool is_folder = s->data.kind == DATA_FOLDER;
    TRY(dataset_classes(s, &classes, err));
    if (s->model.classes && s->model.classes != classes)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "model.classes is %" PRId64
                          ", but the data has %d: give %d, or 0 to take what the data has",
                          s->model.classes, classes, classes);
    s->model.classes = classes;
    if (s->data.size == 0)
        s->data.size = is_folder ? 224 : 32;
    if (s->data.augment == AUGMENT_AUTO)
        s->data.augment = is_folder ? AUGMENT_RRC : AUGMENT_CROP;
    if (s->data.normalise == NORMALISE_AUTO)
        s->data.normalise = normalise_for(s->data.kind);
    return STATUS_OK;
}
