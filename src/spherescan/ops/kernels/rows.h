// How lanes meet tensors: which channels lie in a vector, and how their values get there.
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

    Rows(IO* data, Index batch_stride, Index row_stride)
        : data(data), batch_stride(batch_stride), row_stride(row_stride) {}

    bool missing() const { return data == nullptr; }
    IO* at(Index batch, Index row, Index column) const { return data + batch * batch_stride + row * row_stride + column; }
};

// Neighbouring channels of one batch row, which fill a vector or its first lanes.
struct Block {
    Index batch, channel;
    int lanes;
    bool whole;
};

// The channels from `first` on that come before `end`, as many as a vector holds.
template <class T>
SPHERESCAN_INLINE Block neighbours(Index batch, Index first, Index end) {
    const int lanes = static_cast<int>(end - first < kWidth<T> ? end - first : kWidth<T>);
    return {batch, first, lanes, lanes == kWidth<T>};
}

// A vector, or its first lanes beside zeros.
template <class T, class IO>
SPHERESCAN_INLINE Vector<T> read_lanes(const IO* from, int lanes) {
    if (lanes == kWidth<T>) return read(from);
    IO values[kWidth<T>] = {};
    std::memcpy(values, from, sizeof(IO) * lanes);
    return read(values);
}

template <class T, class IO>
SPHERESCAN_INLINE void write_lanes(IO* to, int lanes, Vector<T> vector) {
    if (lanes == kWidth<T>) {
        write(to, vector);
        return;
    }
    IO values[kWidth<T>];
    write(values, vector);
    std::memcpy(to, values, sizeof(IO) * lanes);
}

template <class T, class IO>
SPHERESCAN_INLINE Vector<T> read_row(const Rows<const IO>& rows, const Block& block, Index row) {
    return read_lanes<T>(rows.at(block.batch, row, block.channel), block.lanes);
}

template <class T, class IO>
SPHERESCAN_INLINE void write_row(const Rows<IO>& rows, const Block& block, Index row, Vector<T> vector) {
    write_lanes<T>(rows.at(block.batch, row, block.channel), block.lanes, vector);
}

// One value per channel; zero when the parameter is missing and in lanes without a channel.
template <class T>
SPHERESCAN_INLINE Vector<T> read_channels(const void* parameter, const Block& block) {
    if (parameter == nullptr) return splat<T>(T(0));
    return read_lanes<T>(static_cast<const T*>(parameter) + block.channel, block.lanes);
}

// A row of `count` values for each lane, `stride` apart in memory, to [value][lane]; other lanes become zero.
template <class T>
SPHERESCAN_APART void lanes_from_rows(const T* from, Index stride, int lanes, Index count, T* to) {
    constexpr int width = kWidth<T>;
    Index done = 0;
    for (; done + width <= count; done += width) {
        Vector<T> vectors[width];
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) vectors[i] = i < lanes ? load(from + i * stride + done) : splat<T>(T(0));
        transpose<T>(vectors);
#pragma GCC unroll 16
        for (int j = 0; j < width; ++j) store<T>(to + (done + j) * width, vectors[j]);
    }
    for (; done < count; ++done) {
        T values[width] = {};
        for (int i = 0; i < lanes; ++i) values[i] = from[i * stride + done];
        store<T>(to + done * width, load(values));
    }
}

// And back.
template <class T>
SPHERESCAN_APART void rows_from_lanes(const T* from, int lanes, Index count, T* to, Index stride) {
    constexpr int width = kWidth<T>;
    Index done = 0;
    for (; done + width <= count; done += width) {
        Vector<T> vectors[width];
#pragma GCC unroll 16
        for (int j = 0; j < width; ++j) vectors[j] = load(from + (done + j) * width);
        transpose<T>(vectors);
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) {
            if (i < lanes) store<T>(to + i * stride + done, vectors[i]);
        }
    }
    for (; done < count; ++done) {
        for (int i = 0; i < lanes; ++i) to[i * stride + done] = from[done * width + i];
    }
}

// The sums over the lanes of vectors that lie `stride` apart. As many as fill whole vectors are read and written.
template <class T>
SPHERESCAN_APART void sum_vectors(const T* from, Index stride, int count, T* to) {
    constexpr int width = kWidth<T>, few = width / 4;
    for (int done = 0; done < count; done += width) {
        if (count - done <= few) {
            for (; done < count; ++done) to[done] = sum<T>(load(from + done * stride));
            return;
        }
        Vector<T> vectors[width];
#pragma GCC unroll 16
        for (int j = 0; j < width; ++j) vectors[j] = load(from + (done + j) * stride);
        store<T>(to + done, sum_lanes<T>(vectors));
    }
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
