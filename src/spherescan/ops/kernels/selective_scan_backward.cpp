// The selective scan, backward. With g_t = dL/dy_t silu(gate_t) and a_t = exp(delta'_t A):
//
//   dh_t      = g_t C_t + a_{t+1} dh_{t+1}                 the second term is missing where a document starts at t + 1
//   dC_t      = sum_d g_t h_t                  dB_t = sum_d dh_t delta'_t u_t
//   du_t      = delta'_t <dh_t, B_t> + D g_t
//   ddelta'_t = u_t <dh_t, B_t> + <dh_t a_t h_{t-1}, A>     ddelta_t = ddelta'_t sigmoid(delta_t + delta_bias)
//   dA        = sum_{b,t} dh_t a_t h_{t-1} delta'_t         dD = sum_{b,t} g_t u_t
//   dgate_t   = dL/dy_t silu'(gate_t) (<h_t, C_t> + D u_t)
//
// Chunks are met last to first. Within one, each block of channels computes a_t and h_t again from the checkpoint, a few
// states at a time, and goes back over them at once while they are in the nearest cache. Sums over channels stay in
// lanes until all blocks of the group have been met.
#include "kernels.h"
#include "selective_scan.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

// States per pass: dh and dA of each stay in registers.
constexpr int kTile = SPHERESCAN_VECTOR_BYTES == 64 ? 8 : 4;

// What a block of channels knows of each position: [position][value][lane]. kYGrad: g; kGateFactor: dL/dy silu'(gate);
// kY: <h, C> + D u; kInputGrad: <dh, B>; kDecayGrad: <dh a h_{t-1}, A log2(e)>.
enum Value { kDelta, kU, kSigmoid, kYGrad, kGateFactor, kY, kInputGrad, kDecayGrad, kValues };

template <class T>
struct Prepared {
    T* values;

    T* at(int position, Value value) const { return values + (position * kValues + value) * kWidth<T>; }
    Prepared block(Index index) const { return {values + index * kChunk * kValues * kWidth<T>}; }
};

// What a tile leaves for each position: [position][state of the tile][lane].
template <class T>
struct TileMemory {
    T *h, *decay, *B_grad, *C_grad;  // h has one position more
};

template <class T, int States, bool Packed, bool Resets, bool Gate>
void forward_tile(const T* A, const T* checkpoint, const Maps<T>& maps, Index first_state, const Prepared<T>& block,
                  const TileMemory<T>& memory, const Ahead<4>& ahead, const T* next_checkpoint) {
    constexpr int W = kWidth<T>;
    Vector<T> state[States];
#pragma GCC unroll 16
    for (int n = 0; n < States; ++n) {
        state[n] = load(checkpoint + n * W);
        store<T>(memory.h + n * W, state[n]);
    }
    for (int l = 0; l < maps.positions; ++l) {
        ahead.fetch(l);
        __builtin_prefetch(next_checkpoint + l * W);
        const Vector<T> delta = load(block.at(l, kDelta)), input = delta * load(block.at(l, kU));
        Vector<T> y = Gate ? load(block.at(l, kY)) : splat<T>(T(0));
        const Index map = (l * maps.d_state + first_state) * (Packed ? W : 1);
        const T *B = maps.B + map, *C = maps.C + map;
        T *h = memory.h + (l + 1) * States * W, *decay = memory.decay + l * States * W;
        const Mask<T> mask = Resets ? load_mask(maps.keep + l * W) : Mask<T>{};
#pragma GCC unroll 16
        for (int n = 0; n < States; ++n) {
            const Vector<T> a = exp2(delta * load(A + n * W));
            store<T>(decay + n * W, a);
            if (Resets) state[n] = keep<T>(mask, state[n]);
            state[n] = a * state[n] + input * (Packed ? load(B + n * W) : splat(B[n]));
            store<T>(h + n * W, state[n]);
            if (Gate) y = state[n] * (Packed ? load(C + n * W) : splat(C[n])) + y;
        }
        if (Gate) store<T>(block.at(l, kY), y);
    }
}

