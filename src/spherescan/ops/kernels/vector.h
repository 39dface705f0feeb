// Vectors of the native width, in the vector extensions of GCC and clang.
//
// Every source file that includes this header is compiled once per SIMD level, inside a namespace named after the level
// (SPHERESCAN_LEVEL), with vectors of SPHERESCAN_VECTOR_BYTES. The width must be the native one, but for tests
// (SPHERESCAN_SPLIT_512): a wider type is split by the compiler through memory and costs many times the narrow one.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace spherescan::SPHERESCAN_LEVEL {

using Index = std::int64_t;

// A bfloat16 as it lies in memory: the upper half of a float32.
struct BFloat16 {
    std::uint16_t bits;
};

template <class T>
struct VectorOf;

template <>
struct VectorOf<float> {
    typedef float Values __attribute__((vector_size(SPHERESCAN_VECTOR_BYTES)));
    typedef std::int32_t Mask __attribute__((vector_size(SPHERESCAN_VECTOR_BYTES)));
    typedef std::uint32_t Bits __attribute__((vector_size(SPHERESCAN_VECTOR_BYTES)));
};

template <>
struct VectorOf<double> {
    typedef double Values __attribute__((vector_size(SPHERESCAN_VECTOR_BYTES)));
    typedef std::int64_t Mask __attribute__((vector_size(SPHERESCAN_VECTOR_BYTES)));
    typedef std::uint64_t Bits __attribute__((vector_size(SPHERESCAN_VECTOR_BYTES)));
};

template <class T>
using Vector = typename VectorOf<T>::Values;

// Integers of the same width as the values: all bits set where a comparison held.
template <class T>
using Mask = typename VectorOf<T>::Mask;

// The bits of the values, for arithmetic that may wrap around.
template <class T>
using Bits = typename VectorOf<T>::Bits;

template <class T>
constexpr int kWidth = SPHERESCAN_VECTOR_BYTES / static_cast<int>(sizeof(T));

// The type that is computed in: bfloat16 only ever lies in memory.
template <class T>
struct ComputeOf {
    using Type = T;
};

template <>
struct ComputeOf<BFloat16> {
    using Type = float;
};

template <class T>
using Compute = typename ComputeOf<T>::Type;

#define SPHERESCAN_INLINE static inline __attribute__((always_inline))
#define SPHERESCAN_APART static __attribute__((noinline))  // long, and called from many places

SPHERESCAN_INLINE Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

template <class T>
SPHERESCAN_INLINE Vector<T> splat(T value) {
    return value - Vector<T>{};  // unlike an addition of zero, exact for every value: the compiler leaves it out
}

// Load and store a whole vector of compute values, at any alignment.
template <class T>
SPHERESCAN_INLINE Vector<T> load(const T* from) {
    Vector<T> values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

template <class T>
SPHERESCAN_INLINE void store(T* to, Vector<T> values) {
    std::memcpy(to, &values, sizeof values);
}

template <class T>
SPHERESCAN_INLINE Mask<T> load_mask(const T* from) {
    Mask<T> mask;
    std::memcpy(&mask, from, sizeof mask);
    return mask;
}

// Zero where the mask is not set: infinities and NaN too, which a multiplication would keep.
template <class T>
SPHERESCAN_INLINE Vector<T> keep(Mask<T> mask, Vector<T> values) {
    return (Vector<T>)((Mask<T>)values & mask);
}

SPHERESCAN_INLINE Vector<float> magnitude(Vector<float> x) {
    return (Vector<float>)((Mask<float>)x & 0x7fffffff);
}

SPHERESCAN_INLINE Vector<double> magnitude(Vector<double> x) {
    return (Vector<double>)((Mask<double>)x & INT64_C(0x7fffffffffffffff));
}

// The larger, or the smaller, of each value and a bound; NaN stays NaN. The compiler makes two instructions of a comparison
// and a choice where the processor has one, which keeps its second operand if one is NaN.
#if defined(__x86_64__) && (SPHERESCAN_VECTOR_BYTES < 64 || defined(__AVX512F__))
#if SPHERESCAN_VECTOR_BYTES == 64
#define SPHERESCAN_INTRINSIC(name, type) _mm512_##name##_##type
#elif SPHERESCAN_VECTOR_BYTES == 32
#define SPHERESCAN_INTRINSIC(name, type) _mm256_##name##_##type
#else
#define SPHERESCAN_INTRINSIC(name, type) _mm_##name##_##type
#endif
SPHERESCAN_INLINE Vector<float> at_least(Vector<float> x, float bound) { return SPHERESCAN_INTRINSIC(max, ps)(splat(bound), x); }
SPHERESCAN_INLINE Vector<float> at_most(Vector<float> x, float bound) { return SPHERESCAN_INTRINSIC(min, ps)(splat(bound), x); }
SPHERESCAN_INLINE Vector<double> at_least(Vector<double> x, double bound) { return SPHERESCAN_INTRINSIC(max, pd)(splat(bound), x); }
SPHERESCAN_INLINE Vector<double> at_most(Vector<double> x, double bound) { return SPHERESCAN_INTRINSIC(min, pd)(splat(bound), x); }
#undef SPHERESCAN_INTRINSIC
#else
SPHERESCAN_INLINE Vector<float> at_least(Vector<float> x, float bound) { return x < bound ? splat(bound) : x; }
SPHERESCAN_INLINE Vector<float> at_most(Vector<float> x, float bound) { return x > bound ? splat(bound) : x; }
SPHERESCAN_INLINE Vector<double> at_least(Vector<double> x, double bound) { return x < bound ? splat(bound) : x; }
SPHERESCAN_INLINE Vector<double> at_most(Vector<double> x, double bound) { return x > bound ? splat(bound) : x; }
#endif

// The sum over the lanes of a vector: one half and the other, until one lane is left. `sum_lanes` adds in the same order.
template <class T>
SPHERESCAN_INLINE T sum(Vector<T> values) {
    T lanes[kWidth<T>];
    store<T>(lanes, values);
#pragma GCC unroll 4
    for (int stride = kWidth<T> / 2; stride > 0; stride /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < stride; ++i) lanes[i] += lanes[i + stride];
    }
    return lanes[0];
}

