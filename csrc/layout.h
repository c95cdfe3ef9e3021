// Where the key and the value of a token lie in a packed pool.
//
// Keys come in groups of 16 tokens with the tokens innermost, values with the dimensions innermost,
// so that both matrix products read whole vectors and broadcast the other side. bf16 keeps pairs
// together, two dimensions of a key and two tokens of a value, as vdpbf16ps and AMX tiles want them:
//
//     keys    f32, f16: [head][slot / 16][dim][16]         bf16: [head][slot / 16][dim / 2][16][2]
//     values  f32, f16: [head][slot][dim]                  bf16: [head][slot / 2][dim][2]
//
// `dim` is the head dimension rounded up to 16, `slots` a multiple of 16.
#pragma once

#include <stdint.h>

namespace fw {

constexpr int GROUP = 16;

inline int64_t padded(int64_t dim) { return (dim + GROUP - 1) / GROUP * GROUP; }

// Elements from one head's keys (or values) to the next head's.
inline int64_t head_stride(int64_t slots, int64_t dim) { return slots * dim; }

}  // namespace fw
