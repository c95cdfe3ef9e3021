// AVX-512 with bf16 instructions: Cooper Lake, Zen 4 and later.

#include <immintrin.h>

#include "kernel.h"

namespace {

using namespace fw;

#include "kernel.inl"
#include "portable.h"
#include "layer.inl"
#include "avx512.h"
#include "avx512_bf16.h"

using Ops = Avx512Ops;

bool here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
}

}  // namespace

namespace fw {

const Isa ISA_AVX512_BF16 = {
    "avx512_bf16",
    here,
    {run_kernel<Ops, Float32<Ops>>, run_kernel<Ops, Float16<Ops>>,
     run_kernel<Ops, PairedBFloat16>},
    {run_merge<Ops, Float32<Ops>>, run_merge<Ops, Float16<Ops>>, run_merge<Ops, PairedBFloat16>},
    {LayerOps<Ops, Num32<Ops>>::run, nullptr, LayerOps<Ops, Num16<Ops>>::run},
};

}  // namespace fw