template <class T, int States, bool Packed, bool Resets>
void backward_tile(const T* A, T* h_grad, T* A_grad, const Maps<T>& maps, Index first_state, const Prepared<T>& block,
                   const TileMemory<T>& memory, const Ahead<3, true>& ahead) {
    constexpr int W = kWidth<T>;
    Vector<T> dh[States], dA[States];
#pragma GCC unroll 16
    for (int n = 0; n < States; ++n) {
        dh[n] = load(h_grad + n * W);
        dA[n] = load(A_grad + n * W);
    }
    for (int l = maps.positions - 1; l >= 0; --l) {
        ahead.fetch(l);
        const Vector<T> delta = load(block.at(l, kDelta)), g = load(block.at(l, kYGrad));
        const Vector<T> input = delta * load(block.at(l, kU));
        Vector<T> input_grad = load(block.at(l, kInputGrad)), decay_grad = load(block.at(l, kDecayGrad));
        const Index map = (l * maps.d_state + first_state) * (Packed ? W : 1);
        const T *B = maps.B + map, *C = maps.C + map;
        const T *before = memory.h + l * States * W, *after = before + States * W;
        const T* decay = memory.decay + l * States * W;
        T *B_grad = memory.B_grad + l * States * W, *C_grad = memory.C_grad + l * States * W;
        const Mask<T> mask = Resets ? load_mask(maps.keep + l * W) : Mask<T>{};
#pragma GCC unroll 16
        for (int n = 0; n < States; ++n) {
            const Vector<T> grad = g * (Packed ? load(C + n * W) : splat(C[n])) + dh[n];
            store<T>(C_grad + n * W, g * load(after + n * W) + load(C_grad + n * W));
            store<T>(B_grad + n * W, grad * input + load(B_grad + n * W));
            input_grad = grad * (Packed ? load(B + n * W) : splat(B[n])) + input_grad;
            Vector<T> earlier = grad * load(decay + n * W), h = load(before + n * W);
            if (Resets) {
                earlier = keep<T>(mask, earlier);
                h = keep<T>(mask, h);
            }
            dh[n] = earlier;
            const Vector<T> rate_grad = earlier * h;
            decay_grad = rate_grad * load(A + n * W) + decay_grad;
            dA[n] = rate_grad * delta + dA[n];
        }
        store<T>(block.at(l, kInputGrad), input_grad);
        store<T>(block.at(l, kDecayGrad), decay_grad);
    }
#pragma GCC unroll 16
    for (int n = 0; n < States; ++n) {
        store<T>(h_grad + n * W, dh[n]);
        store<T>(A_grad + n * W, dA[n]);
    }
}

template <class IO>
class Backward {
    using T = Compute<IO>;
    static constexpr int W = kWidth<T>;

    // Scratch memory of a task.
    struct Memory {
        T *A, *h_grad, *B, *C, *keep;
        Prepared<T> prepared;
        TileMemory<T> tile;
    };

    // Sums that are not complete yet: of a task, and of a group of channels.
    struct Partial {
        T *A, *D, *bias;  // [task][block][state][lane], [task][block][lane] twice
        T *B, *C;         // [group][batch][position][state]; null with one group, which writes its results itself
    };

  public:
    explicit Backward(const SpherescanScan& scan)
        : scan_(scan), plan_(scan), u_(scan.u), delta_(scan.delta), gate_(scan.gate), B_(scan.B), C_(scan.C),
          y_grad_(scan.y_grad), reset_(scan.reset), u_grad_(scan.u_grad), delta_grad_(scan.delta_grad),
          gate_grad_(scan.gate_grad), B_grad_(scan.B_grad), C_grad_(scan.C_grad) {}

    SpherescanStatus run() const {
        if (scan_.checkpoint_values < plan_.checkpoint_values()) return SPHERESCAN_TOO_SMALL;
        const Index channels = plan_.blocks * W;
        const Index map_sums = plan_.groups > 1 ? plan_.groups * plan_.batch * plan_.length * plan_.d_state : 0;
        T* sums = scratch<T>(Slot::kCall, plan_.tasks * (plan_.states() + 2 * channels) + 2 * map_sums);
        if (sums == nullptr) return SPHERESCAN_OUT_OF_MEMORY;
        Partial partial;
        partial.A = sums;
        partial.D = partial.A + plan_.tasks * plan_.states();
        partial.bias = partial.D + plan_.tasks * channels;
        partial.B = map_sums > 0 ? partial.bias + plan_.tasks * channels : nullptr;
        partial.C = map_sums > 0 ? partial.B + map_sums : nullptr;
        Arena<T> needed(nullptr);
        carve(needed);
        const auto status = for_each_task<T>(plan_.tasks, scan_.threads, needed.used(), [&](Index task, T* scratch) {
            Arena<T> arena(scratch);
            run_task(task, partial, carve(arena));
        });
        if (status != SPHERESCAN_OK) return status;
        return reduce(partial);
    }

