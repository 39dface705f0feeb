// What the forward and the backward scan share: how the work is cut, and what is computed before the states are met.
//
//   unit      what one pass over time covers: a group of channels of one batch row ("spread"), or, where the channels
//             do not fill a vector, one vector of several batch rows ("packed")
//   task      the units of one group for a range of batch rows: one thread, one partial sum of the parameter gradients
//   chunk     kChunk positions; h at the start of each chunk is kept for the backward pass, which computes the rest again
//   tile      states whose values stay in registers for a chunk
//
// Within a unit, h lies as [block][state][lane].
#pragma once

#include "exp.h"
#include "parallel.h"
#include "rows.h"

namespace spherescan::SPHERESCAN_LEVEL {

constexpr int kChunk = SPHERESCAN_CHUNK;

// Channels of a unit: enough to share the maps B and C, few enough that the states of a chunk stay in the cache.
constexpr Index kMostChannels = 256, kFewestChannels = 64, kMostStates = 16384;
template <class T>
constexpr int kMostBlocks = kMostChannels / kWidth<T>;

// Fewer tasks than this leave cores idle, more only cost memory for partial sums.
constexpr Index kEnoughTasks = 8, kMostTasks = 256;

// B and C of a chunk, and where documents start in it.
template <class T>
struct Maps {
    const T *B, *C;  // [position][state], or [position][state][lane] when packed
    const T* keep;   // [position] masks
    Index d_state;
    int positions;
};

template <class T>
struct Plan {
    Index batch, length, d_inner, d_state;
    bool packed;
    Index rows_per_block;  // batch rows in a vector; 1 when spread
    Index rows;            // units of each group
    Index groups, blocks;  // groups of channels; vectors in each
    Index parts, tasks;    // ranges of rows; parts * groups
    Index chunks;

    explicit Plan(const SpherescanScan& scan)
        : batch(scan.batch), length(scan.length), d_inner(scan.d_inner), d_state(scan.d_state) {
        constexpr Index width = kWidth<T>;
        packed = d_inner <= width / 2 && batch > 1;
        rows_per_block = packed ? width / d_inner : 1;
        rows = ceil_div(batch, rows_per_block);
        Index channels = kMostChannels;
        while (channels > kFewestChannels &&
               (channels * d_state > kMostStates || rows * ceil_div(d_inner, channels) < kEnoughTasks)) {
            channels /= 2;
        }
        groups = packed ? 1 : ceil_div(d_inner, channels);
        blocks = packed ? 1 : ceil_div(channels < d_inner ? channels : d_inner, width);
        parts = kMostTasks / groups;
        parts = parts < 1 ? 1 : parts > rows ? rows : parts;
        tasks = parts * groups;
        chunks = ceil_div(length, kChunk);
    }

    Index blocks_of(Index group) const {
        const Index left = vectors() - group * blocks;
        return left < blocks ? left : blocks;
    }

    Block<T> block(Index row, Index group, Index index) const {
        if (!packed) return neighbours<T>(row, (group * blocks + index) * kWidth<T>, d_inner);
        Block<T> block{};
        for (int i = 0; i < rows_per_block * d_inner; ++i) {
            const Index b = row * rows_per_block + i / d_inner;
            if (b == batch) break;
            block.batch[i] = b;
            block.channel[i] = i % d_inner;
            ++block.lanes;
        }
        return block;
    }

    // All blocks of a unit; returns how many.
    int fill_blocks(Index row, Index group, Block<T>* to) const {
        const Index count = blocks_of(group);
        for (Index k = 0; k < count; ++k) to[k] = block(row, group, k);
        return static_cast<int>(count);
    }

    Index states() const { return blocks * d_state * kWidth<T>; }  // of a unit
    Index values() const { return blocks * kChunk * kWidth<T>; }   // one per channel and position of a chunk
    Index maps() const { return kChunk * d_state * (packed ? kWidth<T> : 1); }

    Index vectors() const { return packed ? 1 : ceil_div(d_inner, kWidth<T>); }  // of all groups of a row

