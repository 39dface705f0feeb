// Add an update to the residual stream and normalise the sum by its root mean square, in one pass; and back.
//
//   s      = x + update
//   r      = 1 / sqrt(mean(s^2) + epsilon)
//   normed = s r w
//
//   v  = w dnormed,  c = r^2 mean(v s)         dx = dupdate = ds + r (v - s c)           dw = sum_rows dnormed s r
#include <cmath>

#include "exp.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

constexpr Index kMostTasks = 64;

// T is the type of x and of the sum; U and N those of the update and of the norm.
template <class T, class U, class N>
class Norm {
    static constexpr int W = kWidth<T>;

  public:
    explicit Norm(const SpherescanNorm& norm)
        : norm_(norm), tasks_(norm.rows < kMostTasks ? norm.rows : kMostTasks), whole_(norm.width / W * W) {}

    SpherescanStatus forward() const {
        return for_each_task<T>(tasks_, norm_.threads, 1, [&](Index task, T*) {
            for (Index row = first(task); row < first(task + 1); ++row) forward_row(row);
        });
    }

    SpherescanStatus backward() const {
        const Index width = norm_.width;
        T* sums = scratch<T>(Slot::kCall, tasks_ * width);
        if (sums == nullptr) return SPHERESCAN_OUT_OF_MEMORY;
        const auto status = for_each_task<T>(tasks_, norm_.threads, 1, [&](Index task, T*) {
            T* weight_grad = sums + task * width;
            std::memset(weight_grad, 0, sizeof(T) * width);
            for (Index row = first(task); row < first(task + 1); ++row) backward_row(row, weight_grad);
        });
        if (status != SPHERESCAN_OK) return status;
        T* total = static_cast<T*>(norm_.weight_grad);
        for (Index i = 0; i < width; ++i) {
            T value = T(0);
            for (Index task = 0; task < tasks_; ++task) value += sums[task * width + i];
            total[i] = value;
        }
        return SPHERESCAN_OK;
    }

  private:
    Index first(Index task) const { return norm_.rows * task / tasks_; }

    template <class S>
    S* at(const void* tensor, Index row) const {
        return tensor == nullptr ? nullptr : const_cast<S*>(static_cast<const S*>(tensor)) + row * norm_.width;
    }

    void forward_row(Index row) const {
        const T *x = at<T>(norm_.x, row), *w = static_cast<const T*>(norm_.weight);
        const U* update = at<U>(norm_.update, row);
        T* total = at<T>(norm_.total, row);
        N* normed = at<N>(norm_.normed, row);
        const Index width = norm_.width;
        Vector<T> squares = splat<T>(T(0));
        Index i = 0;
        for (; i < whole_; i += W) {
            Vector<T> s = load(x + i);
            if (update != nullptr) s = s + read(update + i);
            if (total != nullptr) store<T>(total + i, s);
            squares = s * s + squares;
        }
        T square = sum<T>(squares);
        for (; i < width; ++i) {
            const T s = x[i] + (update != nullptr ? read_one(update + i) : T(0));
            if (total != nullptr) total[i] = s;
            square += s * s;
        }
        const T scale = T(1) / std::sqrt(square / T(width) + T(norm_.epsilon));
        static_cast<T*>(norm_.scale)[row] = scale;
        const T* s = total != nullptr ? total : x;
        for (i = 0; i < whole_; i += W) write(normed + i, load(s + i) * load(w + i) * scale);
        for (; i < width; ++i) write_one(normed + i, s[i] * w[i] * scale);
    }

    void backward_row(Index row, T* weight_grad) const {
        const T *s = at<T>(norm_.total, row), *w = static_cast<const T*>(norm_.weight);
        const N* grad = at<N>(norm_.normed_grad, row);
        const T* total_grad = at<T>(norm_.total_grad, row);
        T* x_grad = at<T>(norm_.x_grad, row);
        U* update_grad = at<U>(norm_.update_grad, row);
        const Index width = norm_.width;
        const T scale = static_cast<const T*>(norm_.scale)[row];
        Vector<T> products = splat<T>(T(0));
        Index i = 0;
        for (; i < whole_; i += W) {
            const Vector<T> g = read(grad + i), value = load(s + i);
            products = g * load(w + i) * value + products;
            store<T>(weight_grad + i, g * value * scale + load(weight_grad + i));
        }
        T product = sum<T>(products);
        for (; i < width; ++i) {
            const T g = read_one(grad + i);
            product += g * w[i] * s[i];
            weight_grad[i] += g * s[i] * scale;
        }
        const T correction = scale * scale * product / T(width);
        for (i = 0; i < whole_; i += W) {
            Vector<T> dx = (read(grad + i) * load(w + i) - load(s + i) * correction) * scale;
            if (total_grad != nullptr) dx = dx + load(total_grad + i);
            store<T>(x_grad + i, dx);
            if (update_grad != nullptr) write(update_grad + i, dx);
        }
        for (; i < width; ++i) {
            T dx = (read_one(grad + i) * w[i] - s[i] * correction) * scale;
            if (total_grad != nullptr) dx += total_grad[i];
            x_grad[i] = dx;
            if (update_grad != nullptr) write_one(update_grad + i, dx);
        }
    }

    const SpherescanNorm& norm_;
    const Index tasks_, whole_;
};

template <class T, class U, class N>
SpherescanStatus run_typed(const SpherescanNorm& norm, bool backward) {
    const Norm<T, U, N> op(norm);
    return backward ? op.backward() : op.forward();
}

SpherescanStatus run(const SpherescanNorm& norm, bool backward) {
    if (norm.type == SPHERESCAN_FLOAT64) return run_typed<double, double, double>(norm, backward);
    const bool short_update = norm.update_type == SPHERESCAN_BFLOAT16;
    if (norm.normed_type == SPHERESCAN_BFLOAT16) {
        return short_update ? run_typed<float, BFloat16, BFloat16>(norm, backward)
                            : run_typed<float, float, BFloat16>(norm, backward);
    }
    return short_update ? run_typed<float, BFloat16, float>(norm, backward)
                        : run_typed<float, float, float>(norm, backward);
}

}  // namespace

SpherescanStatus rms_norm(const SpherescanNorm& norm) { return run(norm, false); }

SpherescanStatus rms_norm_backward(const SpherescanNorm& norm) { return run(norm, true); }

}  // namespace spherescan::SPHERESCAN_LEVEL
