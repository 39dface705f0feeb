// What the forward and the backward scan share: how the work is cut, and what is computed before the states are met.
//
//   lanes     of a vector hold channels: then B and C are one number for all lanes. Where there are few channels and many
//             states they hold states of one channel: then delta and u are one number for all lanes
//   block     what a vector holds of the channels: as many as it has lanes, or one
//   unit      what one pass over time covers: some blocks of one batch row
//   task      the units of one group of channels for a range of batch rows: one thread, one partial sum of the parameter
//             gradients
//   chunk     kChunk positions; h at the start of each chunk is kept for the backward pass, which computes the rest again
//   tile      vectors of states whose values stay in registers for a chunk
//
// Within a unit, h lies as [block][vector of states][lane]: of a block of channels a vector for each state, of a single
// channel as many as its states fill.
#pragma once

#include "exp.h"
#include "parallel.h"
#include "rows.h"

namespace spherescan::SPHERESCAN_LEVEL {

constexpr int kChunk = SPHERESCAN_CHUNK;

// Channels of a unit: enough to share the maps B and C, few enough that the states of a chunk stay in the cache.
constexpr Index kMostChannels = 256, kFewestChannels = 64, kMostStates = 16384;

// Fewer tasks than this leave cores idle; more only cost time and memory for partial sums, and so do tasks of a few
// elements or positions.
constexpr Index kEnoughTasks = 8, kMostTasks = 256, kTaskElements = 8192, kTaskPositions = 16;

enum class Lanes { kChannels, kStates };

// B and C of a chunk, and where documents start in it.
template <class T>
struct Maps {
    const T *B, *C;  // [position][state]
    const T* keep;   // [position] masks
    Index row;       // values from one position to the next
    int positions;
};

// B or C of a vector of states: one number for all channels, or a number for each state.
template <Lanes L, class T>
SPHERESCAN_INLINE Vector<T> map(const T* from, int n) {
    return L == Lanes::kStates ? load(from + n * kWidth<T>) : splat(from[n]);
}

// Some blocks of one batch row: `channels` neighbours from `channel` on.
struct Unit {
    Index batch, group, channel, channels;
    int blocks;
};

template <class T>
struct Plan {
    Index batch, length, d_inner, d_state;
    Lanes lanes;
    Index depth;           // vectors of states of a block
    Index groups, blocks;  // groups of channels; blocks of each
    Index parts, tasks;    // ranges of batch rows; parts * groups
    Index chunks;

    explicit Plan(const SpherescanScan& scan)
        : batch(scan.batch), length(scan.length), d_inner(scan.d_inner), d_state(scan.d_state) {
        constexpr Index width = kWidth<T>;
        depth = ceil_div(d_state, width);
        lanes = d_inner < width && d_inner * depth <= d_state ? Lanes::kStates : Lanes::kChannels;
        Index channels = kMostChannels;
        while (channels > kFewestChannels &&
               (channels * d_state > kMostStates || batch * ceil_div(d_inner, channels) < kEnoughTasks)) {
            channels /= 2;
        }
        groups = ceil_div(d_inner, channels);
        blocks = channels < d_inner ? channels : d_inner;
        if (lanes == Lanes::kChannels) {
            depth = d_state;
            blocks = ceil_div(blocks, width);
        }
        const Index positions = batch * length;
        parts = batch;
        for (Index most : {kMostTasks / groups, positions * d_inner * d_state / groups / kTaskElements,
                           positions / kTaskPositions}) {
            parts = most < parts ? most : parts;
        }
        parts = parts < 1 ? 1 : parts;
        tasks = parts * groups;
        chunks = ceil_div(length, kChunk);
    }

    // Blocks of one batch row, all groups together.
    Index all_blocks() const { return lanes == Lanes::kStates ? d_inner : ceil_div(d_inner, kWidth<T>); }

    Unit unit(Index batch_row, Index group) const {
        const Index left = all_blocks() - group * blocks, own = left < blocks ? left : blocks;
        const Index channel = lanes == Lanes::kStates ? 0 : group * blocks * kWidth<T>;
        const Index rest = d_inner - channel, most = blocks * kWidth<T>;
        return {batch_row, group, channel, rest < most ? rest : most, static_cast<int>(own)};
    }

