// The selective scan, backward. With g_t = dL/dy_t silu(gate_t) and a_t = exp(delta'_t A):
//
//   dh_t      = g_t C_t + a_{t+1} dh_{t+1}                 the second term is missing where a document starts at t + 1
//   dC_t      = sum_d g_t h_t                  dB_t = sum_d dh_t delta'_t u_t
//   du_t      = delta'_t <dh_t, B_t> + D g_t
//   ddelta'_t = u_t <dh_t, B_t> + <dh_t a_t h_{t-1}, A>     ddelta_t = ddelta'_t sigmoid(delta_t + delta_bias)
//   dA        = sum_{b,t} dh_t a_t h_{t-1} delta'_t         dD = sum_{b,t} g_t u_t
//   dgate_t   = dL/dy_t silu'(gate_t) (<h_t, C_t> + D u_t)
//
// Chunks are met last to first. Within one, each block computes a_t and h_t again from the checkpoint, a few vectors of
// states at a time, and goes back over them at once while they are in the nearest cache. Sums over lanes are taken when all
// their terms are there: over channels when all blocks of the unit have been met, over states at the end of the chunk.
#include "kernels.h"
#include "selective_scan.h"

namespace spherescan::SPHERESCAN_LEVEL {
namespace {

// Vectors of states per pass: dh and dA of each stay in registers.
constexpr int kTile = SPHERESCAN_VECTOR_BYTES == 64 ? 8 : 4;

// What is known of each channel and position. kYGrad: g; kGateFactor: dL/dy silu'(gate); kY: <h, C> + D u; kInputGrad:
// <dh, B>; kDecayGrad: <dh a h_{t-1}, A log2(e)>. The last three are sums over states.
enum Value { kDelta, kU, kSigmoid, kYGrad, kGateFactor, kY, kInputGrad, kDecayGrad, kValues };
constexpr int kSums = kValues - kY;

// The values of a block of channels as [line][value][lane], or of single channels as [value][line][lane].
template <class T, Lanes L>
struct Prepared {
    T* values;
    Index size;  // of one value, where lines span positions

    T* at(Index line, Value value) const {
        if (L == Lanes::kStates) return values + value * size + line * kWidth<T>;
        return values + (line * kValues + value) * kWidth<T>;
    }
    Prepared block(Index k) const { return {values + (L == Lanes::kStates ? 0 : k * kChunk * kValues * kWidth<T>), size}; }
};

// What a tile meets of one block: vectors of channels, or the numbers of one channel, and the sums over states of its lanes.
template <class T, Lanes L>
struct Strip {
    Prepared<T, L> prepared;
    Index channel, channels;  // where states are in lanes
    T* sums;                  // [position][sum][lane] there

