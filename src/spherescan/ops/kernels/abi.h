// The plain C interface between Python and the kernels: what ops/native.py mirrors field by field.
//
// Every pointer is to memory that lives for the whole call, was checked for dtype, device, shape and strides by the
// caller, and is not written by anyone else. Strides count elements; the last axis of every tensor is contiguous.
#pragma once

#include <cstdint>

// Positions between two checkpoints of the state in a scan.
#define SPHERESCAN_CHUNK 16

extern "C" {

// What a tensor's elements are. Parameters and states of float32 and bfloat16 calls are float32.
enum SpherescanType : std::int32_t { SPHERESCAN_FLOAT32 = 0, SPHERESCAN_BFLOAT16 = 1, SPHERESCAN_FLOAT64 = 2 };

enum SpherescanStatus : std::int32_t { SPHERESCAN_OK = 0, SPHERESCAN_OUT_OF_MEMORY = 1, SPHERESCAN_TOO_SMALL = 2 };

// A (batch, length, width) tensor. data is null when the argument is missing.
struct SpherescanRows {
    void* data;
    std::int64_t batch_stride;
    std::int64_t row_stride;
};

// Letters as in ops/reference.py. Missing arguments are null. "parameter" tensors are contiguous.
struct SpherescanScan {
    std::int64_t batch, length, d_inner, d_state;
    std::int32_t type, threads, delta_softplus, simd;
    SpherescanRows u, delta, gate, B, C;
    const void *A, *D, *delta_bias;  // (d, n), (d), (d)
    const void* state;               // (b, d, n)
    SpherescanRows reset;            // (b, l, 1) bytes, not zero where a document starts
    void* checkpoints;               // h at the start of every chunk; layout is the kernel's own
    std::int64_t checkpoint_values;  // how many values have room there
    // Results of the forward pass.
    SpherescanRows y;
    void* final_state;  // (b, d, n)
    // The backward pass: gradients that come in, then those that go out.
    SpherescanRows y_grad;
    const void* final_state_grad;  // (b, d, n) or null
    SpherescanRows u_grad, delta_grad, gate_grad, B_grad, C_grad;
    void *A_grad, *D_grad, *delta_bias_grad, *state_grad;  // delta_bias_grad, state_grad may be null
};

// One position: rows are (b, 1, width) tensors. The new state may not be the old one.
struct SpherescanScanStep {
    std::int64_t batch, d_inner, d_state;
    std::int32_t type, threads, delta_softplus, simd;
    SpherescanRows u, delta, gate, B, C, y;
    const void *A, *D, *delta_bias, *state;
    void* new_state;
};

struct SpherescanConv {
    std::int64_t batch, length, d_inner, width;
    std::int32_t type, threads, silu, simd;
    SpherescanRows x;
    const void *weight, *bias;  // (d, width), (d)
    const void* state;          // (b, d, width - 1)
    SpherescanRows reset, y, y_grad, x_grad;
    void *weight_grad, *bias_grad, *state_grad;  // the last two may be null
};

// One position. The new state may not be the old one.
struct SpherescanConvStep {
    std::int64_t batch, d_inner, width;
    std::int32_t type, threads, silu, simd;
    SpherescanRows x, y;
    const void *weight, *bias, *state;
    void* new_state;
};

// (rows, width) tensors, contiguous. x, total and their gradients are float32 or float64; update and normed may be
// bfloat16 beside float32. update, total_grad and update_grad may be null.
struct SpherescanNorm {
    std::int64_t rows, width;
    std::int32_t type, update_type, normed_type, threads, simd, padding;
    double epsilon;
    const void *x, *update, *weight;  // weight: (width), of the type of x
    void *total, *normed, *scale;     // x + update, its norm, and 1 / rms of each row
    const void *normed_grad, *total_grad;
    void *x_grad, *update_grad, *weight_grad;
};

// Fixed convolutions of float32 series (batch, channels, length), contiguous, of which `lengths` positions are real. Each
// kernel, or group of kernels, sees the sum of the first `n_picked` of `most_picked` channels.
struct SpherescanFixed {
    std::int64_t batch, channels, length, kernels, most_picked, dilation;
    std::int64_t count;  // biases of each kernel
    std::int32_t odd;    // which half of the kernels lies wholly within the series: 1 the even ones, 0 the odd ones
    std::int32_t threads, simd, padding;
    const float* x;
    const std::int64_t *lengths, *picked, *n_picked;  // (batch), (kernels, most_picked), (kernels)
    const float* parameters;                          // biases (kernels, count), or weights (kernels, 8, 9)
    SpherescanRows out;                               // (1, batch, features) of float32
};

#pragma GCC visibility push(default)

std::int32_t spherescan_selective_scan(const SpherescanScan*);
std::int32_t spherescan_selective_scan_backward(const SpherescanScan*);
std::int32_t spherescan_selective_scan_step(const SpherescanScanStep*);
std::int32_t spherescan_causal_conv1d(const SpherescanConv*);
std::int32_t spherescan_causal_conv1d_backward(const SpherescanConv*);
std::int32_t spherescan_causal_conv1d_step(const SpherescanConvStep*);
std::int32_t spherescan_rms_norm(const SpherescanNorm*);
std::int32_t spherescan_rms_norm_backward(const SpherescanNorm*);
std::int32_t spherescan_minirocket(const SpherescanFixed*);
std::int32_t spherescan_hydra(const SpherescanFixed*);

// For tests of the bounds in exp.h: function 0 exp2, 1 sigmoid, 2 softplus, applied to count numbers.
void spherescan_apply(std::int32_t simd, std::int32_t function, std::int32_t type, const void* from, void* to,
                      std::int64_t count);

// For benchmarks: 12 * rounds vector multiply-adds. factors: two vectors; sums: 12 vectors.
void spherescan_multiply_add(std::int32_t simd, const float* factors, float* sums, std::int64_t rounds);

// The highest SIMD level this machine runs, of: 0 baseline, 1 256-bit, 2 512-bit.
std::int32_t spherescan_best_simd();
// Whether the kernels were built with OpenMP; without it they run on the calling thread.
std::int32_t spherescan_processor_is_amd();
std::int32_t spherescan_has_threads();
// SPHERESCAN_CHUNK, for those who do not read this file.
std::int32_t spherescan_chunk();
// sizeof of the six structs above, in their order: a mirror that has drifted is found at load.
void spherescan_sizes(std::int64_t sizes[6]);

#pragma GCC visibility pop

}  // extern "C"
