// The selective scan, forward:
//
//   delta' = softplus(delta + delta_bias)
//   h_t    = exp(delta'_t A) h_{t-1} + (delta'_t u_t) B_t        h is zero before a position where a document starts
//   y_t    = (<h_t, C_t> + D u_t) silu(gate_t)
//
// Channels lie in lanes. For each chunk of positions: prepare what does not depend on the state, run the states of each
// block of channels through the chunk in registers, write the outputs.
#include "kernels.h"
#include "selective_scan.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

// As many states as fit into the registers beside the temporaries of exp2.
constexpr int kTile = SPHERESCAN_VECTOR_BYTES == 64 ? 16 : 8;

// Per block of channels: [position][lane].
template <class T>
struct Prepared {
    T *delta, *delta_u, *y, *gate;

    Prepared at(Index offset) const { return {delta + offset, delta_u + offset, y + offset, gate + offset}; }
};

// Run `States` states of a block through a chunk, adding <h, C> to y.
template <class T, int States, bool Packed, bool Resets>
void run_tile(const T* decay, T* h, const Maps<T>& maps, Index first_state, const T* delta, const T* delta_u, T* y,
              const Ahead<4>& ahead) {
    constexpr int W = kWidth<T>;
    Vector<T> state[States];
#pragma GCC unroll 16
    for (int n = 0; n < States; ++n) state[n] = load(h + n * W);
    for (int l = 0; l < maps.positions; ++l) {
        ahead.fetch(l);
        const Vector<T> step = load(delta + l * W), input = load(delta_u + l * W);
        Vector<T> even = load(y + l * W), odd = splat<T>(T(0));
        const Index map = (l * maps.d_state + first_state) * (Packed ? W : 1);
        const T *B = maps.B + map, *C = maps.C + map;
        const Mask<T> mask = Resets ? load_mask(maps.keep + l * W) : Mask<T>{};
#pragma GCC unroll 16
        for (int n = 0; n < States; ++n) {
            const Vector<T> b = Packed ? load(B + n * W) : splat(B[n]);
            const Vector<T> c = Packed ? load(C + n * W) : splat(C[n]);
            if (Resets) state[n] = keep<T>(mask, state[n]);
            state[n] = exp2(step * load(decay + n * W)) * state[n] + input * b;
            if (n % 2 == 0) {
                even = state[n] * c + even;
            } else {
                odd = state[n] * c + odd;
            }
        }
        store<T>(y + l * W, even + odd);
    }
#pragma GCC unroll 16
    for (int n = 0; n < States; ++n) store<T>(h + n * W, state[n]);
}

template <class T, int States, bool Packed, bool Resets>
void run_tiles(const T* decay, T* h, const Maps<T>& maps, Index first, const T* delta, const T* delta_u, T* y,
               const Ahead<4>& ahead) {
    constexpr int W = kWidth<T>;
    for (; maps.d_state - first >= States; first += States) {
        run_tile<T, States, Packed, Resets>(decay + first * W, h + first * W, maps, first, delta, delta_u, y, ahead);
    }
    if constexpr (States > 1) {
        run_tiles<T, States / 2, Packed, Resets>(decay, h, maps, first, delta, delta_u, y, ahead);
    }
}

template <class T, bool Packed>
void run_states(const T* decay, T* h, const Maps<T>& maps, bool resets, const T* delta, const T* delta_u, T* y,
                const Ahead<4>& ahead) {
    if (resets) {
        run_tiles<T, kTile, Packed, true>(decay, h, maps, 0, delta, delta_u, y, ahead);
    } else {
        run_tiles<T, kTile, Packed, false>(decay, h, maps, 0, delta, delta_u, y, ahead);
    }
}

template <class IO>
class Forward {
    using T = Compute<IO>;
    static constexpr int W = kWidth<T>;

  public:
    explicit Forward(const SpherescanScan& scan)
        : scan_(scan), plan_(scan), u_(scan.u), delta_(scan.delta), gate_(scan.gate), B_(scan.B), C_(scan.C),
          reset_(scan.reset), y_(scan.y) {}

    SpherescanStatus run() const {
        if (scan_.checkpoints != nullptr && scan_.checkpoint_values < plan_.checkpoint_values()) {
            return SPHERESCAN_TOO_SMALL;
        }
        Arena<T> needed(nullptr);
        carve(needed);
        return for_each_task<T>(plan_.tasks, scan_.threads, needed.used(), [&](Index task, T* scratch) {
            Arena<T> arena(scratch);
            const Memory memory = carve(arena);
            const Index group = task / plan_.parts, part = task % plan_.parts;
            const Index first = plan_.rows * part / plan_.parts, last = plan_.rows * (part + 1) / plan_.parts;
            for (Index k = 0; k < plan_.blocks_of(group); ++k) {
                gather_decay<T>(scan_.A, plan_, plan_.block(first, group, k), memory.decay + k * plan_.d_state * W);
            }
            for (Index row = first; row < last; ++row) run_unit(row, group, memory);
        });
    }

  private:
    struct Memory {
        T *decay, *h, *B, *C, *keep;
        Prepared<T> prepared;
    };

    Memory carve(Arena<T>& arena) const {
        const Index states = plan_.states(), values = plan_.values();
        return {arena.take(states),
                arena.take(states),
                arena.take(plan_.maps()),
                arena.take(plan_.maps()),
                arena.take(kChunk * W),
                {arena.take(values), arena.take(values), arena.take(values), arena.take(values)}};
    }

