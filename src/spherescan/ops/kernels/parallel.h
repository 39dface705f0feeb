// Tasks over threads, their scratch memory, and the floating-point mode they run in.
//
// What a task computes never depends on the number of threads: the partition is a function of the shape, and sums over
// tasks are taken in the order of the tasks. So results are the same bits for any number of threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "abi.h"
#include "scratch.h"
#include "vector.h"

namespace spherescan {

namespace SPHERESCAN_LEVEL {

template <class T>
SPHERESCAN_INLINE T* scratch(Slot slot, Index count) {
    return static_cast<T*>(scratch_bytes(slot, static_cast<std::size_t>(count) * sizeof(T)));
}

// Hands out pieces of scratch memory, each aligned to 64 bytes; without memory it only counts what is needed. Pieces whose
// sizes are powers of two would all begin at the same offset of a page: a load from one then waits for stores to another.
template <class T>
class Arena {
  public:
    explicit Arena(T* memory) : memory_(memory) {}

    T* take(Index count) {
        constexpr Index line = 64 / sizeof(T);
        const Index at = used_;
        used_ += ((count + line - 1) / line + kStagger) * line;
        return memory_ == nullptr ? nullptr : memory_ + at;
    }

    Index used() const { return used_; }

  private:
    static constexpr Index kStagger = 9;  // lines between pieces

    T* memory_;
    Index used_ = 0;
};

// A state that decays towards zero becomes subnormal, and arithmetic on those is an order of magnitude slower. Within a
// task they are zero; the mode of the calling thread is put back.
class FlushSubnormals {
  public:
#if defined(__x86_64__)
    FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#elif defined(__aarch64__)
    FlushSubnormals() {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" : : "r"(saved_ | (std::uint64_t(1) << 24)));
    }
    ~FlushSubnormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

  private:
    std::uint64_t saved_;
#endif
};

// Run work(task, memory) for every task; memory is scratch of `count` values of T, undefined at the start of each.
template <class T, class Work>
static SpherescanStatus for_each_task(Index n_tasks, int threads, Index count, const Work& work) {
    if (threads > n_tasks) threads = static_cast<int>(n_tasks);
    std::atomic<bool> out_of_memory{false};
    const auto run = [&](Index task) {
        T* memory = scratch<T>(Slot::kTask, count);
        if (memory == nullptr) {
            out_of_memory = true;
            return;
        }
        const FlushSubnormals mode;
        work(task, memory);
    };
    if (threads <= 1) {
        for (Index task = 0; task < n_tasks; ++task) run(task);
    } else {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (Index task = 0; task < n_tasks; ++task) run(task);
    }
    return out_of_memory ? SPHERESCAN_OUT_OF_MEMORY : SPHERESCAN_OK;
}

}  // namespace SPHERESCAN_LEVEL
}  // namespace spherescan