    // [row][chunk][block of all groups][state][lane]
    T* checkpoint(void* checkpoints, Index row, Index group, Index chunk) const {
        const Index vector = (row * chunks + chunk) * vectors() + group * blocks;
        return static_cast<T*>(checkpoints) + vector * d_state * kWidth<T>;
    }

    Index checkpoint_values() const { return rows * chunks * vectors() * d_state * kWidth<T>; }

    // Positions of a chunk.
    int positions(Index chunk) const {
        const Index left = length - chunk * kChunk;
        return static_cast<int>(left < kChunk ? left : kChunk);
    }
};

// Move the states of a block between a (b, d, n) tensor and [state][lane].
template <class T>
SPHERESCAN_INLINE void gather_states(const T* from, const Plan<T>& plan, const Block<T>& block, T* to) {
    constexpr int width = kWidth<T>;
    for (int i = 0; i < width; ++i) {
        if (from == nullptr || i >= block.lanes) {
            for (Index n = 0; n < plan.d_state; ++n) to[n * width + i] = T(0);
            continue;
        }
        const T* row = from + (block.batch[i] * plan.d_inner + block.channel[i]) * plan.d_state;
        for (Index n = 0; n < plan.d_state; ++n) to[n * width + i] = row[n];
    }
}

template <class T>
SPHERESCAN_INLINE void scatter_states(const T* from, const Plan<T>& plan, const Block<T>& block, T* to) {
    constexpr int width = kWidth<T>;
    for (int i = 0; i < block.lanes; ++i) {
        T* row = to + (block.batch[i] * plan.d_inner + block.channel[i]) * plan.d_state;
        for (Index n = 0; n < plan.d_state; ++n) row[n] = from[n * width + i];
    }
}

// A of a block as [state][lane], times log2(e): decay is then exp2(delta A).
template <class T>
SPHERESCAN_INLINE void gather_decay(const void* A, const Plan<T>& plan, const Block<T>& block, T* to) {
    constexpr int width = kWidth<T>;
    for (int i = 0; i < width; ++i) {
        const T* row = static_cast<const T*>(A) + block.channel[i] * plan.d_state;
        for (Index n = 0; n < plan.d_state; ++n) {
            to[n * width + i] = i < block.lanes ? row[n] * T(kLog2E) : T(0);
        }
    }
}

// B or C of a chunk as [position][state], or with a copy per lane where lanes are of different batch rows.
template <class T, class IO>
SPHERESCAN_INLINE void gather_maps(const Rows<const IO>& map, const Plan<T>& plan, const Block<T>& block, Index start,
                                   int positions, T* to) {
    constexpr int width = kWidth<T>;
    const Index N = plan.d_state;
    for (int l = 0; l < positions; ++l) {
        if (!plan.packed) {
            const IO* from = map.at(block.batch[0], start + l, 0);
            for (Index n = 0; n < N; ++n) to[l * N + n] = read_one(from + n);
            continue;
        }
        for (int i = 0; i < width; ++i) {
            const IO* from = map.at(block.batch[i], start + l, 0);
            for (Index n = 0; n < N; ++n) {
                to[(l * N + n) * width + i] = i < block.lanes ? read_one(from + n) : T(0);
            }
        }
    }
}

// Where documents start within a chunk, as a mask per position; false when none does.
template <class T>
SPHERESCAN_INLINE bool gather_keep(const Rows<const unsigned char>& reset, const Block<T>& block, Index start,
                                   int positions, T* to) {
    if (reset.missing()) return false;
    bool any = false;
    for (int l = 0; l < positions; ++l) {
        const Mask<T> keep = read_keep<T>(reset, block, start + l);
        for (int i = 0; i < block.lanes; ++i) any = any || keep[i] == 0;
        std::memcpy(to + l * kWidth<T>, &keep, sizeof keep);
    }
    return any;
}

}  // namespace spherescan::SPHERESCAN_LEVEL