    Index states() const { return blocks * depth * kWidth<T>; }  // of a unit

    // What is known of each channel and position of a chunk. Of single channels it lies as [position][channel] without
    // gaps, so that a line of it, which is one vector, may span positions.
    Index values() const { return kChunk * (lanes == Lanes::kStates ? d_inner : blocks * kWidth<T>); }
    int lines(int positions) const {
        return lanes == Lanes::kStates ? static_cast<int>(ceil_div(positions * d_inner, kWidth<T>)) : positions;
    }

    // A parameter of the channels, beside the values: repeated for each position where a line spans several.
    Index parameters() const { return lanes == Lanes::kStates ? values() : blocks * kWidth<T>; }

    Index map_row() const { return lanes == Lanes::kStates ? depth * kWidth<T> : d_state; }
    Index maps() const { return kChunk * map_row(); }

    // [batch][chunk][block of all groups][vector of states][lane]
    T* checkpoint(void* checkpoints, const Unit& unit, Index chunk) const {
        const Index block = (unit.batch * chunks + chunk) * all_blocks() + unit.group * blocks;
        return static_cast<T*>(checkpoints) + block * depth * kWidth<T>;
    }

    Index checkpoint_values() const { return batch * chunks * all_blocks() * depth * kWidth<T>; }

    // Positions of a chunk.
    int positions(Index chunk) const {
        const Index left = length - chunk * kChunk;
        return static_cast<int>(left < kChunk ? left : kChunk);
    }
};

// Move the states of a unit between a (b, d, n) tensor and [block][vector of states][lane]; without a tensor they are zero.
template <class T>
SPHERESCAN_INLINE void gather_states(const T* from, const Plan<T>& plan, const Unit& unit, T* to) {
    constexpr Index width = kWidth<T>;
    const Index N = plan.d_state, size = plan.depth * width;
    if (from == nullptr) {
        std::memset(to, 0, sizeof(T) * unit.blocks * size);
        return;
    }
    from += (unit.batch * plan.d_inner + unit.channel) * N;
    for (Index k = 0; k < unit.blocks; ++k, to += size) {
        if (plan.lanes == Lanes::kStates) {
            std::memcpy(to, from + k * N, sizeof(T) * N);
            std::memset(to + N, 0, sizeof(T) * (size - N));
        } else {
            const Block block = neighbours<T>(unit.batch, k * width, unit.channels);
            lanes_from_rows<T>(from + block.channel * N, N, block.lanes, N, to);
        }
    }
}

template <class T>
SPHERESCAN_INLINE void scatter_states(const T* from, const Plan<T>& plan, const Unit& unit, T* to) {
    constexpr Index width = kWidth<T>;
    const Index N = plan.d_state, size = plan.depth * width;
    to += (unit.batch * plan.d_inner + unit.channel) * N;
    for (Index k = 0; k < unit.blocks; ++k, from += size) {
        if (plan.lanes == Lanes::kStates) {
            std::memcpy(to + k * N, from, sizeof(T) * N);
        } else {
            const Block block = neighbours<T>(unit.batch, k * width, unit.channels);
            rows_from_lanes<T>(from, block.lanes, N, to + block.channel * N, N);
        }
    }
}

// A of a unit as its states lie, times log2(e): decay is then exp2(delta A).
template <class T>
SPHERESCAN_INLINE void gather_decay(const void* A, const Plan<T>& plan, const Unit& unit, T* to) {
    Unit first = unit;
    first.batch = 0;
    gather_states<T>(static_cast<const T*>(A), plan, first, to);
    for (Index i = 0; i < unit.blocks * plan.depth * kWidth<T>; i += kWidth<T>) {
        store<T>(to + i, load(to + i) * T(kLog2E));
    }
}

// A parameter of the channels of a unit, as the values lie; zero when it is missing.
template <class T>
SPHERESCAN_INLINE void gather_parameter(const void* parameter, const Plan<T>& plan, const Unit& unit, T* to) {
    const Index repeats = plan.lanes == Lanes::kStates ? kChunk : 1, channels = unit.channels;
    std::memset(to, 0, sizeof(T) * plan.parameters());
    if (parameter == nullptr) return;
    const T* from = static_cast<const T*>(parameter) + unit.channel;
    for (Index i = 0; i < repeats; ++i) std::memcpy(to + i * channels, from, sizeof(T) * channels);
}

// B or C of a chunk as [position][state], in whole vectors where states are in lanes. Those of the chunk that begins at
// `next` are fetched.
template <class T, class IO>
SPHERESCAN_INLINE void gather_maps(const Rows<const IO>& map, const Plan<T>& plan, Index batch, Index start, int positions,
                                   Index next, T* to) {
    const Index N = plan.d_state, row = plan.map_row();
    for (int l = 0; l < positions; ++l, to += row) {
        const IO *from = map.at(batch, start + l, 0), *ahead = map.at(batch, next + l, 0);
        Index n = 0;
        for (; n + kWidth<T> <= N; n += kWidth<T>) {
            __builtin_prefetch(ahead + n);
            store<T>(to + n, read(from + n));
        }
        if (n < row && row > N) store<T>(to + n, splat<T>(T(0)));
        for (; n < N; ++n) to[n] = read_one(from + n);
    }
}

// Where documents start within a chunk, as a mask per position; false when none does.
template <class T>
SPHERESCAN_INLINE bool gather_keep(const Rows<const unsigned char>& reset, Index batch, Index start, int positions, T* to) {
    if (reset.missing()) return false;
    bool any = false;
    for (int l = 0; l < positions; ++l) {
        const bool starts = *reset.at(batch, start + l, 0) != 0;
        any = any || starts;
        std::memset(to + l * kWidth<T>, starts ? 0 : 0xff, sizeof(Mask<T>));
    }
    return any;
}

// A tensor at the positions of a chunk, line by line as the values lie. Where lines span positions, they are brought together
// in `lines` and taken apart from there.
template <class T, class IO, Lanes L>
class Window {
  public:
    Window(const Rows<IO>& rows, const Unit& unit, Index start, T* lines)
        : rows_(rows), unit_(unit), lines_(lines),
          first_(rows.missing() ? nullptr : rows.at(unit.batch, start, unit.channel)) {}

