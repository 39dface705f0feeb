// The causal depthwise convolution, forward and backward. With age_t the positions since the document of t began:
//
//   q_t  = bias + sum_{back <= min(k - 1, age_t)} w_{k-1-back} x_{t-back}          x before the first position is the state
//   y_t  = silu(q_t) or q_t                       g_t = dL/dy_t silu'(q_t) or dL/dy_t
//   dx_t = sum_{back <= min(k - 1, age_{t+back})} w_{k-1-back} g_{t+back}
//   dw_{k-1-back} = sum_{b,t: back <= age_t} g_t x_{t-back}                        dbias = sum_{b,t} g_t
//
// Channels lie in lanes; the last k - 1 inputs and the gradients that still wait for later positions move along in
// registers. Work is cut into stretches of positions; the backward pass of one runs k - 1 positions past its end.
#include "exp.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

constexpr Index kStretch = 32, kMostTasks = 128;
// Kernel widths up to this one live in registers, wider ones in memory.
constexpr int kWidest = 4;

// `Taps` is the kernel width, or 0 where only the call knows it.
template <class IO, int Taps>
class Conv {
    using T = Compute<IO>;
    static constexpr int W = kWidth<T>;
    static constexpr Index kNoStart = INT64_C(1) << 62;

  public:
    explicit Conv(const SpherescanConv& conv)
        : conv_(conv), x_(conv.x), y_grad_(conv.y_grad), reset_(conv.reset), y_(conv.y), x_grad_(conv.x_grad),
          taps_(Taps > 0 ? Taps : static_cast<int>(conv.width)), blocks_(ceil_div(conv.d_inner, W)),
          stretches_(ceil_div(conv.length, kStretch)) {
        const Index all = conv.batch * stretches_;
        tasks_ = all < kMostTasks ? all : kMostTasks;
    }

    SpherescanStatus forward() const {
        return for_each_task<Vector<T>>(tasks_, conv_.threads, 2 * taps_, [&](Index task, Vector<T>* memory) {
            each_stretch(task, [&](const Block& block, Index start, Index end) {
                forward_stretch(block, start, end, memory);
            });
        });
    }

    SpherescanStatus backward() const {
        const Index sums_of_task = blocks_ * (taps_ + 1) * W;
        T* sums = scratch<T>(Slot::kCall, tasks_ * sums_of_task);
        if (sums == nullptr) return SPHERESCAN_OUT_OF_MEMORY;
        const auto work = [&](Index task, Vector<T>* memory) {
            T* mine = sums + task * sums_of_task;
            std::memset(mine, 0, sizeof(T) * sums_of_task);
            each_stretch(task, [&](const Block& block, Index start, Index end) {
                backward_stretch(block, start, end, memory, mine + block.channel / W * (taps_ + 1) * W);
            });
        };
        const auto status = for_each_task<Vector<T>>(tasks_, conv_.threads, 4 * taps_, work);
        if (status != SPHERESCAN_OK) return status;
        return for_each_task<T>(blocks_, conv_.threads, 1, [&](Index k, T*) { reduce(k, sums, sums_of_task); });
    }

  private:
    Block block(Index batch, Index k) const { return neighbours<T>(batch, k * W, conv_.d_inner); }

    template <class Work>
    void each_stretch(Index task, const Work& work) const {
        const Index all = conv_.batch * stretches_;
        for (Index i = all * task / tasks_; i < all * (task + 1) / tasks_; ++i) {
            const Index batch = i / stretches_, start = i % stretches_ * kStretch;
            const Index end = start + kStretch < conv_.length ? start + kStretch : conv_.length;
            for (Index k = 0; k < blocks_; ++k) work(block(batch, k), start, end);
        }
    }

    // The input at a position, which before the first one is the state.
    Vector<T> input(const Block& block, Index position) const {
        if (position >= 0) return read_row<T>(x_, block, position);
        T values[W] = {};
        if (conv_.state != nullptr) {
            for (int i = 0; i < block.lanes; ++i) values[i] = *state_at(conv_.state, block, i, position);
        }
        return load(values);
    }

    const T* state_at(const void* state, const Block& block, int lane, Index position) const {
        const Index row = block.batch * conv_.d_inner + block.channel + lane;
        return static_cast<const T*>(state) + row * (taps_ - 1) + position + taps_ - 1;
    }

