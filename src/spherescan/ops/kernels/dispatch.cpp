// The C functions: each goes to the SIMD level that its call names. Compiled for the baseline.
#include <cstdlib>

#include "abi.h"
#include "kernels.h"
#include "scratch.h"

namespace spherescan {
namespace {

struct Memory {
    void* data = nullptr;
    std::size_t size = 0;

    ~Memory() { std::free(data); }
};

}  // namespace

void* scratch_bytes(Slot slot, std::size_t bytes) {
    static thread_local Memory slots[2];
    Memory& memory = slots[static_cast<int>(slot)];
    if (memory.size < bytes || memory.data == nullptr) {
        std::free(memory.data);
        const std::size_t size = (bytes / 64 + 1) * 64;
        memory.data = std::aligned_alloc(64, size);
        memory.size = memory.data == nullptr ? 0 : size;
    }
    return memory.data;
}

}  // namespace spherescan

#if defined(SPHERESCAN_X86)
#define SPHERESCAN_DISPATCH(simd, call)       \
    switch (simd) {                           \
        case 2:                               \
            return spherescan::bits512::call; \
        case 1:                               \
            return spherescan::bits256::call; \
        default:                              \
            return spherescan::baseline::call; \
    }
#else
#define SPHERESCAN_DISPATCH(simd, call) \
    (void)(simd);                       \
    return spherescan::baseline::call;
#endif

extern "C" {

std::int32_t spherescan_selective_scan(const SpherescanScan* scan) {
    SPHERESCAN_DISPATCH(scan->simd, selective_scan(*scan))
}

std::int32_t spherescan_selective_scan_backward(const SpherescanScan* scan) {
    SPHERESCAN_DISPATCH(scan->simd, selective_scan_backward(*scan))
}

std::int32_t spherescan_selective_scan_step(const SpherescanScanStep* step) {
    SPHERESCAN_DISPATCH(step->simd, selective_scan_step(*step))
}

std::int32_t spherescan_causal_conv1d(const SpherescanConv* conv) {
    SPHERESCAN_DISPATCH(conv->simd, causal_conv1d(*conv))
}

std::int32_t spherescan_causal_conv1d_backward(const SpherescanConv* conv) {
    SPHERESCAN_DISPATCH(conv->simd, causal_conv1d_backward(*conv))
}

std::int32_t spherescan_causal_conv1d_step(const SpherescanConvStep* step) {
    SPHERESCAN_DISPATCH(step->simd, causal_conv1d_step(*step))
}

std::int32_t spherescan_rms_norm(const SpherescanNorm* norm) { SPHERESCAN_DISPATCH(norm->simd, rms_norm(*norm)) }

std::int32_t spherescan_rms_norm_backward(const SpherescanNorm* norm) {
    SPHERESCAN_DISPATCH(norm->simd, rms_norm_backward(*norm))
}

std::int32_t spherescan_minirocket(const SpherescanFixed* fixed) {
    SPHERESCAN_DISPATCH(fixed->simd, minirocket(*fixed))
}

std::int32_t spherescan_hydra(const SpherescanFixed* fixed) { SPHERESCAN_DISPATCH(fixed->simd, hydra(*fixed)) }

void spherescan_apply(std::int32_t simd, std::int32_t function, std::int32_t type, const void* from, void* to,
                      std::int64_t count) {
    SPHERESCAN_DISPATCH(simd, apply(function, type, from, to, count))
}

void spherescan_multiply_add(std::int32_t simd, const float* factors, float* sums, std::int64_t rounds) {
    SPHERESCAN_DISPATCH(simd, multiply_add(factors, sums, rounds))
}

std::int32_t spherescan_best_simd() {
#if defined(SPHERESCAN_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        return 2;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
#if defined(SPHERESCAN_SPLIT_512)
        return 2;
#else
        return 1;
#endif
    }
#endif
    return 0;
}

std::int32_t spherescan_processor_is_amd() {
#if defined(SPHERESCAN_X86) && !defined(SPHERESCAN_SPLIT_512)  // whose levels say nothing of the processor
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") ? 1 : 0;
#else
    return 0;
#endif
}

std::int32_t spherescan_has_threads() {
#if defined(SPHERESCAN_OPENMP)
    return 1;
#else
    return 0;
#endif
}

std::int32_t spherescan_chunk() { return SPHERESCAN_CHUNK; }

void spherescan_sizes(std::int64_t sizes[6]) {
    sizes[0] = sizeof(SpherescanScan);
    sizes[1] = sizeof(SpherescanScanStep);
    sizes[2] = sizeof(SpherescanConv);
    sizes[3] = sizeof(SpherescanConvStep);
    sizes[4] = sizeof(SpherescanNorm);
    sizes[5] = sizeof(SpherescanFixed);
}

}  // extern "C"
