#include "app/foreign_flags.h"

namespace capstan::app {
namespace {

// Names only, by what they take; from the releases 0.4.3, 0.4.6.post5, 0.5.3.post1 and 0.5.23.
constexpr std::string_view kSwitches =
    "checkpoint-engine-wait-weights-before-ready collect-tokens-histogram dcp-replicate-q-proj "
    "debug-cuda-graph debug-tensor-dump-prefill-only disable-aiter-allreduce-fusion-in-decode "
    "disable-aiter-allreduce-fusion-in-prefill disable-attn-tp-gather disable-cuda-graph "
    "disable-cuda-graph-padding disable-custom-all-reduce disable-decode-cuda-graph "
    "disable-fast-image-processor disable-flashinfer-autotune "
    "disable-flashinfer-cutlass-moe-fp4-allgather disable-hybrid-swa-memory disable-jump-forward "
    "disable-mla disable-outlines-disk-cache disable-prefill-cuda-graph "
    "disable-shared-experts-fusion disable-tokenizer-batch-decode "
    "disaggregation-decode-enable-offload-kvcache disaggregation-decode-enable-radix-cache "
    "disaggregation-enable-kv-checksum dllm-fdfo enable-adaptive-dispatch-to-encoder "
    "enable-aiter-allreduce-fusion enable-amd-monokernel enable-attn-tp-input-scattered "
    "enable-broadcast-mm-inputs-process enable-cp-decode-attn-tp enable-cp-tp-group-sharing "
    "enable-cudagraph-gc enable-decoder-swa-bounded-replay "
    "enable-deepseek-v4-fp4-indexer enable-dense-mlp-attn-tp enable-double-sparsity "
    "enable-dp-attention-local-control-broadcast enable-draft-weights-cpu-backup "
    "enable-dsa-cache-layer-split enable-dsa-fused-indexer enable-dynamic-batch-tokenizer "
    "enable-dynamic-chunking enable-elastic-expert-backup enable-encoder-swa-bounded-replay "
    "enable-eplb enable-expert-distribution-metrics "
    "enable-flashinfer-allreduce-fusion enable-flashinfer-cutedsl-moe "
    "enable-flashinfer-cutlass-moe enable-flashinfer-mla enable-flashinfer-mxfp4-moe "
    "enable-flashinfer-trtllm-moe enable-flashmla enable-flexkv enable-forward-pass-metrics "
    "enable-fp32-lm-head enable-fused-moe-sum-all-reduce enable-fused-qk-norm-rope "
    "enable-hisparse enable-http-worker-reuseport enable-http2 enable-int8-mamba-checkpoint "
    "enable-kv-cache-sharding enable-layernorm-sp enable-layerwise-nvtx-marker "
    "enable-lean-attention enable-linear-replayssm enable-linear-replayssm-spec "
    "enable-linker-mla-dedup enable-lmcache enable-lora-overlap-loading "
    "enable-mamba-cache-stochastic-rounding enable-megamoe-for-layernorm-sp enable-memory-saver "
    "enable-metrics-for-all-schedulers enable-mfu-metrics enable-mis enable-mm-global-cache "
    "enable-mscclpp enable-multi-layer-eagle enable-multimodal enable-nan-detection "
    "enable-nccl-nvls enable-nvidia-megakernel enable-p2p-check enable-page-major-kv-layout "
    "enable-paged-experts enable-pd-role-switch enable-pdmux "
    "enable-precise-embedding-interpolation enable-prefill-cp enable-prefill-delayer "
    "enable-prefix-mm-cache enable-profile-cuda-graph enable-quant-communications "
    "enable-request-time-stats-logging enable-response-store enable-return-aux-hidden-states "
    "enable-return-indexer-topk enable-return-routed-experts enable-scattered-sconv "
    "enable-session-radix-cache enable-shared-experts-attn-tp enable-single-batch-overlap "
    "enable-ssl-refresh enable-streaming-session enable-strict-thinking enable-symm-mem "
    "enable-tf32-matmul enable-tokenizer-batch-encode enable-torch-compile "
    "enable-torch-compile-debug-mode enable-torch-symm-mem enable-tp-lm-head-all-to-all "
    "enable-triton-kernel-moe enable-two-batch-overlap enable-unified-cache-external-linker "
    "enable-unified-memory enable-w4a4-mxfp4-megamoe enable-waterfill enable-watermark "
    "enable-weights-cpu-backup encoder-only enforce-disable-flashinfer-allreduce-fusion "
    "enforce-shared-experts-fusion experts-shared-outer-loras export-metrics-to-file "
    "flashinfer-mla-disable-ragged grpc-mode keep-mm-feature-on-device language-model-only "
    "language-only lora-strict-loading lora-use-virtual-experts mlx-enable-sampling "
    "mm-enable-dp-encoder ple-offload-embedding pre-warm-nccl prefill-only-disable-kv-cache "
    "prefill-only-one-req prefill-round-robin-balance quantize-and-serve "
    "remote-instance-weight-loader-start-seed-via-transfer-engine return-hidden-states "
    "return-input-ids return-output-ids show-time-cost sleep-on-idle smg-grpc-mode "
    "speculative-adaptive speculative-dspark-align-verify-tokens-to-graph-tier "
    "speculative-enable-w4a4-mxfp4-megamoe speculative-use-block-verification "
    "speculative-use-rejection-sampling strip-thinking-cache triton-attention-reduce-in-fp32 "
    "trust-mm-content-hashes trust-request-chat-template use-ray watermark-default-enabled "
    "watermark-enforce-all weight-loader-drop-cache-after-load";

constexpr std::string_view kValues =
    "asr-max-buffer-seconds asr-max-concurrent-sessions attention-backend "
    "attention-context-parallel-size attention-data-parallel-size attn-cp-size attn-dp-size "
    "aux-hidden-state-capture batch-notify-size bf16-gemm-backend boundary-reduction "
    "c128-page-size completion-template constrained-json-max-whitespace-cnt context-bucket "
    "cp-strategy cpu-offload-gb cuda-graph-backend-decode cuda-graph-backend-prefill "
    "cuda-graph-config cuda-graph-max-bs cuda-graph-max-bs-decode cuda-graph-max-bs-prefill "
    "cuda-graph-max-seq-len-prefill cuda-graph-prefill-max-context dcp-comm-backend dcp-size "
    "debug-tensor-dump-inject debug-tensor-dump-input-file debug-tensor-dump-output-folder "
    "decode-attention-backend decode-context-parallel-size decoupled-spec-bind-endpoint "
    "decoupled-spec-rank decoupled-spec-role decrypted-config-file decrypted-draft-config-file "
    "deepep-config deepep-dispatcher-output-dtype deepep-mode deepep-v2-mode "
    "detokenizer-worker-num disaggregation-bootstrap-port disaggregation-decode-allocation-policy "
    "disaggregation-decode-dp disaggregation-decode-extra-slots "
    "disaggregation-decode-host-receive-threshold disaggregation-decode-polling-interval "
    "disaggregation-decode-retraction-backup disaggregation-decode-tp disaggregation-ib-device "
    "disaggregation-prefill-pp disaggregation-transfer-backend dllm-algorithm "
    "dllm-algorithm-config ds-channel-config-path ds-heavy-channel-num ds-heavy-channel-type "
    "ds-heavy-token-num ds-sparse-decode-threshold dsa-decode-backend "
    "dsa-paged-mqa-logits-backend dsa-prefill-backend dsa-topk-backend dsa-triton-union "
    "dsv4-attn-backend dsv4-prefill-backend dwdp-size dynamic-batch-tokenizer-batch-size "
    "dynamic-batch-tokenizer-batch-timeout elastic-ep-backend elastic-ep-initial-size "
    "elastic-ep-join-mode elastic-ep-join-rank-offset elastic-ep-scale-timeout "
    "encoder-bootstrap-port encoder-transfer-backend engine-info-bootstrap-port "
    "ep-dispatch-algorithm ep-join-mode ep-join-rank-offset ep-num-redundant-experts "
    "eplb-algorithm eplb-min-rebalancing-utilization-threshold eplb-rebalance-layers-per-chunk "
    "eplb-rebalance-num-iterations expert-balancedness-report-mode "
    "expert-distribution-recorder-buffer-size expert-distribution-recorder-mode "
    "export-metrics-to-file-dir file-storage-path file-storage-pth flashinfer-a2a-dispatch-type "
    "flashinfer-allreduce-fusion-backend flashinfer-mxfp4-moe-precision flexkv-config-file "
    "forward-pass-metrics-ipc-name forward-pass-metrics-worker-id fp4-gemm-backend "
    "fp4-gemm-runner-backend fp8-gemm-backend fp8-gemm-runner-backend fuseep-mode "
    "gated-launch-port gc-warning-threshold-secs grpc-http-sidecar-port grpc-port "
    "grpc-response-timeout-secs grpc-worker-threads hf-chat-template-name "
    "hicache-host-memory-fraction hicache-host-memory-mode hicache-storage-backend-extra-config "
    "hicache-storage-prefetch-retry-max-attempts hicache-storage-prefetch-retry-poll-interval "
    "hierarchical-sparse-attention-extra-config hisparse-config "
    "http2-initial-connection-window-size http2-max-concurrent-streams hybrid-kvcache-ratio "
    "image-processor-backend init-expert-location int8-mamba-ckpt-size kt-cpuinfer "
    "kt-max-deferred-experts-per-token kt-method kt-num-gpu-experts kt-threadpool-count "
    "kt-weight-path kv-canary kv-canary-sweep-interval kv-events-config limit-mm-data-per-request "
    "linear-attn-backend linear-attn-decode-backend linear-attn-prefill-backend "
    "linear-attn-verify-backend linear-replayssm-cache-len lmcache-config-file "
    "load-publish-endpoint load-snapshot-publish-interval load-watch-interval lora-backend "
    "lora-drain-wait-threshold lora-eviction-policy mamba-backend mamba-cache-philox-rounds "
    "mamba-full-memory-ratio mamba-max-states-per-path mamba-radix-cache-strategy mamba-ssm-dtype "
    "mamba-track-interval max-ep-size max-loaded-loras max-lora-chunk-size max-mamba-cache-size "
    "max-micro-batch-size media-url-max-file-size-mb min-free-slots-delay mm-attention-backend "
    "mm-feature-transport mm-global-cache-backend mm-io-worker-num mm-preprocess-cache-size-mb "
    "mm-process-config mm-processor-worker-num model-checksum model-config-parser model-impl "
    "model-loader-extra-config modelexpress-config modelopt-checkpoint-restore-path "
    "modelopt-checkpoint-save-path modelopt-export-path modelopt-quant moe-a2a-backend "
    "moe-data-parallel-size moe-dense-tp-size moe-dp-size moe-runner-backend mooncake-ib-device "
    "msprobe-dump-config multi-item-scoring-delimiter n-share-experts-fusion nccl-port nsa-decode "
    "nsa-prefill num-reserved-decode-tokens offload-group-size offload-mode offload-num-in-group "
    "offload-prefetch-step optimistic-prefill-attempts otlp-service-name "
    "paged-experts-num-resident pdlb-url pdmux-config-path ple-offload-backend ple-offload-dir "
    "pp-async-batch-depth pp-max-micro-batch-size prefill-attention-backend "
    "prefill-decode-interval prefill-decode-interval-min-bs prefill-delayer-max-delay-ms "
    "prefill-delayer-max-delay-passes prefill-delayer-queue-min-ratio "
    "prefill-delayer-token-usage-low-watermark prefill-kv-cache-dequant-dtype "
    "prefill-max-requests qsa-indexer-dtype quantization-param-path radix-cache-backend "
    "radix-eviction-policy-config remote-instance-weight-loader-backend "
    "remote-instance-weight-loader-seed-instance-ip "
    "remote-instance-weight-loader-seed-instance-service-port "
    "remote-instance-weight-loader-send-weights-group-ports return-hidden-states-mode "
    "rl-on-policy-target rl-quant-profile sampling-backend sampling-mask-max-tokens "
    "scheduler-recv-interval shared-experts-tp-size sidecar sm-group-num smg-http-sidecar-port "
    "spec-trace-dir speculative-adaptive-config speculative-attention-mode "
    "speculative-boundary-reduction speculative-dflash-block-size "
    "speculative-domino-candidate-pool-size speculative-draft-attention-backend "
    "speculative-draft-kv-cache-dtype speculative-draft-load-format "
    "speculative-draft-model-quantization speculative-draft-model-revision "
    "speculative-draft-sink-size speculative-draft-window-size speculative-dsa-topk-backend "
    "speculative-dspark-block-size speculative-dspark-confidence-sts-path "
    "speculative-dspark-sps-table-path speculative-moe-a2a-backend speculative-moe-runner-backend "
    "speculative-ngram-branch-length speculative-ngram-capacity "
    "speculative-ngram-external-corpus-max-tokens speculative-ngram-external-corpus-path "
    "speculative-ngram-external-sam-budget speculative-ngram-match-type "
    "speculative-ngram-max-bfs-breadth speculative-ngram-max-match-window-size "
    "speculative-ngram-max-trie-depth speculative-ngram-min-bfs-breadth "
    "speculative-ngram-min-match-window-size startup-weight-load-mode swa-full-tokens-ratio "
    "swa-prefix-tails tbo-token-distribution-threshold tokenizer-backend tokenizer-worker-num "
    "tool-server torch-compile-max-bs torchao-config trace-modules triton-attention-num-kv-splits "
    "triton-attention-split-tile-size unified-cache-external-linker-backend "
    "unified-cache-external-linker-config uno-lora-path watermark-config watermark-context-window "
    "watermark-key watermark-key-b watermark-max-probability watermark-mixing-probability "
    "weight-cache-mode weight-cache-socket weight-cache-timeout";

constexpr std::string_view kLists =
    "allowed-media-domains cuda-graph-bs cuda-graph-bs-decode cuda-graph-bs-prefill "
    "custom-weight-loader debug-tensor-dump-layers decoupled-spec-connect-endpoints "
    "encoder-register-urls encoder-urls flashinfer-autotune-skip-ops forward-hooks gc-threshold "
    "prefill-delayer-forward-passes-buckets prefill-delayer-wait-seconds-buckets "
    "return-aux-hidden-state-layer-ids sidecar-args uvicorn-access-log-exclude-prefixes";

std::vector<Flag> build() {
  std::vector<Flag> flags;
  const auto add = [&flags](std::string_view names, FlagType type) {
    for (std::string_view name : split_words(names)) {
      Flag flag;
      flag.name = name;
      flag.type = type;
      flag.priority = 2;
      flag.effect = FlagEffect::kNoEffect;
      flag.help = "It belongs to a part of SGLang that does not exist here";
      flags.push_back(flag);
    }
  };
  add(kSwitches, FlagType::kBool);
  add(kValues, FlagType::kString);
  add(kLists, FlagType::kList);
  return flags;
}

}  // namespace

std::span<const Flag> foreign_flags() {
  static const std::vector<Flag> flags = build();
  return flags;
}

}  // namespace capstan::app