    bool starts(const Block& block, Index position) const {
        return !reset_.missing() && position >= 0 && *reset_.at(block.batch, position, 0) != 0;
    }

    // Positions since the document of `position` began, as far as the kernel reaches.
    Index age_before(const Block& block, Index position) const {
        if (reset_.missing()) return kNoStart;
        for (Index back = 1; back < taps_; ++back) {
            if (starts(block, position - back)) return back - 1;
        }
        return kNoStart;
    }

    // The kernel width. Loops over taps spell it out: where the compiler knows it, it must see so before it can unroll them
    // and keep windows in registers.
    int taps() const { return Taps > 0 ? Taps : taps_; }

    // Tap j reaches k - 1 - j positions back: does it stay within the document?
    bool reaches(int j, Index age) const { return taps() - 1 - j <= age; }

    void read_weights(const Block& block, Vector<T>* to) const {
#pragma GCC unroll 4
        for (int j = 0; j < (Taps > 0 ? Taps : taps_); ++j) {
            T values[W] = {};
            for (int i = 0; i < block.lanes; ++i) {
                values[i] = static_cast<const T*>(conv_.weight)[(block.channel + i) * taps() + j];
            }
            to[j] = load(values);
        }
    }

    // window[j] holds x_{t-(k-1)+j}.
    Vector<T> convolve(const Vector<T>* weight, const Vector<T>* window, Index age, Vector<T> bias) const {
        Vector<T> q = bias;
#pragma GCC unroll 4
        for (int j = 0; j < (Taps > 0 ? Taps : taps_); ++j) {
            if (reaches(j, age)) q = weight[j] * window[j] + q;
        }
        return q;
    }

    // Drop the oldest and append the newest.
    void push(Vector<T>* window, Vector<T> newest) const {
#pragma GCC unroll 4
        for (int j = 0; j < (Taps > 0 ? Taps : taps_) - 1; ++j) window[j] = window[j + 1];
        window[taps() - 1] = newest;
    }

    void fill(const Block& block, Index start, Vector<T>* window) const {
        window[0] = splat<T>(T(0));
#pragma GCC unroll 4
        for (int j = 1; j < (Taps > 0 ? Taps : taps_); ++j) window[j] = input(block, start - taps() + j);
    }

    // The next block's rows, see selective_scan_forward.cpp.
    template <class Stored>
    void prefetch(const Rows<Stored>& rows, const Block& block, Index position, int for_writing) const {
        if (!block.whole || block.channel + 2 * W > conv_.d_inner) return;
        const auto* at = rows.at(block.batch, position, block.channel + W);
        if (for_writing) {
            __builtin_prefetch(at, 1, 3);
        } else {
            __builtin_prefetch(at, 0, 3);
        }
    }

    void forward_stretch(const Block& block, Index start, Index end, Vector<T>* memory) const {
        Vector<T> local[2][Taps > 0 ? Taps : 1];
        Vector<T>* weight = Taps > 0 ? local[0] : memory;
        Vector<T>* window = Taps > 0 ? local[1] : memory + taps_;
        read_weights(block, weight);
        fill(block, start, window);
        const Vector<T> bias = read_channels<T>(conv_.bias, block);
        Index age = age_before(block, start);
        for (Index l = start; l < end; ++l) {
            age = starts(block, l) ? 0 : age + 1;
            push(window, read_row<T>(x_, block, l));
            prefetch(x_, block, l, 0);
            prefetch(y_, block, l, 1);
            const Vector<T> q = convolve(weight, window, age, bias);
            write_row<T>(y_, block, l, conv_.silu ? silu<T>(q) : q);
        }
    }

