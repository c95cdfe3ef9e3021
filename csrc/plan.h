// From a work list to tasks: blocks of rows, each with the runs its rows see, root first.
#pragma once

#include <stdint.h>

#include <vector>

#include "foreword.h"

namespace fw {

// Keys that are reduced one after the other into one state. Counted from the root of a row's path,
// so that where a long path is divided depends on the row alone.
constexpr int CHUNK = 1024;

// Query rows (times the head group) that a block holds at most.
constexpr int BLOCK = 96;

// Rows `first .. first + count` of a block see one run of slots. They are consecutive in the
// block; `causal` is the place of the first one in a causal square, or -1.
struct Visit {
    int32_t item, first, count, causal;
    int64_t base;  // keys that its rows have seen before this run
};

struct Block {
    int32_t begin, end;              // rows, as indices into Plan::order
    int32_t visit_begin, visit_end;  // indices into Plan::visits
    int64_t cost;                    // row-key pairs
    int32_t chunks;                  // chunks of the longest path
};

}  // namespace fw

struct fw_plan {
    int32_t kv_heads, group, threads;
    std::vector<int32_t> order;  // block position -> row
    std::vector<fw::Block> blocks;  // dearest first
    std::vector<fw::Visit> visits;
    std::vector<int32_t> start, length;  // of items
    std::vector<char> scratch;

    int32_t row_count() const { return static_cast<int32_t>(order.size()); }
};
