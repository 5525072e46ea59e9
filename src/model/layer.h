// The two halves of a decoder layer: attention (grouped or latent) and FFN (dense or experts).
#pragma once

#include "model/layer_weights.h"
#include "model/step.h"

namespace capstan::model {

/// work.x -> normed -> queries, keys and values -> work.attention, for all rows of the step; keys
/// and values (or the latents) go to the cache. The rank's heads alone.
void attend(const Step& step, const LayerWeights& layer, const kernels::PagedKv& cache);

/// work.attention -> x; x -> normed -> FFN -> x, for the first `rows` rows. Chosen experts are
/// counted in `load` as layer number `index`. Ranks sum their parts after either half.
Status finish_layer(const Step& step, const LayerWeights& layer, int index, int64_t rows,
                    ExpertLoad& load);

}  // namespace capstan::model