  private:
    Memory carve(Arena<T>& arena) const {
        const Index states = plan_.states(), values = plan_.values(), tile = kChunk * kTile * W;
        return {arena.take(states),
                arena.take(states),
                arena.take(plan_.maps()),
                arena.take(plan_.maps()),
                arena.take(kChunk * W),
                {arena.take(kValues * values)},
                {arena.take(tile + kTile * W), arena.take(tile), arena.take(tile), arena.take(tile)}};
    }

    void run_task(Index task, const Partial& partial, const Memory& memory) const {
        const Index group = task / plan_.parts, part = task % plan_.parts;
        const Index first = plan_.rows * part / plan_.parts, last = plan_.rows * (part + 1) / plan_.parts;
        const Index blocks = plan_.blocks_of(group), channels = plan_.blocks * W;
        for (Index k = 0; k < blocks; ++k) {
            gather_decay<T>(scan_.A, plan_, plan_.block(first, group, k), memory.A + k * plan_.d_state * W);
        }
        const Partial mine{partial.A + task * plan_.states(), partial.D + task * channels,
                           partial.bias + task * channels, partial.B, partial.C};
        std::memset(mine.A, 0, sizeof(T) * plan_.states());
        std::memset(mine.D, 0, sizeof(T) * channels);
        std::memset(mine.bias, 0, sizeof(T) * channels);
        for (Index row = first; row < last; ++row) run_unit(row, group, mine, memory);
    }

    // Where a unit is: what its tiles need to know beside their numbers.
    struct Place {
        Index row, group, chunk;
        const Block<T>* blocks;
        int n_blocks;

        Index start() const { return chunk * kChunk; }
    };

    void run_unit(Index row, Index group, const Partial& partial, const Memory& memory) const {
        Block<T> blocks[kMostBlocks<T>];
        const int n_blocks = plan_.fill_blocks(row, group, blocks);
        const Index states = plan_.d_state * W;
        for (int k = 0; k < n_blocks; ++k) {
            gather_states<T>(static_cast<const T*>(scan_.final_state_grad), plan_, blocks[k],
                             memory.h_grad + k * states);
        }
        for (Index chunk = plan_.chunks - 1; chunk >= 0; --chunk) {
            const Place place{row, group, chunk, blocks, n_blocks};
            const int positions = plan_.positions(chunk);
            gather_maps<T, IO>(B_, plan_, blocks[0], place.start(), positions, memory.B);
            gather_maps<T, IO>(C_, plan_, blocks[0], place.start(), positions, memory.C);
            const bool resets = gather_keep<T>(reset_, blocks[0], place.start(), positions, memory.keep);
            const Maps<T> maps{memory.B, memory.C, memory.keep, plan_.d_state, positions};
            if (plan_.packed) {
                run_chunk<true>(place, resets, maps, partial, memory);
            } else {
                run_chunk<false>(place, resets, maps, partial, memory);
            }
        }
        if (scan_.state_grad == nullptr) return;
        for (int k = 0; k < n_blocks; ++k) {
            scatter_states<T>(memory.h_grad + k * states, plan_, blocks[k], static_cast<T*>(scan_.state_grad));
        }
    }

    template <bool Packed>
    void run_chunk(const Place& place, bool resets, const Maps<T>& maps, const Partial& partial,
                   const Memory& memory) const {
        if (gate_.missing()) {
            run_gated_chunk<Packed, false>(place, resets, maps, partial, memory);
        } else {
            run_gated_chunk<Packed, true>(place, resets, maps, partial, memory);
        }
    }

