// The functions of exp.h on arrays, so that tests can hold them to their bounds; and nothing but multiply-adds, so that a
// benchmark can say how close a kernel comes to what the machine can do.
#include "exp.h"
#include "kernels.h"
#include "parallel.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

template <class T>
Vector<T> evaluate(std::int32_t function, Vector<T> x) {
    switch (function) {
        case 0:
            return exp2(x);
        case 1:
            return sigmoid<T>(x);
        case 2:
            return softplus<T>(x);
        case 3:
            return softplus_with_slope<T>(x).value;
        default:
            return softplus_with_slope<T>(x).slope;
    }
}

template <class T>
void apply_typed(std::int32_t function, const T* from, T* to, Index count) {
    const FlushSubnormals mode;
    for (Index i = 0; i < count; i += kWidth<T>) {
        const Index lanes = count - i < kWidth<T> ? count - i : kWidth<T>;
        T values[kWidth<T>] = {};
        std::memcpy(values, from + i, sizeof(T) * lanes);
        store<T>(values, evaluate<T>(function, load(values)));
        std::memcpy(to + i, values, sizeof(T) * lanes);
    }
}

}  // namespace

// 12 sums that do not wait for each other, `rounds` multiply-adds each.
void multiply_add(const float* factors, float* sums, std::int64_t rounds) {
    constexpr int kSums = 12;
    Vector<float> total[kSums];
    const Vector<float> factor = load(factors), addend = load(factors + kWidth<float>);
    for (int i = 0; i < kSums; ++i) total[i] = splat(static_cast<float>(i));
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < kSums; ++i) total[i] = total[i] * factor + addend;
    }
    for (int i = 0; i < kSums; ++i) store<float>(sums + i * kWidth<float>, total[i]);
}

void apply(std::int32_t function, std::int32_t type, const void* from, void* to, std::int64_t count) {
    if (type == SPHERESCAN_FLOAT64) {
        apply_typed(function, static_cast<const double*>(from), static_cast<double*>(to), count);
    } else if (type == SPHERESCAN_FLOAT32) {
        apply_typed(function, static_cast<const float*>(from), static_cast<float*>(to), count);
    }
}

}  // namespace spherescan::SPHERESCAN_LEVEL
