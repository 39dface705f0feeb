// Hydra at one dilation: at each position the kernel of a group of eight that responds most gets its response, if that is
// above 0, and the one that responds least is counted. Of equal ones the first counts.
//
// Compiled without fused multiply-adds: which kernel wins is then the same as in the torch form, subnormal numbers aside.
#include "fixed_taps.h"
#include "kernels.h"
#include "parallel.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

constexpr int kInGroup = 8;
constexpr Index kGroupsOfTask = 8;
constexpr Index kStretch = 1024;  // positions whose responses are added in float32

class Hydra {
    using V = Vector<float>;
    static constexpr int W = kWidth<float>;

  public:
    explicit Hydra(const SpherescanFixed& fixed) : fixed_(fixed), taps_(fixed) {}

    SpherescanStatus run() const {
        const Index parts = ceil_div(fixed_.kernels, kGroupsOfTask);
        return for_each_task<float>(fixed_.batch * parts, fixed_.threads, taps_.line_values(), [&](Index task, float* line) {
            const Index batch = task / parts, first = task % parts * kGroupsOfTask;
            const Index last = first + kGroupsOfTask < fixed_.kernels ? first + kGroupsOfTask : fixed_.kernels;
            for (Index group = first; group < last; ++group) {
                taps_.fill(batch, group, line);
                run_group(batch, group, line);
            }
        });
    }

  private:
    void run_group(Index batch, Index group, const float* line) const {
        float weights[kTaps][kInGroup];
        const float* from = fixed_.parameters + group * kInGroup * kTaps;
        for (int k = 0; k < kInGroup; ++k) {
            for (int j = 0; j < kTaps; ++j) weights[j][k] = from[k * kTaps + j];
        }
        double responses[kInGroup] = {};
        std::int64_t counts[kInGroup] = {};
        const Index length = fixed_.lengths[batch];
        for (Index start = 0; start < length; start += kStretch) {
            const Index end = start + kStretch < length ? start + kStretch : length;
            run_stretch(weights, line, start, end, responses, counts);
        }
        float* out = static_cast<float*>(fixed_.out.data) + batch * fixed_.out.row_stride + group * kInGroup * 2;
        for (int k = 0; k < kInGroup; ++k) {
            out[2 * k] = static_cast<float>(responses[k]);
            out[2 * k + 1] = static_cast<float>(counts[k]);
        }
    }

    void run_stretch(const float (&weights)[kTaps][kInGroup], const float* line, Index start, Index end,
                     double (&responses)[kInGroup], std::int64_t (&counts)[kInGroup]) const {
        V response[kInGroup];
        Mask<float> count[kInGroup], lane;
        for (int k = 0; k < kInGroup; ++k) response[k] = splat(0.0f), count[k] = Mask<float>{};
        for (int i = 0; i < W; ++i) lane[i] = i;
        for (Index t = start; t < end; t += W) {
            V out[kInGroup];
#pragma GCC unroll 8
            for (int k = 0; k < kInGroup; ++k) out[k] = splat(0.0f);
            for (int j = 0; j < kTaps; ++j) {
                const V seen = load(line + t + j * fixed_.dilation);
#pragma GCC unroll 8
                for (int k = 0; k < kInGroup; ++k) out[k] = out[k] + splat(weights[j][k]) * seen;
            }
            V most = out[0], least = out[0];
#pragma GCC unroll 8
            for (int k = 1; k < kInGroup; ++k) {
                most = out[k] > most ? out[k] : most;
                least = out[k] < least ? out[k] : least;
            }
            const V gain = at_least(most, 0.0f);
            Mask<float> no_most = lane < static_cast<std::int32_t>(end - t), no_least = no_most;
#pragma GCC unroll 8
            for (int k = 0; k < kInGroup; ++k) {
                const Mask<float> strongest = (out[k] == most) & no_most, weakest = (out[k] == least) & no_least;
                no_most ^= strongest;
                no_least ^= weakest;
                response[k] = response[k] + keep<float>(strongest, gain);
                count[k] -= weakest;
            }
        }
        for (int k = 0; k < kInGroup; ++k) {
            for (int i = 0; i < W; ++i) {
                responses[k] += static_cast<double>(response[k][i]);
                counts[k] += count[k][i];
            }
        }
    }

    const SpherescanFixed& fixed_;
    const FixedTaps taps_;
};

}  // namespace

SpherescanStatus hydra(const SpherescanFixed& fixed) { return Hydra(fixed).run(); }

}  // namespace spherescan::SPHERESCAN_LEVEL