    template <bool Packed, bool Gate>
    void run_gated_chunk(const Place& place, bool resets, const Maps<T>& maps, const Partial& partial,
                         const Memory& memory) const {
        prepare<Packed, Gate>(place, maps.positions, memory.prepared);
        if (resets) {
            run_tiles<kTile, Packed, true, Gate>(place, 0, maps, partial, memory);
        } else {
            run_tiles<kTile, Packed, false, Gate>(place, 0, maps, partial, memory);
        }
        finish<Packed, Gate>(place, maps.positions, memory.prepared, partial);
    }

    // Row by row, see selective_scan_forward.cpp.
    template <bool Packed, bool Gate>
    void prepare(const Place& place, int positions, const Prepared<T>& to) const {
        Vector<T> bias[kMostBlocks<T>], D[kMostBlocks<T>];
        for (int k = 0; k < place.n_blocks; ++k) {
            bias[k] = read_channels<T>(scan_.delta_bias, place.blocks[k]);
            D[k] = read_channels<T>(scan_.D, place.blocks[k]);
        }
        for (int l = 0; l < positions; ++l) {
            const auto line = [&](const Rows<const IO>& rows) {
                return Line<T, const IO, Packed>(rows, place.blocks, place.start() + l);
            };
            const auto deltas = line(delta_), us = line(u_), y_grads = line(y_grad_), gates = line(gate_);
            for (int k = 0; k < place.n_blocks; ++k) {
                const Prepared<T> block = to.block(k);
                const Vector<T> raw = deltas.read(k) + bias[k], u = us.read(k), grad = y_grads.read(k);
                Softplus<T> step{raw, splat<T>(T(1))};
                if (scan_.delta_softplus) step = softplus_with_slope<T>(raw);
                store<T>(block.at(l, kDelta), step.value);
                store<T>(block.at(l, kSigmoid), step.slope);
                store<T>(block.at(l, kU), u);
                store<T>(block.at(l, kInputGrad), splat<T>(T(0)));
                store<T>(block.at(l, kDecayGrad), splat<T>(T(0)));
                if (!Gate) {
                    store<T>(block.at(l, kYGrad), grad);
                    continue;
                }
                const Vector<T> gate = gates.read(k), s = sigmoid<T>(gate), gated = gate * s;
                store<T>(block.at(l, kYGrad), grad * gated);
                store<T>(block.at(l, kGateFactor), grad * (gated * (T(1) - s) + s));
                store<T>(block.at(l, kY), D[k] * u);
            }
        }
    }

    template <int States, bool Packed, bool Resets, bool Gate>
    void run_tiles(const Place& place, Index first, const Maps<T>& maps, const Partial& partial,
                   const Memory& memory) const {
        const T* checkpoint = checkpoint_of(place, place.chunk);
        for (; maps.d_state - first >= States; first += States) {
            const Index sums = maps.positions * States * W;
            std::memset(memory.tile.B_grad, 0, sizeof(T) * sums);
            std::memset(memory.tile.C_grad, 0, sizeof(T) * sums);
            for (int k = 0; k < place.n_blocks; ++k) {
                const Index at = (k * maps.d_state + first) * W;
                const Prepared<T> block = memory.prepared.block(k);
                forward_tile<T, States, Packed, Resets, Gate>(memory.A + at, checkpoint + at, maps, first, block,
                                                              memory.tile, next_inputs(place, k, first, memory),
                                                              next_checkpoint(place, k) + first * W);
                backward_tile<T, States, Packed, Resets>(memory.A + at, memory.h_grad + at, partial.A + at, maps, first,
                                                         block, memory.tile, next_outputs(place, k, first, memory));
            }
            add_maps<States, Packed>(place, first, maps.positions, partial, memory);
        }
        if constexpr (States > 1) {
            run_tiles<States / 2, Packed, Resets, Gate>(place, first, maps, partial, memory);
        }
    }

    const T* checkpoint_of(const Place& place, Index chunk) const {
        return plan_.checkpoint(scan_.checkpoints, place.row, place.group, chunk);
    }

    // Of the block that follows: in this chunk, or the first one in the chunk that is met next.
    const T* next_checkpoint(const Place& place, int k) const {
        if (k + 1 < place.n_blocks) return checkpoint_of(place, place.chunk) + (k + 1) * plan_.d_state * W;
        return checkpoint_of(place, place.chunk > 0 ? place.chunk - 1 : 0);
    }

