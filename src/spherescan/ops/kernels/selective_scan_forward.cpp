// The selective scan, forward:
//
//   delta' = softplus(delta + delta_bias)
//   h_t    = exp(delta'_t A) h_{t-1} + (delta'_t u_t) B_t        h is zero before a position where a document starts
//   y_t    = (<h_t, C_t> + D u_t) silu(gate_t)
//
// For each chunk of positions: prepare what does not depend on the state, run the states of each block through the chunk in
// registers, write the outputs.
#include "kernels.h"
#include "selective_scan.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

// As many states as fit into the registers beside the temporaries of exp2.
constexpr int kTile = SPHERESCAN_VECTOR_BYTES == 64 ? 16 : 8;

// As the values of a chunk lie.
template <class T>
struct Prepared {
    T *delta, *delta_u, *y, *gate;
};

// What a tile reads and writes at each position, `stride` values from one to the next: a vector of channels, or the number
// of one channel. y is always a vector: of channels, or of what the states add to one.
template <class T>
struct Line {
    const T *delta, *delta_u;
    Index stride;
    T* y;
};

template <Lanes L, class T>
SPHERESCAN_INLINE Vector<T> value(const T* from) {
    return L == Lanes::kStates ? splat(*from) : load(from);
}

// Run `States` vectors of states of a block through a chunk, adding <h, C> to y.
template <class T, int States, Lanes L, bool Resets>
void run_tile(const T* decay, T* h, const Maps<T> maps, Index first, const Line<T> line, const Ahead<4> ahead) {
    constexpr int W = kWidth<T>;
    Vector<T> state[States];
#pragma GCC unroll 16
    for (int n = 0; n < States; ++n) state[n] = load(h + n * W);
    for (int l = 0; l < maps.positions; ++l) {
        ahead.fetch(l);
        const Vector<T> step = value<L>(line.delta + l * line.stride), input = value<L>(line.delta_u + l * line.stride);
        Vector<T> even = load(line.y + l * W), odd = splat<T>(T(0));
        const Index at = l * maps.row + first * (L == Lanes::kStates ? W : 1);
        const T *B = maps.B + at, *C = maps.C + at;
        const Mask<T> mask = Resets ? load_mask(maps.keep + l * W) : Mask<T>{};
#pragma GCC unroll 16
        for (int n = 0; n < States; ++n) {
            if (Resets) state[n] = keep<T>(mask, state[n]);
            state[n] = exp2(step * load(decay + n * W)) * state[n] + input * map<L>(B, n);
            if (n % 2 == 0) {
                even = state[n] * map<L>(C, n) + even;
            } else {
                odd = state[n] * map<L>(C, n) + odd;
            }
        }
        store<T>(line.y + l * W, even + odd);
    }
#pragma GCC unroll 16
    for (int n = 0; n < States; ++n) store<T>(h + n * W, state[n]);
}

