// How lanes meet tensors: which channels of which batch rows lie in a vector, and how their values get there.
#pragma once

#include <type_traits>

#include "abi.h"
#include "vector.h"

namespace spherescan::SPHERESCAN_LEVEL {

// A (batch, length, width) tensor of values stored as IO.
template <class IO>
struct Rows {
    IO* data;
    Index batch_stride, row_stride;

    explicit Rows(const SpherescanRows& rows)
        : data(static_cast<IO*>(rows.data)), batch_stride(rows.batch_stride), row_stride(rows.row_stride) {}

    bool missing() const { return data == nullptr; }
    IO* at(Index batch, Index row, Index column) const { return data + batch * batch_stride + row * row_stride + column; }
};

// The (batch row, channel) of each lane of a vector of T. `whole`: every lane is taken, by neighbours in memory. `run`: the
// lanes that are taken are neighbours, as in the last channels of a width that is no multiple of the vector. Otherwise
// lanes are gathered one by one: several batch rows side by side, where the channels of one do not fill a vector.
template <class T>
struct Block {
    int lanes;
    bool whole, run;
    Index batch[kWidth<T>], channel[kWidth<T>];
};

// The channels from `first` on of one batch row: a whole vector, or the run of those before `end`.
template <class T>
SPHERESCAN_INLINE Block<T> neighbours(Index batch, Index first, Index end) {
    Block<T> block{};
    block.lanes = static_cast<int>(end - first < kWidth<T> ? end - first : kWidth<T>);
    block.run = true;
    block.whole = block.lanes == kWidth<T>;
    for (int i = 0; i < block.lanes; ++i) {
        block.batch[i] = batch;
        block.channel[i] = first + i;
    }
    return block;
}

template <class T, class IO>
SPHERESCAN_INLINE Vector<T> read_row(const Rows<IO>& rows, const Block<T>& block, Index row) {
    if (block.whole) return read(rows.at(block.batch[0], row, block.channel[0]));
    if (block.run) {
        std::remove_const_t<IO> values[kWidth<T>] = {};
        std::memcpy(values, rows.at(block.batch[0], row, block.channel[0]), sizeof(IO) * block.lanes);
        return read(values);
    }
    T values[kWidth<T>] = {};
    for (int i = 0; i < block.lanes; ++i) values[i] = read_one(rows.at(block.batch[i], row, block.channel[i]));
    return load(values);
}

template <class T, class IO>
SPHERESCAN_INLINE void write_row(const Rows<IO>& rows, const Block<T>& block, Index row, Vector<T> vector) {
    if (block.whole) {
        write(rows.at(block.batch[0], row, block.channel[0]), vector);
        return;
    }
    if (block.run) {
        IO values[kWidth<T>];
        write(values, vector);
        std::memcpy(rows.at(block.batch[0], row, block.channel[0]), values, sizeof(IO) * block.lanes);
        return;
    }
    T values[kWidth<T>];
    store(values, vector);
    for (int i = 0; i < block.lanes; ++i) write_one(rows.at(block.batch[i], row, block.channel[i]), values[i]);
}

// One row of a unit, whose blocks hold neighbouring channels: where it begins is computed once for all of them. Packed,
// there is one block, and its lanes are gathered.
template <class T, class IO, bool Packed>
struct Line {
    const Rows<IO>& rows;
    const Block<T>* blocks;
    Index row;
    IO* first;

    Line(const Rows<IO>& rows, const Block<T>* blocks, Index row)
        : rows(rows), blocks(blocks), row(row),
          first(rows.missing() ? nullptr : rows.at(blocks[0].batch[0], row, blocks[0].channel[0])) {}

    Vector<T> read(int k) const {
        if (Packed || !blocks[k].whole) return read_row<T>(rows, blocks[k], row);
        return SPHERESCAN_LEVEL::read(first + k * kWidth<T>);
    }

    void write(int k, Vector<T> values) const {
        if (Packed || !blocks[k].whole) {
            write_row<T>(rows, blocks[k], row, values);
        } else {
            SPHERESCAN_LEVEL::write(first + k * kWidth<T>, values);
        }
    }
};

// One value per channel; zero when the parameter is missing and in lanes without a channel.
template <class T>
SPHERESCAN_INLINE Vector<T> read_channels(const void* parameter, const Block<T>& block) {
    T values[kWidth<T>] = {};
    if (parameter != nullptr) {
        for (int i = 0; i < block.lanes; ++i) values[i] = static_cast<const T*>(parameter)[block.channel[i]];
    }
    return load(values);
}

// All bits set in lanes that keep what came before `row`, none where a document starts there.
template <class T>
SPHERESCAN_INLINE Mask<T> read_keep(const Rows<const unsigned char>& reset, const Block<T>& block, Index row) {
    Mask<T> mask{};
    for (int i = 0; i < block.lanes; ++i) mask[i] = *reset.at(block.batch[i], row, 0) ? 0 : -1;
    return mask;
}

// Rows that will be needed soon, fetched one position at a time while something else is computed: they are pages apart,
// which the hardware does not foresee. Without rows it fetches harmlessly what is there anyway.
template <int Tensors, bool Written = false>
class Ahead {
  public:
    explicit Ahead(const void* harmless) {
        for (int i = 0; i < Tensors; ++i) {
            from_[i] = static_cast<const char*>(harmless);
            stride_[i] = 0;
        }
    }

    template <class IO>
    void set(int i, const Rows<IO>& rows, Index batch, Index row, Index channel) {
        if (rows.missing()) return;
        from_[i] = reinterpret_cast<const char*>(rows.at(batch, row, channel));
        stride_[i] = rows.row_stride * static_cast<Index>(sizeof(IO));
    }

    void fetch(int position) const {
#pragma GCC unroll 8
        for (int i = 0; i < Tensors; ++i) __builtin_prefetch(from_[i] + position * stride_[i], Written, 3);
    }

  private:
    const char* from_[Tensors];
    Index stride_[Tensors];
};

}  // namespace spherescan::SPHERESCAN_LEVEL