    // The rows that the next chunk reads.
    Ahead<4> next_inputs(const Place& place, int k, Index first_state, const Memory& memory) const {
        Ahead<4> ahead(memory.A);
        const Block<T>& block = place.blocks[k];
        if (!block.whole || place.chunk == 0 || first_state > 0) return ahead;
        const Index batch = block.batch[0], row = (place.chunk - 1) * kChunk, channel = block.channel[0];
        ahead.set(0, delta_, batch, row, channel);
        ahead.set(1, u_, batch, row, channel);
        ahead.set(2, y_grad_, batch, row, channel);
        ahead.set(3, gate_, batch, row, channel);
        return ahead;
    }

    // The rows that this chunk is about to write.
    Ahead<3, true> next_outputs(const Place& place, int k, Index first_state, const Memory& memory) const {
        Ahead<3, true> ahead(memory.A);
        const Block<T>& block = place.blocks[k];
        if (!block.whole || first_state > 0) return ahead;
        const Index batch = block.batch[0], channel = block.channel[0];
        ahead.set(0, u_grad_, batch, place.start(), channel);
        ahead.set(1, delta_grad_, batch, place.start(), channel);
        ahead.set(2, gate_grad_, batch, place.start(), channel);
        return ahead;
    }

    // Sum the lanes of dB and dC; lanes of one batch row when several share the vector.
    template <int States, bool Packed>
    void add_maps(const Place& place, Index first, int positions, const Partial& partial, const Memory& memory) const {
        const Block<T>& block = place.blocks[0];
        for (int l = 0; l < positions; ++l) {
            for (int n = 0; n < States; ++n) {
                const T* B_lanes = memory.tile.B_grad + (l * States + n) * W;
                const T* C_lanes = memory.tile.C_grad + (l * States + n) * W;
                if (!Packed) {
                    put_maps(place.group, place.row, place.start() + l, first + n, sum_lanes(B_lanes),
                             sum_lanes(C_lanes), partial);
                    continue;
                }
                for (int i = 0; i < block.lanes; i += static_cast<int>(plan_.d_inner)) {
                    T B = T(0), C = T(0);
                    for (int d = 0; d < plan_.d_inner; ++d) {
                        B += B_lanes[i + d];
                        C += C_lanes[i + d];
                    }
                    put_maps(0, block.batch[i], place.start() + l, first + n, B, C, partial);
                }
            }
        }
    }

    void put_maps(Index group, Index batch, Index position, Index n, T B, T C, const Partial& partial) const {
        if (partial.B == nullptr) {
            write_one(B_grad_.at(batch, position, n), B);
            write_one(C_grad_.at(batch, position, n), C);
            return;
        }
        const Index at = ((group * plan_.batch + batch) * plan_.length + position) * plan_.d_state + n;
        partial.B[at] = B;
        partial.C[at] = C;
    }

    template <bool Packed, bool Gate>
    void finish(const Place& place, int positions, const Prepared<T>& prepared, const Partial& partial) const {
        Vector<T> D[kMostBlocks<T>], dD[kMostBlocks<T>], dbias[kMostBlocks<T>];
        for (int k = 0; k < place.n_blocks; ++k) {
            D[k] = read_channels<T>(scan_.D, place.blocks[k]);
            dD[k] = load(partial.D + k * W);
            dbias[k] = load(partial.bias + k * W);
        }
        for (int l = 0; l < positions; ++l) {
            const auto line = [&](const Rows<IO>& rows) {
                return Line<T, IO, Packed>(rows, place.blocks, place.start() + l);
            };
            const auto u_line = line(u_grad_), delta_line = line(delta_grad_), gate_line = line(gate_grad_);
            for (int k = 0; k < place.n_blocks; ++k) {
                const auto value = [&](Value which) { return load(prepared.block(k).at(l, which)); };
                const Vector<T> u = value(kU), g = value(kYGrad), input_grad = value(kInputGrad);
                u_line.write(k, input_grad * value(kDelta) + g * D[k]);
                const Vector<T> delta_grad = (input_grad * u + value(kDecayGrad) * T(kLn2)) * value(kSigmoid);
                delta_line.write(k, delta_grad);
                if (Gate) gate_line.write(k, value(kGateFactor) * value(kY));
                dD[k] = g * u + dD[k];
                dbias[k] = dbias[k] + delta_grad;
            }
        }
        for (int k = 0; k < place.n_blocks; ++k) {
            store<T>(partial.D + k * W, dD[k]);
            store<T>(partial.bias + k * W, dbias[k]);
        }
    }

