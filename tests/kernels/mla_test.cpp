#include <gtest/gtest.h>

#include "kernels/cpu_ops.h"
#include "kernels/mla_fixture.h"

namespace capstan::kernels {
namespace {

TEST(MlaOps, EveryIsaAndFormAgreesWithFloat64) {
  std::mt19937 random(5);
  const MlaShape shapes[] = {{8, 32, 32, 32, 128}, {16, 128, 64, 128, 512}, {3, 20, 6, 12, 28}};
  platform::ThreadPool pool(2);
  for (const MlaShape& shape : shapes) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
      const KvB weights(random, shape, dtype);
      const int length = 40 + static_cast<int>(random() % 60);
      const LatentSequence sequence(random, shape, length, dtype);
      LatentCache cache(shape, dtype, 16, length, 3);
      const auto pages = sequence.store(cache);
      for (const Isa isa : supported_isas()) {
        CpuOpsOptions options;
        options.isa = isa;
        auto ops = make_cpu_ops(options, pool);
        ASSERT_TRUE(ops.ok());
        const auto projection = (*ops)->pack_mla(weights.spec());
        ASSERT_TRUE(projection.ok()) << projection.error().message;
        const auto run = [&](const MlaAttentionArgs& args) { (*ops)->mla_attention(args); };
        for (const MlaForm form : {MlaForm::kAuto, MlaForm::kNaive, MlaForm::kAbsorbed}) {
          const auto out = attend_latent(run, cache.kv(), **projection, form,
                                         {{&sequence, &pages, length - 9, 9}});
          for (int i = 0; i < 9; i += 4) {
            const auto expected = sequence.dense(weights, length - 9 + i);
            ASSERT_LT(relmax(out.data() + i * shape.heads * shape.value_dim, expected),
                      isa == Isa::kRef ? 2e-7 : 1e-5)
                << isa_name(isa) << " form " << static_cast<int>(form) << " query " << i;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace capstan::kernels
