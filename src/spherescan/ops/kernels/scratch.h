// Memory that a thread keeps for its next call.
#pragma once

#include <cstddef>

namespace spherescan {

// Of a task, and of a whole call: both are in use at once.
enum class Slot { kTask, kCall };

// At least `bytes`, aligned to 64; null when there is no such memory. Its contents are undefined.
void* scratch_bytes(Slot slot, std::size_t bytes);

}  // namespace spherescan