    SpherescanStatus reduce(const Partial& partial) const {
        const Index blocks = plan_.groups * plan_.blocks;
        auto status = for_each_task<T>(blocks, scan_.threads, plan_.d_state * W, [&](Index task, T* memory) {
            reduce_parameters(task / plan_.blocks, task % plan_.blocks, partial, memory);
        });
        if (status != SPHERESCAN_OK || partial.B == nullptr) return status;
        constexpr Index stretch = 64;
        const Index stretches = ceil_div(plan_.length, stretch);
        return for_each_task<T>(plan_.batch * stretches, scan_.threads, 1, [&](Index task, T*) {
            const Index batch = task / stretches, start = task % stretches * stretch;
            const Index end = start + stretch < plan_.length ? start + stretch : plan_.length;
            for (Index l = start; l < end; ++l) reduce_maps(batch, l, partial);
        });
    }

    // Sum one block of channels over the parts of its group, in order.
    void reduce_parameters(Index group, Index k, const Partial& partial, T* memory) const {
        if (k >= plan_.blocks_of(group)) return;
        const Index states = plan_.d_state * W, channels = plan_.blocks * W;
        Vector<T> D = splat<T>(T(0)), bias = splat<T>(T(0));
        std::memset(memory, 0, sizeof(T) * states);
        for (Index task = group * plan_.parts; task < (group + 1) * plan_.parts; ++task) {
            D = D + load(partial.D + task * channels + k * W);
            bias = bias + load(partial.bias + task * channels + k * W);
            const T* A = partial.A + task * plan_.states() + k * states;
            for (Index i = 0; i < states; i += W) store<T>(memory + i, load(memory + i) + load(A + i));
        }
        const Block<T> block = plan_.block(0, group, k);
        T D_lanes[W], bias_lanes[W];
        store<T>(D_lanes, D);
        store<T>(bias_lanes, bias);
        for (int i = 0; i < block.lanes; ++i) {
            const Index channel = block.channel[i];
            const bool first = i == channel - block.channel[0];  // packed lanes repeat the channels
            add(static_cast<T*>(scan_.D_grad) + channel, D_lanes[i], first);
            if (scan_.delta_bias_grad != nullptr) {
                add(static_cast<T*>(scan_.delta_bias_grad) + channel, bias_lanes[i], first);
            }
            T* A = static_cast<T*>(scan_.A_grad) + channel * plan_.d_state;
            for (Index n = 0; n < plan_.d_state; ++n) add(A + n, memory[n * W + i], first);
        }
    }

    static void add(T* to, T value, bool first) { *to = first ? value : *to + value; }

    void reduce_maps(Index batch, Index position, const Partial& partial) const {
        const Index N = plan_.d_state, group_size = plan_.batch * plan_.length * N;
        const Index at = (batch * plan_.length + position) * N;
        for (Index n = 0; n < N; ++n) {
            T B = T(0), C = T(0);
            for (Index group = 0; group < plan_.groups; ++group) {
                B += partial.B[group * group_size + at + n];
                C += partial.C[group * group_size + at + n];
            }
            write_one(B_grad_.at(batch, position, n), B);
            write_one(C_grad_.at(batch, position, n), C);
        }
    }

    const SpherescanScan& scan_;
    const Plan<T> plan_;
    const Rows<const IO> u_, delta_, gate_, B_, C_, y_grad_;
    const Rows<const unsigned char> reset_;
    const Rows<IO> u_grad_, delta_grad_, gate_grad_, B_grad_, C_grad_;
};

}  // namespace

SpherescanStatus selective_scan_backward(const SpherescanScan& scan) {
    switch (scan.type) {
        case SPHERESCAN_FLOAT32:
            return Backward<float>(scan).run();
        case SPHERESCAN_BFLOAT16:
            return Backward<BFloat16>(scan).run();
        default:
            return Backward<double>(scan).run();
    }
}

}  // namespace spherescan::SPHERESCAN_LEVEL
