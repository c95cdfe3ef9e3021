// What a kernel is given and what it gives back; the same for every instruction set.
#pragma once

#include <stdint.h>

#include "plan.h"

namespace fw {

// Keys that are scored, weighed and summed in one go by a strip of rows. The scores of a strip and
// the keys and values of a piece stay in the caches nearest to the core.
constexpr int PIECE = 256;

// One thread's working memory. States are those of softmax in base two: a row's keys weigh
// 2^(score - top) and `top` is a whole number, so that rescaling by a power of two is exact and the
// result does not depend on where a run is cut into pieces.
struct Scratch {
    // Per state row of a block. `sums` are [LANES] partial sums of the weights.
    char *q;                       // [rows][dim] elements of the kernel's units
    float *out, *sums, *top;       // the chunk at hand
    float *out_all, *sums_all, *top_all;  // all chunks before it
    int32_t *chunk;                // which chunk the row is in
    // Per strip.
    float *scores;  // [STRIP][PIECE + 2 * 16]
    char *weights;  // the same in units of the kernel
    char *edge;     // 32 values at most, with what is not ours zeroed
    int32_t tile_rows;  // what the tiles are configured for; 0: nothing yet
};

constexpr int LANES = 16;
constexpr int STRIP = 32;
constexpr int PIECE_ROOM = PIECE + 2 * 16;

// A row's state after one chunk, where chunks of one path are divided among threads.
struct Partial {
    float *out, *sums, *top;  // [chunks][rows of the block x group][dim], [..][LANES], [..]
};

struct Task {
    const fw_plan *plan;
    const Block *block;
    const fw_call *call;
    int32_t head;   // key/value head
    int32_t chunk;  // only this chunk, into `partial`; or -1: all of them, into call->out
    Partial partial;
};

// Bytes of a Scratch for blocks of `rows` and a padded head dimension; `carve` lays one out in them.
int64_t scratch_bytes(int64_t rows, int64_t dim);
Scratch carve(char *memory, int64_t rows, int64_t dim);

using Kernel = void (*)(const Task &task, Scratch &scratch);
// Adds up the partial states of a block's chunks, in the order of the path, and writes its rows.
using Merge = void (*)(const Task &task, int32_t chunks, Scratch &scratch);

// Rows [begin, end) of a layer operation.
using Layer = void (*)(const fw_layer &job, int64_t begin, int64_t end);

struct Isa {
    const char *name;
    bool (*here)();          // whether this processor runs it
    Kernel kernel[3];        // by fw_dtype
    Merge merge[3];
    Layer layer[3];  // null where there is none
};

extern const Isa ISA_AMX, ISA_AMX_EMULATED, ISA_AVX512_BF16, ISA_AVX512, ISA_AVX2, ISA_PORTABLE;

}  // namespace fw
