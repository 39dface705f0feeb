// What the fixed convolutions share: nine dilated taps over the sum of some channels, zero outside of the series.
//
//   z_t = sum_s x_{picked_s, t}          tap j of position t sees z_{t + (j - 4) dilation}
#pragma once

#include <cstring>

#include "abi.h"
#include "vector.h"

namespace spherescan::SPHERESCAN_LEVEL {

constexpr int kTaps = 9;

class FixedTaps {
  public:
    explicit FixedTaps(const SpherescanFixed& fixed) : fixed_(fixed), reach_(kTaps / 2 * fixed.dilation) {}

    Index reach() const { return reach_; }

    // Values of a line: whole vectors may be read at every tap of every position of the series.
    Index line_values() const { return fixed_.length + 2 * reach_ + kWidth<float>; }

    // Fill a line for one kernel, so that tap j of position t is line[t + j dilation].
    void fill(Index batch, Index kernel, float* line) const {
        const Index length = fixed_.lengths[batch], most = fixed_.most_picked;
        const std::int64_t* picked = fixed_.picked + kernel * most;
        const float* series = fixed_.x + batch * fixed_.channels * fixed_.length;
        std::memset(line, 0, sizeof(float) * line_values());
        float* z = line + reach_;
        std::memcpy(z, series + picked[0] * fixed_.length, sizeof(float) * length);
        for (Index s = 1; s < fixed_.n_picked[kernel]; ++s) {
            const float* more = series + picked[s] * fixed_.length;
            for (Index t = 0; t < length; ++t) z[t] += more[t];
        }
    }

  private:
    const SpherescanFixed& fixed_;
    Index reach_;
};

}  // namespace spherescan::SPHERESCAN_LEVEL
