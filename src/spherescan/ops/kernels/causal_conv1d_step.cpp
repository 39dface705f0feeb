// One position of the causal depthwise convolution; the state is the last k - 1 inputs, oldest first:
//
//   y = silu(bias + sum_j w_j window_j)        window = state, then x        new state = window without its oldest
#include "exp.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

// Below so many channels, waking a second thread costs more than it brings.
constexpr Index kChannelsPerThread = 16384;
constexpr Index kChannels = 256;

template <class IO>
class ConvStep {
    using T = Compute<IO>;
    static constexpr int W = kWidth<T>;

  public:
    explicit ConvStep(const SpherescanConvStep& step) : step_(step), x_(step.x), y_(step.y) {}

    SpherescanStatus run() const {
        const Index groups = ceil_div(step_.d_inner, kChannels);
        const int threads = step_.batch * step_.d_inner >= 2 * kChannelsPerThread ? step_.threads : 1;
        return for_each_task<T>(step_.batch * groups, threads, 1, [&](Index task, T*) {
            const Index batch = task / groups, first = task % groups * kChannels;
            const Index last = first + kChannels < step_.d_inner ? first + kChannels : step_.d_inner;
            for (Index channel = first; channel < last; channel += W) run_channels(batch, channel, last);
        });
    }

  private:
    void run_channels(Index batch, Index first, Index last) const {
        const Block block = neighbours<T>(batch, first, last);
        T inputs[W], sums[W] = {};
        store<T>(inputs, read_row<T>(x_, block, 0));
        for (int i = 0; i < block.lanes; ++i) sums[i] = run_channel(batch, first + i, inputs[i]);
        const Vector<T> q = load(sums) + read_channels<T>(step_.bias, block);
        write_row<T>(y_, block, 0, step_.silu ? silu<T>(q) : q);
    }

    T run_channel(Index batch, Index channel, T input) const {
        const Index reach = step_.width - 1, row = (batch * step_.d_inner + channel) * reach;
        const T* weight = static_cast<const T*>(step_.weight) + channel * step_.width;
        T sum = weight[reach] * input;
        if (reach == 0) return sum;
        const T* state = static_cast<const T*>(step_.state) + row;
        T* next = static_cast<T*>(step_.new_state) + row;
        for (Index j = 0; j < reach; ++j) {
            sum += weight[j] * state[j];
            next[j] = j + 1 < reach ? state[j + 1] : input;
        }
        return sum;
    }

    const SpherescanConvStep& step_;
    const Rows<const IO> x_;
    const Rows<IO> y_;
};

}  // namespace

SpherescanStatus causal_conv1d_step(const SpherescanConvStep& step) {
    switch (step.type) {
        case SPHERESCAN_FLOAT32:
            return ConvStep<float>(step).run();
        case SPHERESCAN_BFLOAT16:
            return ConvStep<BFloat16>(step).run();
        default:
            return ConvStep<double>(step).run();
    }
}

}  // namespace spherescan::SPHERESCAN_LEVEL
