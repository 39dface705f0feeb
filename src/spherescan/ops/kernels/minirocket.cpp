// MiniRocket at one dilation: of 84 kernels with the weight 2 at three of nine taps and -1 at the others, how often each
// exceeds its biases.
//
//   v_t  = 3 (z_i + z_j + z_m) - sum of all nine taps          i < j < m
//   f    = share of t with v_t > bias
//
// Every second kernel looks only where it lies wholly within the series, if that is anywhere. Compiled without fused
// multiply-adds: whether a value exceeds a bias is then the same as in the torch form, subnormal numbers aside, which are zero.
#include <cmath>

#include "fixed_taps.h"
#include "kernels.h"
#include "parallel.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

constexpr int kKernels = 84, kParts = 4;  // of the kernels: tasks of one series

struct Threes {
    int taps[kKernels][3];

    constexpr Threes() : taps{} {
        int kernel = 0;
        for (int i = 0; i < kTaps; ++i) {
            for (int j = i + 1; j < kTaps; ++j) {
                for (int m = j + 1; m < kTaps; ++m, ++kernel) {
                    taps[kernel][0] = i;
                    taps[kernel][1] = j;
                    taps[kernel][2] = m;
                }
            }
        }
    }
};

class MiniRocket {
    static constexpr int W = kWidth<float>;
    static constexpr int kTogether = 4;  // biases of one pass over the values

  public:
    explicit MiniRocket(const SpherescanFixed& fixed) : fixed_(fixed), taps_(fixed) {}

    SpherescanStatus run() const {
        const auto lay_out = [&](float* memory, Lines* lines) {
            Arena<float> arena(memory);
            lines->z = arena.take(taps_.line_values());
            lines->sum = arena.take(fixed_.length + W);
            lines->values = arena.take(fixed_.length + W);
            return arena.used();
        };
        Lines sizes;
        const Index count = lay_out(nullptr, &sizes);
        return for_each_task<float>(fixed_.batch * kParts, fixed_.threads, count, [&](Index task, float* memory) {
            Lines lines;
            lay_out(memory, &lines);
            const Index first = task % kParts * (kKernels / kParts);
            run_kernels(task / kParts, first, first + kKernels / kParts, lines);
        });
    }

  private:
    struct Lines {
        float *z, *sum, *values;
    };

    void run_kernels(Index batch, Index first, Index last, const Lines& lines) const {
        static constexpr Threes threes;
        for (Index kernel = first; kernel < last; ++kernel) {
            if (kernel == first || fixed_.channels > 1) fill(batch, kernel, lines);
            const Index length = fixed_.lengths[batch], reach = taps_.reach();
            const bool inner = (kernel + fixed_.odd) % 2 != 0 && length > 2 * reach;
            const Index begin = inner ? reach : 0, end = inner ? length - reach : length;
            convolve(threes.taps[kernel], begin, end, lines);
            const float* biases = fixed_.parameters + kernel * fixed_.count;
            float* out = static_cast<float*>(fixed_.out.data) + batch * fixed_.out.row_stride + kernel * fixed_.count;
            Index done = 0;
            for (; done + kTogether <= fixed_.count; done += kTogether) {
                count<kTogether>(lines.values, end - begin, biases + done, out + done);
            }
            for (; done < fixed_.count; ++done) count<1>(lines.values, end - begin, biases + done, out + done);
        }
    }

    void fill(Index batch, Index kernel, const Lines& lines) const {
        taps_.fill(batch, kernel, lines.z);
        for (Index t = 0; t < fixed_.lengths[batch]; t += W) {
            Vector<float> sum = load(lines.z + t);
            for (int j = 1; j < kTaps; ++j) sum = sum + load(lines.z + t + j * fixed_.dilation);
            store<float>(lines.sum + t, sum);
        }
    }

    void convolve(const int (&twos)[3], Index begin, Index end, const Lines& lines) const {
        const float *i = lines.z + twos[0] * fixed_.dilation, *j = lines.z + twos[1] * fixed_.dilation,
                    *m = lines.z + twos[2] * fixed_.dilation;
        for (Index t = begin; t < end; t += W) {
            const Vector<float> picked = load(i + t) + load(j + t) + load(m + t);
            store<float>(lines.values + t - begin, 3 * picked - load(lines.sum + t));
        }
        // What is read beyond the end exceeds nothing.
        for (Index t = end - begin; t % W != 0; ++t) lines.values[t] = -INFINITY;
    }

    template <int N>
    static void count(const float* values, Index n, const float* biases, float* out) {
        Mask<float> above[N] = {};
        for (Index t = 0; t < n; t += W) {
            const Vector<float> value = load(values + t);
#pragma GCC unroll 4
            for (int k = 0; k < N; ++k) above[k] -= value > splat(biases[k]);
        }
        for (int k = 0; k < N; ++k) {
            std::int64_t total = 0;
            for (int lane = 0; lane < W; ++lane) total += above[k][lane];
            out[k] = static_cast<float>(total) / static_cast<float>(n);
        }
    }

    const SpherescanFixed& fixed_;
    const FixedTaps taps_;
};

}  // namespace

SpherescanStatus minirocket(const SpherescanFixed& fixed) { return MiniRocket(fixed).run(); }

}  // namespace spherescan::SPHERESCAN_LEVEL
