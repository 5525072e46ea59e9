// The two halves of a decoder layer: attention (grouped or latent) and FFN (dense or experts).
#pragma once

#include "model/layer_weights.h"
#include "model/step.h"

namespace capstan::model {

/// work.x -> normed -> queries, keys and values -> work.attention, for the rank's own rows of the
/// step, which stand first in work.attention; keys and values (or the latents) go to the cache. The
/// rank's heads alone.
void attend(const Step& step, const LayerWeights& layer, const kernels::PagedKv& cache);

/// work.attention -> x; x -> normed -> FFN -> x, for the first `rows` rows of x, of which `own` are
/// the rank's; other ranks bring the attention of the rest. Chosen experts are
/// counted in `load` as layer number `index`. Ranks sum their parts after either half.
Status finish_layer(const Step& step, const LayerWeights& layer, int index, int64_t rows,
                    OwnRows own, ExpertLoad& load);

}  // namespace capstan::model