    void gather(int positions) const {
        if (L == Lanes::kChannels || rows_.missing()) return;
        each_run(positions, [&](const IO* row, T* line) { *line = read_one(row); });
        for (Index i = positions * unit_.channels; i % kWidth<T> != 0; ++i) lines_[i] = T(0);
    }

    void scatter(int positions) const {
        if (L == Lanes::kChannels || rows_.missing()) return;
        each_run(positions, [&](IO* row, const T* line) { write_one(row, *line); });
    }

    Vector<T> read(int line, int k) const {
        if (L == Lanes::kStates) return load(lines_ + line * kWidth<T>);
        const Index channel = k * kWidth<T>;
        return read_lanes<T>(first_ + line * rows_.row_stride + channel, lanes(channel));
    }

    void write(int line, int k, Vector<T> values) const {
        if (L == Lanes::kStates) {
            store<T>(lines_ + line * kWidth<T>, values);
        } else {
            const Index channel = k * kWidth<T>;
            write_lanes<T>(first_ + line * rows_.row_stride + channel, lanes(channel), values);
        }
    }

  private:
    // Every value in its row and in its line; rows that touch are one run.
    template <class Move>
    void each_run(int positions, const Move& move) const {
        const bool touching = rows_.row_stride == unit_.channels;
        const Index runs = touching ? 1 : positions, count = touching ? positions * unit_.channels : unit_.channels;
        for (Index i = 0; i < runs; ++i) {
            for (Index j = 0; j < count; ++j) move(first_ + i * rows_.row_stride + j, lines_ + i * count + j);
        }
    }

    int lanes(Index channel) const { return neighbours<T>(0, channel, unit_.channels).lanes; }

    const Rows<IO>& rows_;
    const Unit& unit_;
    T* lines_;
    IO* first_;
};

}  // namespace spherescan::SPHERESCAN_LEVEL
