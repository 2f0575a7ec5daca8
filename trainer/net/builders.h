/*
 * Builders of whole networks from a resolved spec, by architecture name.
 * Tensor names are torchvision's ("conv1.weight", "layer2.0.downsample.1.running_mean", …).
 */
#ifndef RINGMASTER_TRAINER_NET_BUILDERS_H
#define RINGMASTER_TRAINER_NET_BUILDERS_H

#include "protocol/spec.h"
#include "trainer/net/graph.h"

/* Builds and finishes the net that the spec names, for `classes` classes and square inputs of side
 * data.size (both resolved, > 0). Resolves rpg.size / share / sizes to one N per ring by largest
 * remainder (FORMATS 1); spec_resolve_rings writes them back.
 * METHODS 1.1, 1.3, 1.4; slots in construction order, `downsample` before its block. */
CHECK_RESULT status net_build(const spec *s, net **ret_net, errbuf *err);

/* Replaces rpg.share by size, and for block scope by sizes; rpg.seed by train.seed where it was
 * not given. Needs classes and data.size resolved. */
CHECK_RESULT status spec_resolve_rings(spec *s, errbuf *err);

#endif