template <class T, int States, Lanes L, bool Resets>
void run_tiles(const T* decay, T* h, const Maps<T>& maps, Index first, Index depth, const Line<T>& line,
               const Ahead<4>& ahead) {
    constexpr int W = kWidth<T>;
    for (; depth - first >= States; first += States) {
        run_tile<T, States, L, Resets>(decay + first * W, h + first * W, maps, first, line, ahead);
    }
    if constexpr (States > 1) run_tiles<T, States / 2, L, Resets>(decay, h, maps, first, depth, line, ahead);
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
            const Index first = plan_.batch * part / plan_.parts, last = plan_.batch * (part + 1) / plan_.parts;
            const Unit some = plan_.unit(first, group);
            gather_decay<T>(scan_.A, plan_, some, memory.decay);
            gather_parameter<T>(scan_.delta_bias, plan_, some, memory.bias);
            gather_parameter<T>(scan_.D, plan_, some, memory.D);
            for (Index batch = first; batch < last; ++batch) run_unit(plan_.unit(batch, group), memory);
        });
    }

  private:
    struct Memory {
        T *decay, *h, *B, *C, *keep, *bias, *D;
        Prepared<T> prepared;
        T *lines[3], *sums;  // where states are in lanes
    };

    Memory carve(Arena<T>& arena) const {
        const Index states = plan_.states(), values = plan_.values(), parameters = plan_.parameters();
        const Index lines = plan_.lanes == Lanes::kStates ? values : 0;
        return {arena.take(states),
                arena.take(states),
                arena.take(plan_.maps()),
                arena.take(plan_.maps()),
                arena.take(kChunk * W),
                arena.take(parameters),
                arena.take(parameters),
                {arena.take(values), arena.take(values), arena.take(values), arena.take(values)},
                {arena.take(lines), arena.take(lines), arena.take(lines)},
                arena.take(kChunk * W)};
    }

    void run_unit(const Unit& unit, const Memory& memory) const {
        gather_states<T>(static_cast<const T*>(scan_.state), plan_, unit, memory.h);
        for (Index chunk = 0; chunk < plan_.chunks; ++chunk) {
            const Index start = chunk * kChunk;
            const int positions = plan_.positions(chunk);
            if (scan_.checkpoints != nullptr) {
                T* checkpoint = plan_.checkpoint(scan_.checkpoints, unit, chunk);
                std::memcpy(checkpoint, memory.h, sizeof(T) * unit.blocks * plan_.depth * W);
            }
            gather_maps<T, IO>(B_, plan_, unit.batch, start, positions, start, memory.B);
            gather_maps<T, IO>(C_, plan_, unit.batch, start, positions, start, memory.C);
            const bool resets = gather_keep<T>(reset_, unit.batch, start, positions, memory.keep);
            const Maps<T> maps{memory.B, memory.C, memory.keep, plan_.map_row(), positions};
            if (plan_.lanes == Lanes::kStates) {
                run_chunk<Lanes::kStates>(unit, chunk, resets, maps, memory);
            } else {
                run_chunk<Lanes::kChannels>(unit, chunk, resets, maps, memory);
            }
        }
        scatter_states<T>(memory.h, plan_, unit, static_cast<T*>(scan_.final_state));
    }

    template <Lanes L>
    void run_chunk(const Unit& unit, Index chunk, bool resets, const Maps<T>& maps, const Memory& memory) const {
        const Prepared<T>& prepared = memory.prepared;
        prepare<L>(unit, chunk * kChunk, maps.positions, memory);
        for (int k = 0; k < unit.blocks; ++k) {
            if (L == Lanes::kChannels) {
                const Index at = k * kChunk * W;
                run_states<L>(k, {prepared.delta + at, prepared.delta_u + at, W, prepared.y + at}, resets, maps,
                              next_chunk(unit, k, chunk, memory), memory);
                continue;
            }
            std::memset(memory.sums, 0, sizeof(T) * maps.positions * W);
            run_states<L>(k, {prepared.delta + k, prepared.delta_u + k, unit.channels, memory.sums}, resets, maps,
                          Ahead<4>(memory.h), memory);
            T added[kChunk];
            sum_vectors<T>(memory.sums, W, maps.positions, added);
            for (int l = 0; l < maps.positions; ++l) prepared.y[l * unit.channels + k] += added[l];
        }
        finish<L>(unit, chunk * kChunk, maps.positions, memory);
    }

    template <Lanes L>
    void run_states(int k, const Line<T>& line, bool resets, const Maps<T>& maps, const Ahead<4>& ahead,
                    const Memory& memory) const {
        const T* decay = memory.decay + k * plan_.depth * W;
        T* h = memory.h + k * plan_.depth * W;
        if (resets) {
            run_tiles<T, kTile, L, true>(decay, h, maps, 0, plan_.depth, line, ahead);
        } else {
            run_tiles<T, kTile, L, false>(decay, h, maps, 0, plan_.depth, line, ahead);
        }
    }

    Ahead<4> next_chunk(const Unit& unit, int k, Index chunk, const Memory& memory) const {
        Ahead<4> ahead(memory.h);
        const Block block = neighbours<T>(unit.batch, unit.channel + k * W, unit.channel + unit.channels);
        if (!block.whole || chunk + 1 == plan_.chunks || plan_.positions(chunk + 1) < kChunk) return ahead;
        const Index row = (chunk + 1) * kChunk;
        ahead.set(0, delta_, unit.batch, row, block.channel);
        ahead.set(1, u_, unit.batch, row, block.channel);
        ahead.set(2, gate_, unit.batch, row, block.channel);
        ahead.set(3, y_, unit.batch, row, block.channel);
        return ahead;
    }

    // Row by row, as the tensors lie in memory: a row is one run, the next row is pages away.
    template <Lanes L>
    void prepare(const Unit& unit, Index start, int positions, const Memory& memory) const {
        const Prepared<T>& to = memory.prepared;
        using Input = Window<T, const IO, L>;
        const Input deltas(delta_, unit, start, memory.lines[0]), us(u_, unit, start, memory.lines[1]),
            gates(gate_, unit, start, memory.lines[2]);
        for (const Input* input : {&deltas, &us, &gates}) input->gather(positions);
        for (int l = 0; l < plan_.lines(positions); ++l) {
            for (int k = 0; k < (L == Lanes::kStates ? 1 : unit.blocks); ++k) {
                const Index at = (k * kChunk + l) * W, parameter = (L == Lanes::kStates ? l : k) * W;
                const Vector<T> raw = deltas.read(l, k) + load(memory.bias + parameter), u = us.read(l, k);
                const Vector<T> delta = scan_.delta_softplus ? softplus<T>(raw) : raw;
                store<T>(to.delta + at, delta);
                store<T>(to.delta_u + at, delta * u);
                store<T>(to.y + at, load(memory.D + parameter) * u);
                if (!gate_.missing()) store<T>(to.gate + at, silu<T>(gates.read(l, k)));
            }
        }
    }

    template <Lanes L>
    void finish(const Unit& unit, Index start, int positions, const Memory& memory) const {
        const Prepared<T>& from = memory.prepared;
        const Window<T, IO, L> ys(y_, unit, start, memory.lines[0]);
        for (int l = 0; l < plan_.lines(positions); ++l) {
            for (int k = 0; k < (L == Lanes::kStates ? 1 : unit.blocks); ++k) {
                const Index at = (k * kChunk + l) * W;
                const Vector<T> y = load(from.y + at);
                ys.write(l, k, gate_.missing() ? y : y * load(from.gate + at));
            }
        }
        ys.scatter(positions);
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
