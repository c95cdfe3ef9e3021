// The AMX kernel with its tile instructions in software, for tests on processors without them.
// Never chosen by itself; slow.

#include <immintrin.h>

#include "kernel.h"

namespace {

using namespace fw;

#include "kernel.inl"
#include "portable.h"
#include "layer.inl"
#include "avx512.h"
#include "avx512_bf16.h"

struct EmulatedTile {
    int rows, bytes;
    uint8_t data[16][64];
};
thread_local EmulatedTile tiles[8];

void tile_configure(const void *memory) {
    const uint8_t *config = static_cast<const uint8_t *>(memory);
    const uint16_t *bytes = reinterpret_cast<const uint16_t *>(config + 16);
    for (int t = 0; t < 8; t++) {
        tiles[t].rows = config[48 + t];
        tiles[t].bytes = bytes[t];
        __builtin_memset(tiles[t].data, 0, sizeof tiles[t].data);
    }
}

void tile_load(int t, const void *address, int64_t stride) {
    const char *from = static_cast<const char *>(address);
    for (int r = 0; r < tiles[t].rows; r++) {
        __builtin_memcpy(tiles[t].data[r], from + r * stride, tiles[t].bytes);
    }
}

void tile_store(int t, void *address, int64_t stride) {
    char *to = static_cast<char *>(address);
    for (int r = 0; r < tiles[t].rows; r++) {
        __builtin_memcpy(to + r * stride, tiles[t].data[r], tiles[t].bytes);
    }
}

void tile_zero(int t) { __builtin_memset(tiles[t].data, 0, sizeof tiles[t].data); }

void tile_dot(int sums, int a, int b) {
    float acc[16];
    for (int r = 0; r < tiles[sums].rows; r++) {
        __builtin_memcpy(acc, tiles[sums].data[r], 64);
        const uint16_t *row = reinterpret_cast<const uint16_t *>(tiles[a].data[r]);
        float even[16] = {}, odd[16] = {};
        for (int k = 0; k < tiles[a].bytes / 4; k++) {
            const uint16_t *pairs = reinterpret_cast<const uint16_t *>(tiles[b].data[k]);
            for (int c = 0; c < 16; c++) {
                even[c] += from_bf16(row[2 * k]) * from_bf16(pairs[2 * c]);
                odd[c] += from_bf16(row[2 * k + 1]) * from_bf16(pairs[2 * c + 1]);
            }
        }
        for (int c = 0; c < 16; c++) acc[c] += even[c] + odd[c];
        __builtin_memcpy(tiles[sums].data[r], acc, 64);
    }
}

#define FW_TILE_CONFIGURE(memory) tile_configure(memory)
#define FW_TILE_RELEASE() (void)0
#define FW_TILE_LOAD(tile, address, stride) tile_load(tile, address, stride)
#define FW_TILE_STORE(tile, address, stride) tile_store(tile, address, stride)
#define FW_TILE_ZERO(tile) tile_zero(tile)
#define FW_TILE_DOT(sums, a, b) tile_dot(sums, a, b)

#include "tiles.inl"

using Ops = Avx512Ops;

bool here() {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

namespace fw {

const Isa ISA_AMX_EMULATED = {
    "amx_emulated",
    here,
    {nullptr, nullptr, run_kernel<Ops, TiledBFloat16>},
    {nullptr, nullptr, run_merge<Ops, TiledBFloat16>},
    {nullptr, nullptr, nullptr},
};

}  // namespace fw