// Lanes of two vectors by their numbers; those of the second vector go on where those of the first end.
template <class T, int... Lanes>
SPHERESCAN_INLINE Vector<T> pick(Vector<T> first, Vector<T> second) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(first, second, Lanes...);
#else
    return __builtin_shuffle(first, second, Mask<T>{Lanes...});
#endif
}

// Seen as runs of Stride lanes: the even runs of both vectors, then the odd runs of both, each in the places of the first
// vector's even and the second one's odd runs.
template <class T, int Stride, int... Lanes>
SPHERESCAN_INLINE void exchange(Vector<T>& first, Vector<T>& second, std::integer_sequence<int, Lanes...>) {
    constexpr int width = kWidth<T>;
    const Vector<T> even = pick<T, ((Lanes & Stride) ? width + Lanes - Stride : Lanes)...>(first, second);
    const Vector<T> odd = pick<T, ((Lanes & Stride) ? width + Lanes : Lanes + Stride)...>(first, second);
    first = even;
    second = odd;
}

// Lane j of vector i becomes lane i of vector j.
template <class T, int Stride = kWidth<T> / 2>
SPHERESCAN_INLINE void transpose(Vector<T> (&vectors)[kWidth<T>]) {
    constexpr int width = kWidth<T>;
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
        if ((i & Stride) == 0) {
            exchange<T, Stride>(vectors[i], vectors[i + Stride], std::make_integer_sequence<int, width>());
        }
    }
    if constexpr (Stride > 1) transpose<T, Stride / 2>(vectors);
}

// Lane i of the result is the sum over the lanes of vector i, bit for bit. Overwrites the vectors.
template <class T, int Stride = kWidth<T> / 2>
SPHERESCAN_INLINE Vector<T> sum_lanes(Vector<T> (&vectors)[kWidth<T>]) {
#pragma GCC unroll 16
    for (int i = 0; i < Stride; ++i) {
        exchange<T, Stride>(vectors[i], vectors[i + Stride], std::make_integer_sequence<int, kWidth<T>>());
        vectors[i] = vectors[i] + vectors[i + Stride];
    }
    if constexpr (Stride > 1) return sum_lanes<T, Stride / 2>(vectors);
    return vectors[0];
}

// One value: to and from memory, whatever it is stored as.
SPHERESCAN_INLINE float read_one(const float* from) { return *from; }
SPHERESCAN_INLINE double read_one(const double* from) { return *from; }
SPHERESCAN_INLINE float read_one(const BFloat16* from) {
    const std::uint32_t bits = static_cast<std::uint32_t>(from->bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

SPHERESCAN_INLINE void write_one(float* to, float value) { *to = value; }
SPHERESCAN_INLINE void write_one(double* to, double value) { *to = value; }
SPHERESCAN_INLINE void write_one(BFloat16* to, float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // To nearest, ties to even; a NaN must not be rounded up into an infinity.
    const std::uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    to->bits = static_cast<std::uint16_t>((value != value ? (bits | 0x400000) : rounded) >> 16);
}

// A whole vector: to and from memory, whatever it is stored as.
SPHERESCAN_INLINE Vector<float> read(const float* from) { return load(from); }
SPHERESCAN_INLINE Vector<double> read(const double* from) { return load(from); }
SPHERESCAN_INLINE Vector<float> read(const BFloat16* from) {
    typedef std::uint16_t Half __attribute__((vector_size(SPHERESCAN_VECTOR_BYTES / 2)));
    typedef std::uint32_t Whole __attribute__((vector_size(SPHERESCAN_VECTOR_BYTES)));
    Half half;
    std::memcpy(&half, from, sizeof half);
    return (Vector<float>)(__builtin_convertvector(half, Whole) << 16);
}

SPHERESCAN_INLINE void write(float* to, Vector<float> values) { store(to, values); }
SPHERESCAN_INLINE void write(double* to, Vector<double> values) { store(to, values); }
SPHERESCAN_INLINE void write(BFloat16* to, Vector<float> values) {
    typedef std::uint16_t Half __attribute__((vector_size(SPHERESCAN_VECTOR_BYTES / 2)));
    typedef std::uint32_t Whole __attribute__((vector_size(SPHERESCAN_VECTOR_BYTES)));
    const Whole bits = (Whole)values;
    const Whole rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const Whole chosen = (Whole)(values != values) ? (bits | 0x400000) : rounded;
    const Half half = __builtin_convertvector(chosen >> 16, Half);
    std::memcpy(to, &half, sizeof half);
}

}  // namespace spherescan::SPHERESCAN_LEVEL
