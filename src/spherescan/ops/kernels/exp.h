// exp2, exp, sigmoid and softplus of a vector, in float32 and float64.
//
//   2^x        = 2^n p(f),  n = round(x), f = x - n in [-1/2, 1/2]
//   e^x        = 2^n p(f),  n = round(x log2 e), f = (x - n ln 2) log2 e with ln 2 in two parts: rounding x log2 e first
//                would cost as many bits as n has
//   p          minimax in relative error with p(0) = 1 exactly, so that a decay rate of zero forgets nothing:
//              degree 5, error 9.2e-8 (float32); degree 11, error 3.4e-18 (float64)
//   log1p(t)   = s q(s^2),  s = t / (2 + t),  for t in [0, 1]
//   q          minimax in relative error: degree 4, error 4.0e-9 (float32); degree 9, error 4.6e-17 (float64)
//
// Bounds on the results, as tests/ops/test_kernel_functions.py shows them (in float32 over every number of the range):
// exp2 2.5e-7 and 5e-16, sigmoid 6e-7 and 1e-15, softplus 6e-7 and 1e-15, relative, where the result is at least four times
// the smallest normal number; a smaller one may be flushed to zero. Infinities have the right limits and NaN stays NaN.
#pragma once

#include "vector.h"

namespace spherescan::SPHERESCAN_LEVEL {

template <class T>
struct Polynomials;

template <>
struct Polynomials<float> {
    static constexpr float kExp2[] = {1.0f,
                                      0.69314697760296891618f,
                                      0.24022242085811354026f,
                                      0.055507337369657974052f,
                                      0.0096715126251697698351f,
                                      0.0013264729122813988863f};
    static constexpr float kLog1p[] = {2.0000000079210381463f, 0.66666314682128474927f, 0.40024910279538121391f,
                                       0.27960602747171466941f, 0.2817833508673454477f};
    // 1.5 * 2^23 + 126: a sum with it has the integer n + 126 in its low bits, the exponent bits of 2^(n - 1).
    static constexpr float kRound = 12583038.0f;
    static constexpr int kMantissaBits = 23;
    static constexpr float kLowest = -126.0f, kHighest = 128.0f;
    static constexpr float kFarBelow = -200.0f;  // e^x is zero there
    static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440054690583e-4f;  // n kLn2High is exact
};

template <>
struct Polynomials<double> {
    static constexpr double kExp2[] = {1.0,
                                       0.69314718055994532581,
                                       0.24022650695910131259,
                                       0.055504108664820083133,
                                       0.0096181291075941207069,
                                       0.0013333558146774648322,
                                       0.00015403530457111286979,
                                       0.000015252733493096256905,
                                       1.3215435282713933909e-6,
                                       1.017819958639031682e-7,
                                       7.0737831792462341057e-9,
                                       4.434768929655357972e-10};
    static constexpr double kLog1p[] = {1.9999999999999999085,  0.66666666666683032007, 0.39999999995177328583,
                                        0.28571429121878743076, 0.22222190386971895627, 0.18182872162091476016,
                                        0.15363487086809733935, 0.13592992071864171361, 0.098726814941907386243,
                                        0.17797000049331577295};
    static constexpr double kRound = 6755399441056766.0;  // 1.5 * 2^52 + 1022
    static constexpr int kMantissaBits = 52;
    static constexpr double kLowest = -1022.0, kHighest = 1024.0;
    static constexpr double kLn2High = 0.693145751953125, kLn2Low = 1.42860682030941723212e-6;
};

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// A polynomial, times a factor that costs nothing.
template <class T, int N>
SPHERESCAN_INLINE Vector<T> horner(const T (&coefficients)[N], Vector<T> x, T factor = T(1)) {
    Vector<T> value = splat<T>(factor * coefficients[N - 1]);
#pragma GCC unroll 16
    for (int i = N - 2; i >= 0; --i) value = value * x + factor * coefficients[i];
    return value;
}

// 2^n p(f), for n as kRound left it in `shifted`, from -126 to 128. As 2^(n - 1) 2 p(f), so that both ends come by
// themselves: the bits of 2^-127 are those of zero, and 2^127 times two is infinite.
template <class T>
SPHERESCAN_INLINE Vector<T> scale(Vector<T> fraction, Vector<T> shifted) {
    using P = Polynomials<T>;
    return horner<T>(P::kExp2, fraction, T(2)) * (Vector<T>)((Bits<T>)shifted << P::kMantissaBits);
}

template <class T>
SPHERESCAN_INLINE Vector<T> exp2_portable(Vector<T> x) {
    using P = Polynomials<T>;
    const Vector<T> clamped = at_most(at_least(x, P::kLowest), P::kHighest);
    const Vector<T> shifted = clamped + P::kRound;
    return scale<T>(clamped - (shifted - P::kRound), shifted);
}

SPHERESCAN_INLINE Vector<double> exp2(Vector<double> x) { return exp2_portable<double>(x); }

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// One instruction finds the fraction and one scales, with the right limits everywhere.
SPHERESCAN_INLINE Vector<float> exp2(Vector<float> x) {
    const Vector<float> fraction = (Vector<float>)_mm512_reduce_ps((__m512)x, 0);
    return (Vector<float>)_mm512_scalef_ps((__m512)horner<float>(Polynomials<float>::kExp2, fraction),
                                           (__m512)(x - fraction));
}
#else
SPHERESCAN_INLINE Vector<float> exp2(Vector<float> x) { return exp2_portable<float>(x); }
#endif

// e^x for x that is not positive.
template <class T>
SPHERESCAN_INLINE Vector<T> exp_of_negative_portable(Vector<T> x) {
    using P = Polynomials<T>;
    const Vector<T> clamped = at_least(x, P::kLowest * T(kLn2));
    const Vector<T> shifted = clamped * T(kLog2E) + P::kRound, n = shifted - P::kRound;
    const Vector<T> rest = (clamped - n * P::kLn2High) - n * P::kLn2Low;
    return scale<T>(rest * T(kLog2E), shifted);
}

SPHERESCAN_INLINE Vector<double> exp_of_negative(Vector<double> x) { return exp_of_negative_portable<double>(x); }

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// The instruction that scales flushes what is too small. The maximum keeps infinity away from the subtractions and, with
// its operands in this order, lets NaN through.
SPHERESCAN_INLINE Vector<float> exp_of_negative(Vector<float> x) {
    using P = Polynomials<float>;
    const __m512 clamped = _mm512_max_ps(_mm512_set1_ps(P::kFarBelow), (__m512)x);
    const Vector<float> n = (Vector<float>)_mm512_roundscale_ps(_mm512_mul_ps(clamped, _mm512_set1_ps(float(kLog2E))), 0);
    const Vector<float> rest = ((Vector<float>)clamped - n * P::kLn2High) - n * P::kLn2Low;
    return (Vector<float>)_mm512_scalef_ps((__m512)horner<float>(P::kExp2, rest * float(kLog2E)), (__m512)n);
}
#else
SPHERESCAN_INLINE Vector<float> exp_of_negative(Vector<float> x) { return exp_of_negative_portable<float>(x); }
#endif

// 1 / (1 + exp(-x)), from exp of a number that is never positive.
template <class T>
SPHERESCAN_INLINE Vector<T> sigmoid(Vector<T> x) {
    const Vector<T> tail = exp_of_negative(-magnitude(x));
    const Vector<T> numerator = x < T(0) ? tail : splat<T>(T(1));
    return numerator / (T(1) + tail);
}

// log(1 + exp(x)); its derivative is sigmoid(x).
template <class T>
SPHERESCAN_INLINE Vector<T> softplus(Vector<T> x) {
    const Vector<T> tail = exp_of_negative(-magnitude(x));
    const Vector<T> s = tail / (T(2) + tail);
    const Vector<T> log1p = s * horner<T>(Polynomials<T>::kLog1p, s * s);
    return (x < T(0) ? splat<T>(T(0)) : x) + log1p;
}

// softplus(x) and its derivative, from one exponential and one division.
template <class T>
struct Softplus {
    Vector<T> value, slope;
};

template <class T>
SPHERESCAN_INLINE Softplus<T> softplus_with_slope(Vector<T> x) {
    const Vector<T> tail = exp_of_negative(-magnitude(x));
    const Vector<T> one = T(1) + tail, two = T(2) + tail, inverse = T(1) / (one * two);
    const Vector<T> s = tail * one * inverse;
    const Vector<T> log1p = s * horner<T>(Polynomials<T>::kLog1p, s * s);
    return {(x < T(0) ? splat<T>(T(0)) : x) + log1p, (x < T(0) ? tail : splat<T>(T(1))) * two * inverse};
}

template <class T>
SPHERESCAN_INLINE Vector<T> silu(Vector<T> x) {
    return x * sigmoid<T>(x);
}

}  // namespace spherescan::SPHERESCAN_LEVEL