    void run_unit(Index row, Index group, const Memory& memory) const {
        Block<T> blocks[kMostBlocks<T>];
        const int n_blocks = plan_.fill_blocks(row, group, blocks);
        const Index states = plan_.d_state * W;
        for (int k = 0; k < n_blocks; ++k) {
            gather_states<T>(static_cast<const T*>(scan_.state), plan_, blocks[k], memory.h + k * states);
        }
        for (Index chunk = 0; chunk < plan_.chunks; ++chunk) {
            const Index start = chunk * kChunk;
            const int positions = plan_.positions(chunk);
            if (scan_.checkpoints != nullptr) {
                T* checkpoint = plan_.checkpoint(scan_.checkpoints, row, group, chunk);
                std::memcpy(checkpoint, memory.h, sizeof(T) * n_blocks * states);
            }
            gather_maps<T, IO>(B_, plan_, blocks[0], start, positions, memory.B);
            gather_maps<T, IO>(C_, plan_, blocks[0], start, positions, memory.C);
            const bool resets = gather_keep<T>(reset_, blocks[0], start, positions, memory.keep);
            const Maps<T> maps{memory.B, memory.C, memory.keep, plan_.d_state, positions};
            if (plan_.packed) {
                run_chunk<true>(blocks, n_blocks, chunk, resets, maps, memory);
            } else {
                run_chunk<false>(blocks, n_blocks, chunk, resets, maps, memory);
            }
        }
        for (int k = 0; k < n_blocks; ++k) {
            scatter_states<T>(memory.h + k * states, plan_, blocks[k], static_cast<T*>(scan_.final_state));
        }
    }

    template <bool Packed>
    void run_chunk(const Block<T>* blocks, int n_blocks, Index chunk, bool resets, const Maps<T>& maps,
                   const Memory& memory) const {
        const Index start = chunk * kChunk, states = plan_.d_state * W;
        prepare<Packed>(blocks, n_blocks, start, maps.positions, memory.prepared);
        for (int k = 0; k < n_blocks; ++k) {
            const Prepared<T> mine = memory.prepared.at(k * kChunk * W);
            run_states<T, Packed>(memory.decay + k * states, memory.h + k * states, maps, resets, mine.delta,
                                  mine.delta_u, mine.y, next_chunk(blocks[k], chunk, memory));
        }
        finish<Packed>(blocks, n_blocks, start, maps.positions, memory.prepared);
    }

    Ahead<4> next_chunk(const Block<T>& block, Index chunk, const Memory& memory) const {
        Ahead<4> ahead(memory.h);
        if (!block.whole || chunk + 1 == plan_.chunks || plan_.positions(chunk + 1) < kChunk) return ahead;
        const Index batch = block.batch[0], row = (chunk + 1) * kChunk, channel = block.channel[0];
        ahead.set(0, delta_, batch, row, channel);
        ahead.set(1, u_, batch, row, channel);
        ahead.set(2, gate_, batch, row, channel);
        ahead.set(3, y_, batch, row, channel);
        return ahead;
    }

    // Row by row, as the tensors lie in memory: a row is one run, the next row is pages away.
    template <bool Packed>
    void prepare(const Block<T>* blocks, int n_blocks, Index start, int positions, const Prepared<T>& to) const {
        Vector<T> bias[kMostBlocks<T>], D[kMostBlocks<T>];
        for (int k = 0; k < n_blocks; ++k) {
            bias[k] = read_channels<T>(scan_.delta_bias, blocks[k]);
            D[k] = read_channels<T>(scan_.D, blocks[k]);
        }
        for (int l = 0; l < positions; ++l) {
            const Line<T, const IO, Packed> deltas(delta_, blocks, start + l), us(u_, blocks, start + l),
                gates(gate_, blocks, start + l);
            for (int k = 0; k < n_blocks; ++k) {
                const Index at = (k * kChunk + l) * W;
                const Vector<T> raw = deltas.read(k) + bias[k], u = us.read(k);
                const Vector<T> delta = scan_.delta_softplus ? softplus<T>(raw) : raw;
                store<T>(to.delta + at, delta);
                store<T>(to.delta_u + at, delta * u);
                store<T>(to.y + at, D[k] * u);
                if (!gate_.missing()) store<T>(to.gate + at, silu<T>(gates.read(k)));
            }
        }
    }

    template <bool Packed>
    void finish(const Block<T>* blocks, int n_blocks, Index start, int positions, const Prepared<T>& from) const {
        for (int l = 0; l < positions; ++l) {
            const Line<T, IO, Packed> ys(y_, blocks, start + l);
            for (int k = 0; k < n_blocks; ++k) {
                const Index at = (k * kChunk + l) * W;
                const Vector<T> y = load(from.y + at);
                ys.write(k, gate_.missing() ? y : y * load(from.gate + at));
            }
        }
    }

    const SpherescanScan& scan_;
    const Plan<T> plan_;
    const Rows<const IO> u_, delta_, gate_, B_, C_;
    const Rows<const unsigned char> reset_;
    const Rows<IO> y_;
};

}  // namespace

SpherescanStatus selective_scan(const SpherescanScan& scan) {
    switch (scan.type) {
        case SPHERESCAN_FLOAT32:
            return Forward<float>(scan).run();
        case SPHERESCAN_BFLOAT16:
            return Forward<BFloat16>(scan).run();
        default:
            return Forward<double>(scan).run();
    }
}

}  // namespace spherescan::SPHERESCAN_LEVEL
