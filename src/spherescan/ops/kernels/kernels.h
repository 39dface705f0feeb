// What every SIMD level provides; dispatch.cpp picks one.
#pragma once

#include "abi.h"

#define SPHERESCAN_DECLARE(level)                                    \
    namespace spherescan::level {                                    \
    SpherescanStatus selective_scan(const SpherescanScan&);          \
    SpherescanStatus selective_scan_backward(const SpherescanScan&); \
    SpherescanStatus selective_scan_step(const SpherescanScanStep&); \
    SpherescanStatus causal_conv1d(const SpherescanConv&);           \
    SpherescanStatus causal_conv1d_backward(const SpherescanConv&);  \
    SpherescanStatus causal_conv1d_step(const SpherescanConvStep&);  \
    SpherescanStatus rms_norm(const SpherescanNorm&);                \
    SpherescanStatus rms_norm_backward(const SpherescanNorm&);       \
    SpherescanStatus minirocket(const SpherescanFixed&);             \
    SpherescanStatus hydra(const SpherescanFixed&);                  \
    void apply(std::int32_t function, std::int32_t type, const void* from, void* to, std::int64_t count); \
    void multiply_add(const float* factors, float* sums, std::int64_t rounds); \
    }

SPHERESCAN_DECLARE(baseline)
SPHERESCAN_DECLARE(bits256)
SPHERESCAN_DECLARE(bits512)
