// AMX tiles for bf16: Sapphire Rapids and later, on Linux.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel.h"

namespace {

using namespace fw;

#include "kernel.inl"
#include "portable.h"
#include "layer.inl"
#include "avx512.h"
#include "avx512_bf16.h"

#define FW_TILE_CONFIGURE(memory) _tile_loadconfig(memory)
#define FW_TILE_RELEASE() _tile_release()
#define FW_TILE_LOAD(tile, address, stride) _tile_loadd(tile, address, stride)
#define FW_TILE_STORE(tile, address, stride) _tile_stored(tile, address, stride)
#define FW_TILE_ZERO(tile) _tile_zero(tile)
#define FW_TILE_DOT(sums, a, b) _tile_dpbf16ps(sums, a, b)

#include "tiles.inl"

using Ops = Avx512Ops;

bool here() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // arch_prctl: ask Linux for the tile registers
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512dq")) return false;
    unsigned a = 7, b = 0, c = 0, d = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    const bool has = (d >> 22 & 1) && (d >> 24 & 1);  // AMX-BF16, AMX-TILE
    static const bool granted = has && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return granted;
}

}  // namespace

namespace fw {

const Isa ISA_AMX = {
    "amx",
    here,
    {run_kernel<Ops, Float32<Ops>>, run_kernel<Ops, Float16<Ops>>, run_kernel<Ops, TiledBFloat16>},
    {run_merge<Ops, Float32<Ops>>, run_merge<Ops, Float16<Ops>>, run_merge<Ops, TiledBFloat16>},
    {LayerOps<Ops, Num32<Ops>>::run, nullptr, LayerOps<Ops, Num16<Ops>>::run},
};

}  // namespace fw