    Vector<T> value(int position, Value value) const {
        if (L == Lanes::kChannels) return load(prepared.at(position, value));
        return splat(prepared.values[value * prepared.size + position * channels + channel]);
    }
    T* sum(int position, Value value) const {
        if (L == Lanes::kChannels) return prepared.at(position, value);
        return sums + (position * kSums + value - kY) * kWidth<T>;
    }
};

// What a tile leaves for each position: [position][vector of states][lane].
template <class T>
struct TileMemory {
    T *h, *decay, *B_grad, *C_grad;  // h has one position more
};

template <class T, int States, Lanes L, bool Resets, bool Gate>
void forward_tile(const T* A, const T* checkpoint, const Maps<T> maps, Index first, const Strip<T, L> strip,
                  const TileMemory<T> memory, const Ahead<4> ahead, const T* next_checkpoint) {
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
        const Vector<T> delta = strip.value(l, kDelta), input = delta * strip.value(l, kU);
        Vector<T> y = Gate ? load(strip.sum(l, kY)) : splat<T>(T(0));
        const Index at = l * maps.row + first * (L == Lanes::kStates ? W : 1);
        const T *B = maps.B + at, *C = maps.C + at;
        T *h = memory.h + (l + 1) * States * W, *decay = memory.decay + l * States * W;
        const Mask<T> mask = Resets ? load_mask(maps.keep + l * W) : Mask<T>{};
#pragma GCC unroll 16
        for (int n = 0; n < States; ++n) {
            const Vector<T> a = exp2(delta * load(A + n * W));
            store<T>(decay + n * W, a);
            if (Resets) state[n] = keep<T>(mask, state[n]);
            state[n] = a * state[n] + input * map<L>(B, n);
            store<T>(h + n * W, state[n]);
            if (Gate) y = state[n] * map<L>(C, n) + y;
        }
        if (Gate) store<T>(strip.sum(l, kY), y);
    }
}

template <class T, int States, Lanes L, bool Resets>
void backward_tile(const T* A, T* h_grad, T* A_grad, const Maps<T> maps, Index first, const Strip<T, L> strip,
                   const TileMemory<T> memory, const Ahead<3, true> ahead) {
    constexpr int W = kWidth<T>;
    Vector<T> dh[States], dA[States];
#pragma GCC unroll 16
    for (int n = 0; n < States; ++n) {
        dh[n] = load(h_grad + n * W);
        dA[n] = load(A_grad + n * W);
    }
    for (int l = maps.positions - 1; l >= 0; --l) {
        ahead.fetch(l);
        const Vector<T> delta = strip.value(l, kDelta), g = strip.value(l, kYGrad);
        const Vector<T> input = delta * strip.value(l, kU);
        Vector<T> input_grad = load(strip.sum(l, kInputGrad)), decay_grad = load(strip.sum(l, kDecayGrad));
        const Index at = l * maps.row + first * (L == Lanes::kStates ? W : 1);
        const T *B = maps.B + at, *C = maps.C + at;
        const T *before = memory.h + l * States * W, *after = before + States * W;
        const T* decay = memory.decay + l * States * W;
        T *B_grad = memory.B_grad + l * States * W, *C_grad = memory.C_grad + l * States * W;
        const Mask<T> mask = Resets ? load_mask(maps.keep + l * W) : Mask<T>{};
#pragma GCC unroll 16
        for (int n = 0; n < States; ++n) {
            const Vector<T> grad = g * map<L>(C, n) + dh[n];
            store<T>(C_grad + n * W, g * load(after + n * W) + load(C_grad + n * W));
            store<T>(B_grad + n * W, grad * input + load(B_grad + n * W));
            input_grad = grad * map<L>(B, n) + input_grad;
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
        store<T>(strip.sum(l, kInputGrad), input_grad);
        store<T>(strip.sum(l, kDecayGrad), decay_grad);
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
        T *A, *h_grad, *B, *C, *keep, *bias, *D, *values;
        TileMemory<T> tile;
        T *lines[4], *sums;  // where states are in lanes; a chunk of sums for each channel
    };

    // Sums that are not complete yet: of a task, and of a group of channels.
    struct Partial {
        T *A, *D, *bias;  // [task][block][vector of states][lane], [task][parameter] twice
        T *B, *C;         // [group][batch][position][state]; null with one group, which writes its results itself
    };

  public:
    explicit Backward(const SpherescanScan& scan)
        : scan_(scan), plan_(scan), u_(scan.u), delta_(scan.delta), gate_(scan.gate), B_(scan.B), C_(scan.C),
          y_grad_(scan.y_grad), reset_(scan.reset), u_grad_(scan.u_grad), delta_grad_(scan.delta_grad),
          gate_grad_(scan.gate_grad), B_grad_(scan.B_grad), C_grad_(scan.C_grad) {}

    SpherescanStatus run() const {
        if (scan_.checkpoint_values < plan_.checkpoint_values()) return SPHERESCAN_TOO_SMALL;
        const Index parameters = plan_.parameters();
        const Index map_sums = plan_.groups > 1 ? plan_.groups * plan_.batch * plan_.length * plan_.d_state : 0;
        T* sums = scratch<T>(Slot::kCall, plan_.tasks * (plan_.states() + 2 * parameters) + 2 * map_sums);
        if (sums == nullptr) return SPHERESCAN_OUT_OF_MEMORY;
        Partial partial;
        partial.A = sums;
        partial.D = partial.A + plan_.tasks * plan_.states();
        partial.bias = partial.D + plan_.tasks * parameters;
        partial.B = map_sums > 0 ? partial.bias + plan_.tasks * parameters : nullptr;
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
        const Index states = plan_.states(), values = plan_.values(), parameters = plan_.parameters();
        const Index tile = kChunk * kTile * W, lines = plan_.lanes == Lanes::kStates ? values : 0;
        return {arena.take(states),
                arena.take(states),
                arena.take(plan_.maps()),
                arena.take(plan_.maps()),
                arena.take(kChunk * W),
                arena.take(parameters),
                arena.take(parameters),
                arena.take(kValues * values),
                {arena.take(tile + kTile * W), arena.take(tile), arena.take(tile), arena.take(tile)},
                {arena.take(lines), arena.take(lines), arena.take(lines), arena.take(lines)},
                arena.take(kSums * W * lines)};
    }

    void run_task(Index task, const Partial& partial, const Memory& memory) const {
        const Index group = task / plan_.parts, part = task % plan_.parts;
        const Index first = plan_.batch * part / plan_.parts, last = plan_.batch * (part + 1) / plan_.parts;
        const Index parameters = plan_.parameters();
        const Unit some = plan_.unit(first, group);
        gather_decay<T>(scan_.A, plan_, some, memory.A);
        gather_parameter<T>(scan_.delta_bias, plan_, some, memory.bias);
        gather_parameter<T>(scan_.D, plan_, some, memory.D);
        const Partial mine{partial.A + task * plan_.states(), partial.D + task * parameters,
                           partial.bias + task * parameters, partial.B, partial.C};
        std::memset(mine.A, 0, sizeof(T) * plan_.states());
        std::memset(mine.D, 0, sizeof(T) * parameters);
        std::memset(mine.bias, 0, sizeof(T) * parameters);
        for (Index batch = first; batch < last; ++batch) run_unit(plan_.unit(batch, group), mine, memory);
    }

    // A chunk of a unit: what its tiles need to know beside their numbers.
    struct Place {
        const Unit& unit;
        Index chunk;
        int positions;

        Index start() const { return chunk * kChunk; }
    };

    void run_unit(const Unit& unit, const Partial& partial, const Memory& memory) const {
        gather_states<T>(static_cast<const T*>(scan_.final_state_grad), plan_, unit, memory.h_grad);
        for (Index chunk = plan_.chunks - 1; chunk >= 0; --chunk) {
            const Place place{unit, chunk, plan_.positions(chunk)};
            const Index next = chunk > 0 ? place.start() - kChunk : place.start();
            gather_maps<T, IO>(B_, plan_, unit.batch, place.start(), place.positions, next, memory.B);
            gather_maps<T, IO>(C_, plan_, unit.batch, place.start(), place.positions, next, memory.C);
            const bool resets = gather_keep<T>(reset_, unit.batch, place.start(), place.positions, memory.keep);
            const Maps<T> maps{memory.B, memory.C, memory.keep, plan_.map_row(), place.positions};
            if (plan_.lanes == Lanes::kStates) {
                run_chunk<Lanes::kStates>(place, resets, maps, partial, memory);
            } else {
                run_chunk<Lanes::kChannels>(place, resets, maps, partial, memory);
            }
        }
        if (scan_.state_grad == nullptr) return;
        scatter_states<T>(memory.h_grad, plan_, unit, static_cast<T*>(scan_.state_grad));
    }

    template <Lanes L>
    void run_chunk(const Place& place, bool resets, const Maps<T>& maps, const Partial& partial,
                   const Memory& memory) const {
        if (gate_.missing()) {
            run_gated_chunk<L, false>(place, resets, maps, partial, memory);
        } else {
            run_gated_chunk<L, true>(place, resets, maps, partial, memory);
        }
    }

    template <Lanes L, bool Gate>
    void run_gated_chunk(const Place& place, bool resets, const Maps<T>& maps, const Partial& partial,
                         const Memory& memory) const {
        prepare<L, Gate>(place, memory);
        if (resets) {
            run_tiles<kTile, L, true, Gate>(place, 0, maps, partial, memory);
        } else {
            run_tiles<kTile, L, false, Gate>(place, 0, maps, partial, memory);
        }
        if (L == Lanes::kStates) add_sums<Gate>(place, memory);
        finish<L, Gate>(place, memory, partial);
    }

    template <Lanes L>
    Prepared<T, L> prepared(const Memory& memory) const {
        return {memory.values, plan_.values()};
    }

    template <Lanes L>
    Strip<T, L> strip(const Place& place, int k, const Memory& memory) const {
        return {prepared<L>(memory).block(k), k, place.unit.channels, memory.sums + k * kChunk * kSums * W};
    }

    // Row by row, see selective_scan_forward.cpp.
    template <Lanes L, bool Gate>
    void prepare(const Place& place, const Memory& memory) const {
        const auto window = [&](const Rows<const IO>& rows, int index) {
            return Window<T, const IO, L>(rows, place.unit, place.start(), memory.lines[index]);
        };
        const auto deltas = window(delta_, 0), us = window(u_, 1), y_grads = window(y_grad_, 2), gates = window(gate_, 3);
        for (const auto* input : {&deltas, &us, &y_grads, &gates}) input->gather(place.positions);
        for (int l = 0; l < plan_.lines(place.positions); ++l) {
            for (int k = 0; k < (L == Lanes::kStates ? 1 : place.unit.blocks); ++k) {
                const Prepared<T, L> block = prepared<L>(memory).block(k);
                const Index parameter = (L == Lanes::kStates ? l : k) * W;
                const Vector<T> raw = deltas.read(l, k) + load(memory.bias + parameter);
                const Vector<T> u = us.read(l, k), grad = y_grads.read(l, k);
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
                const Vector<T> gate = gates.read(l, k), s = sigmoid<T>(gate), gated = gate * s;
                store<T>(block.at(l, kYGrad), grad * gated);
                store<T>(block.at(l, kGateFactor), grad * (gated * (T(1) - s) + s));
                store<T>(block.at(l, kY), load(memory.D + parameter) * u);
            }
        }
        if (L == Lanes::kChannels) return;
        for (int k = 0; k < place.unit.blocks; ++k) {
            std::memset(strip<L>(place, k, memory).sums, 0, sizeof(T) * place.positions * kSums * W);
        }
    }

    template <int States, Lanes L, bool Resets, bool Gate>
    void run_tiles(const Place& place, Index first, const Maps<T>& maps, const Partial& partial,
                   const Memory& memory) const {
        const T* checkpoint = checkpoint_of(place, place.chunk);
        for (; plan_.depth - first >= States; first += States) {
            const Index sums = maps.positions * States * W;
            std::memset(memory.tile.B_grad, 0, sizeof(T) * sums);
            std::memset(memory.tile.C_grad, 0, sizeof(T) * sums);
            for (int k = 0; k < place.unit.blocks; ++k) {
                const Index at = (k * plan_.depth + first) * W;
                const Strip<T, L> mine = strip<L>(place, k, memory);
                forward_tile<T, States, L, Resets, Gate>(memory.A + at, checkpoint + at, maps, first, mine, memory.tile,
                                                         next_inputs<L>(place, k, first, memory),
                                                         next_checkpoint(place, k) + first * W);
                backward_tile<T, States, L, Resets>(memory.A + at, memory.h_grad + at, partial.A + at, maps, first, mine,
                                                    memory.tile, next_outputs<L>(place, k, first, memory));
            }
            if (L == Lanes::kStates || partial.B == nullptr) {
                put_maps<States, L>(memory.tile.B_grad, B_grad_, place, first);
                put_maps<States, L>(memory.tile.C_grad, C_grad_, place, first);
            } else if constexpr (L == Lanes::kChannels) {
                put_maps<States, L>(memory.tile.B_grad, sums_of(partial.B, place.unit.group), place, first);
                put_maps<States, L>(memory.tile.C_grad, sums_of(partial.C, place.unit.group), place, first);
            }
        }
        if constexpr (States > 1) run_tiles<States / 2, L, Resets, Gate>(place, first, maps, partial, memory);
    }

    const T* checkpoint_of(const Place& place, Index chunk) const {
        return plan_.checkpoint(scan_.checkpoints, place.unit, chunk);
    }

    // Of the block that follows: in this chunk, or the first one in the chunk that is met next.
    const T* next_checkpoint(const Place& place, int k) const {
        if (k + 1 < place.unit.blocks) return checkpoint_of(place, place.chunk) + (k + 1) * plan_.depth * W;
        return checkpoint_of(place, place.chunk > 0 ? place.chunk - 1 : 0);
    }

    // The rows that the next chunk reads.
    template <Lanes L>
    Ahead<4> next_inputs(const Place& place, int k, Index first, const Memory& memory) const {
        Ahead<4> ahead(memory.A);
        const Unit& unit = place.unit;
        const Block block = neighbours<T>(unit.batch, unit.channel + k * W, unit.channel + unit.channels);
        if (L == Lanes::kStates || !block.whole || place.chunk == 0 || first > 0) return ahead;
        const Index row = (place.chunk - 1) * kChunk;
        ahead.set(0, delta_, unit.batch, row, block.channel);
        ahead.set(1, u_, unit.batch, row, block.channel);
        ahead.set(2, y_grad_, unit.batch, row, block.channel);
        ahead.set(3, gate_, unit.batch, row, block.channel);
        return ahead;
    }

    // The rows that this chunk is about to write.
    template <Lanes L>
    Ahead<3, true> next_outputs(const Place& place, int k, Index first, const Memory& memory) const {
        Ahead<3, true> ahead(memory.A);
        const Unit& unit = place.unit;
        const Block block = neighbours<T>(unit.batch, unit.channel + k * W, unit.channel + unit.channels);
        if (L == Lanes::kStates || !block.whole || first > 0) return ahead;
        ahead.set(0, u_grad_, unit.batch, place.start(), block.channel);
        ahead.set(1, delta_grad_, unit.batch, place.start(), block.channel);
        ahead.set(2, gate_grad_, unit.batch, place.start(), block.channel);
        return ahead;
    }

    // dB or dC of a group: [batch][position][state].
    Rows<T> sums_of(T* sums, Index group) const {
        const Index row = plan_.d_state, batch = plan_.length * row;
        return {sums + group * plan_.batch * batch, batch, row};
    }

    // dB or dC of a tile: the sums over channels in lanes, or the lanes themselves.
    template <int States, Lanes L, class Out>
    void put_maps(const T* from, const Rows<Out>& to, const Place& place, Index first) const {
        if (L == Lanes::kChannels) {
            T sums[kChunk * States];
            sum_vectors<T>(from, W, place.positions * States, sums);
            for (int l = 0; l < place.positions; ++l) {
                Out* out = to.at(place.unit.batch, place.start() + l, first);
                for (int n = 0; n < States; ++n) write_one(out + n, sums[l * States + n]);
            }
            return;
        }
        for (int l = 0; l < place.positions; ++l) {
            Out* out = to.at(place.unit.batch, place.start() + l, 0);
            for (int n = 0; n < States; ++n, from += W) {
                const Block states = neighbours<T>(0, (first + n) * W, plan_.d_state);
                write_lanes<T>(out + states.channel, states.lanes, load(from));
            }
        }
    }

    // The sums over the states in lanes join the other values.
    template <bool Gate>
    void add_sums(const Place& place, const Memory& memory) const {
        const auto values = prepared<Lanes::kStates>(memory);
        const Index channels = place.unit.channels;
        for (int k = 0; k < place.unit.blocks; ++k) {
            const auto mine = strip<Lanes::kStates>(place, k, memory);
            for (Value which : {kY, kInputGrad, kDecayGrad}) {
                if (which == kY && !Gate) continue;
                T added[kChunk];
                sum_vectors<T>(mine.sum(0, which), kSums * W, place.positions, added);
                T* to = values.at(0, which) + k;
                for (int l = 0; l < place.positions; ++l) to[l * channels] += added[l];
            }
        }
    }

    template <Lanes L, bool Gate>
    void finish(const Place& place, const Memory& memory, const Partial& partial) const {
        const auto window = [&](const Rows<IO>& rows, int index) {
            return Window<T, IO, L>(rows, place.unit, place.start(), memory.lines[index]);
        };
        const auto u_grads = window(u_grad_, 0), delta_grads = window(delta_grad_, 1), gate_grads = window(gate_grad_, 2);
        for (int l = 0; l < plan_.lines(place.positions); ++l) {
            for (int k = 0; k < (L == Lanes::kStates ? 1 : place.unit.blocks); ++k) {
                const Prepared<T, L> block = prepared<L>(memory).block(k);
                const Index parameter = (L == Lanes::kStates ? l : k) * W;
                const auto value = [&](Value which) { return load(block.at(l, which)); };
                const Vector<T> u = value(kU), g = value(kYGrad), input_grad = value(kInputGrad);
                u_grads.write(l, k, input_grad * value(kDelta) + g * load(memory.D + parameter));
                const Vector<T> delta_grad = (input_grad * u + value(kDecayGrad) * T(kLn2)) * value(kSigmoid);
                delta_grads.write(l, k, delta_grad);
                if (Gate) gate_grads.write(l, k, value(kGateFactor) * value(kY));
                store<T>(partial.D + parameter, g * u + load(partial.D + parameter));
                store<T>(partial.bias + parameter, delta_grad + load(partial.bias + parameter));
            }
        }
        for (const auto* output : {&u_grads, &delta_grads, &gate_grads}) output->scatter(place.positions);
    }

    SpherescanStatus reduce(const Partial& partial) const {
        const auto status = for_each_task<T>(plan_.groups * plan_.blocks, scan_.threads, plan_.depth * W,
                                             [&](Index task, T* memory) {
            reduce_parameters(plan_.unit(0, task / plan_.blocks), task % plan_.blocks, partial, memory);
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

    // Sum one block over the parts of its group, in order.
    void reduce_parameters(const Unit& unit, Index k, const Partial& partial, T* memory) const {
        if (k >= unit.blocks) return;
        const Index size = plan_.depth * W;
        std::memset(memory, 0, sizeof(T) * size);
        for (Index task = unit.group * plan_.parts; task < (unit.group + 1) * plan_.parts; ++task) {
            const T* A = partial.A + task * plan_.states() + k * size;
            for (Index i = 0; i < size; i += W) store<T>(memory + i, load(memory + i) + load(A + i));
        }
        Unit mine = unit;
        mine.blocks = 1;
        const Index first = plan_.lanes == Lanes::kStates ? k : k * W;
        const Index rest = unit.channels - first, most = plan_.lanes == Lanes::kStates ? 1 : W;
        mine.channel += first;
        mine.channels = rest < most ? rest : most;
        scatter_states<T>(memory, plan_, mine, static_cast<T*>(scan_.A_grad));
        for (Index d = first; d < first + mine.channels; ++d) {
            add_parameter(partial.D, unit, d, static_cast<T*>(scan_.D_grad));
            if (scan_.delta_bias_grad != nullptr) {
                add_parameter(partial.bias, unit, d, static_cast<T*>(scan_.delta_bias_grad));
            }
        }
    }

    // The sum of a parameter's gradient over parts, and over positions where it is repeated for them.
    void add_parameter(const T* sums, const Unit& unit, Index channel, T* to) const {
        T total = T(0);
        for (Index task = unit.group * plan_.parts; task < (unit.group + 1) * plan_.parts; ++task) {
            const T* own = sums + task * plan_.parameters();
            const Index end = plan_.lanes == Lanes::kStates ? plan_.parameters() : channel + 1;
            for (Index i = channel; i < end; i += unit.channels) total += own[i];
        }
        to[unit.channel + channel] = total;
    }

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