    void backward_stretch(const Block& block, Index start, Index end, Vector<T>* memory, T* sums) const {
        Vector<T> local[4][Taps > 0 ? Taps : 1];
        Vector<T>* weight = Taps > 0 ? local[0] : memory;
        Vector<T>* window = Taps > 0 ? local[1] : memory + taps_;
        Vector<T>* waiting = Taps > 0 ? local[2] : memory + 2 * taps_;  // gradient of x_{t-(k-1)+j} so far
        Vector<T>* weight_grad = Taps > 0 ? local[3] : memory + 3 * taps_;
        read_weights(block, weight);
        fill(block, start, window);
#pragma GCC unroll 4
        for (int j = 0; j < (Taps > 0 ? Taps : taps_); ++j) {
            waiting[j] = splat<T>(T(0));
            weight_grad[j] = load(sums + j * W);
        }
        const Vector<T> bias = read_channels<T>(conv_.bias, block);
        Vector<T> bias_grad = load(sums + taps() * W);
        Index age = age_before(block, start);
        for (Index l = start; l < end + taps() - 1; ++l) {
            push(waiting, splat<T>(T(0)));
            if (l < conv_.length) {
                age = starts(block, l) ? 0 : age + 1;
                push(window, read_row<T>(x_, block, l));
                prefetch(x_, block, l, 0);
                prefetch(y_grad_, block, l, 0);
                prefetch(x_grad_, block, l, 1);
                const Vector<T> g = output_grad(block, l, convolve(weight, window, age, bias));
                const Vector<T> own = l < end ? g : splat<T>(T(0));  // later positions are another stretch's
                bias_grad = bias_grad + own;
#pragma GCC unroll 4
                for (int j = 0; j < (Taps > 0 ? Taps : taps_); ++j) {
                    if (!reaches(j, age)) continue;
                    waiting[j] = weight[j] * g + waiting[j];
                    weight_grad[j] = own * window[j] + weight_grad[j];
                }
            }
            emit(block, start, l - (taps() - 1), waiting[0]);
        }
#pragma GCC unroll 4
        for (int j = 0; j < (Taps > 0 ? Taps : taps_); ++j) store<T>(sums + j * W, weight_grad[j]);
        store<T>(sums + taps() * W, bias_grad);
    }

    Vector<T> output_grad(const Block& block, Index position, Vector<T> q) const {
        const Vector<T> grad = read_row<T>(y_grad_, block, position);
        if (!conv_.silu) return grad;
        const Vector<T> s = sigmoid<T>(q);
        return grad * (q * s * (T(1) - s) + s);
    }

    // The gradient of the input at a position is complete; those before the stretch are another one's.
    void emit(const Block& block, Index start, Index position, Vector<T> grad) const {
        if (position >= start) {
            write_row<T>(x_grad_, block, position, grad);
        } else if (position < 0 && start == 0 && conv_.state_grad != nullptr) {
            T lanes[W];
            store<T>(lanes, grad);
            for (int i = 0; i < block.lanes; ++i) {
                *const_cast<T*>(state_at(conv_.state_grad, block, i, position)) = lanes[i];
            }
        }
    }

    void reduce(Index k, const T* sums, Index sums_of_task) const {
        const Block lanes = block(0, k);
        for (int j = 0; j <= taps_; ++j) {
            Vector<T> total = splat<T>(T(0));
            for (Index task = 0; task < tasks_; ++task) {
                total = total + load(sums + task * sums_of_task + (k * (taps_ + 1) + j) * W);
            }
            T values[W];
            store<T>(values, total);
            for (int i = 0; i < lanes.lanes; ++i) {
                if (j < taps_) {
                    static_cast<T*>(conv_.weight_grad)[(lanes.channel + i) * taps_ + j] = values[i];
                } else if (conv_.bias_grad != nullptr) {
                    static_cast<T*>(conv_.bias_grad)[(lanes.channel + i)] = values[i];
                }
            }
        }
    }

    const SpherescanConv& conv_;
    const Rows<const IO> x_, y_grad_;
    const Rows<const unsigned char> reset_;
    const Rows<IO> y_, x_grad_;
    const int taps_;
    const Index blocks_, stretches_;
    Index tasks_;
};

template <class IO, int Taps>
SpherescanStatus run(const SpherescanConv& conv, bool backward) {
    if constexpr (Taps > 0) {
        if (conv.width != Taps) return run<IO, Taps - 1>(conv, backward);
    }
    const Conv<IO, Taps> op(conv);
    return backward ? op.backward() : op.forward();
}

SpherescanStatus run(const SpherescanConv& conv, bool backward) {
    switch (conv.type) {
        case SPHERESCAN_FLOAT32:
            return run<float, kWidest>(conv, backward);
        case SPHERESCAN_BFLOAT16:
            return run<BFloat16, kWidest>(conv, backward);
        default:
            return run<double, kWidest>(conv, backward);
    }
}

}  // namespace

SpherescanStatus causal_conv1d(const SpherescanConv& conv) { return run(conv, false); }

SpherescanStatus causal_conv1d_backward(const SpherescanConv& conv) { return run(conv, true); }

}  // namespace spherescan::SPHERESCAN_LEVEL
