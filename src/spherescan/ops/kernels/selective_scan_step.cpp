// One position of the selective scan:
//
//   delta' = softplus(delta + delta_bias)
//   h      = exp(delta' A) h + (delta' u) B
//   y      = (<h, C> + D u) silu(gate)
//
// States lie in lanes, as they lie in memory: with one position there is nothing over which a transposed state could be
// used again.
#include "exp.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

// Below this many states, waking a second thread costs more than it brings.
constexpr Index kStatesPerThread = 32768;
constexpr Index kChannels = 64;

template <class IO>
class Step {
    using T = Compute<IO>;
    static constexpr int W = kWidth<T>;

  public:
    explicit Step(const SpherescanScanStep& step)
        : step_(step), u_(step.u), delta_(step.delta), gate_(step.gate), B_(step.B), C_(step.C), y_(step.y),
          padded_((step.d_state + W - 1) / W * W) {}

    SpherescanStatus run() const {
        const Index groups = (step_.d_inner + kChannels - 1) / kChannels;
        const bool large = step_.batch * step_.d_inner * step_.d_state >= 2 * kStatesPerThread;
        const int threads = large ? step_.threads : 1;
        return for_each_task<T>(step_.batch * groups, threads, 2 * padded_, [&](Index task, T* memory) {
            const Index batch = task / groups, first = task % groups * kChannels;
            const Index last = first + kChannels < step_.d_inner ? first + kChannels : step_.d_inner;
            T *B = memory, *C = memory + padded_;
            for (Index n = 0; n < padded_; ++n) {
                B[n] = n < step_.d_state ? read_one(B_.at(batch, 0, n)) : T(0);
                C[n] = n < step_.d_state ? read_one(C_.at(batch, 0, n)) : T(0);
            }
            for (Index channel = first; channel < last; channel += W) run_channels(batch, channel, last, B, C);
        });
    }

  private:
    void run_channels(Index batch, Index first, Index last, const T* B, const T* C) const {
        const Block block = neighbours<T>(batch, first, last);
        const Vector<T> raw = read_row<T>(delta_, block, 0) + read_channels<T>(step_.delta_bias, block);
        const Vector<T> delta = step_.delta_softplus ? softplus<T>(raw) : raw;
        const Vector<T> u = read_row<T>(u_, block, 0);
        T rates[W], inputs[W], outputs[W] = {};
        store<T>(rates, delta);
        store<T>(inputs, delta * u);
        for (int i = 0; i < block.lanes; ++i) {
            outputs[i] = run_states((batch * step_.d_inner + first + i), first + i, rates[i], inputs[i], B, C);
        }
        Vector<T> y = load(outputs) + read_channels<T>(step_.D, block) * u;
        if (!gate_.missing()) y = y * silu<T>(read_row<T>(gate_, block, 0));
        write_row<T>(y_, block, 0, y);
    }

    T run_states(Index row, Index channel, T rate, T input, const T* B, const T* C) const {
        const Index N = step_.d_state;
        const T* A = static_cast<const T*>(step_.A) + channel * N;
        const T* h = static_cast<const T*>(step_.state) + row * N;
        T* next = static_cast<T*>(step_.new_state) + row * N;
        Vector<T> y = splat<T>(T(0));
        Index n = 0;
        for (; n + W <= N; n += W) {
            const Vector<T> state = exp2(load(A + n) * (rate * T(kLog2E))) * load(h + n) + input * load(B + n);
            store<T>(next + n, state);
            y = state * load(C + n) + y;
        }
        if (n < N) {
            T decay[W] = {}, before[W] = {}, after[W];
            for (Index i = n; i < N; ++i) {
                decay[i - n] = A[i];
                before[i - n] = h[i];
            }
            const Vector<T> state = exp2(load(decay) * (rate * T(kLog2E))) * load(before) + input * load(B + n);
            store<T>(after, state);
            for (Index i = n; i < N; ++i) next[i] = after[i - n];
            y = state * load(C + n) + y;
        }
        return sum<T>(y);
    }

    const SpherescanScanStep& step_;
    const Rows<const IO> u_, delta_, gate_, B_, C_;
    const Rows<IO> y_;
    const Index padded_;
};

}  // namespace

SpherescanStatus selective_scan_step(const SpherescanScanStep& step) {
    switch (step.type) {
        case SPHERESCAN_FLOAT32:
            return Step<float>(step).run();
        case SPHERESCAN_BFLOAT16:
            return Step<BFloat16>(step).run();
        default:
            return Step<double>(step).run();
    }
}

}  // namespace spherescan::SPHERESCAN_LEVEL
