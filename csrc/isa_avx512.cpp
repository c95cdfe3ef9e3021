// AVX-512 without bf16 instructions: Skylake-X to Ice Lake.

#include <immintrin.h>

#include "kernel.h"

namespace {

using namespace fw;

#include "kernel.inl"
#include "portable.h"
#include "layer.inl"
#include "avx512.h"

using Ops = Avx512Ops;

bool here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

namespace fw {

const Isa ISA_AVX512 = {
    "avx512",
    here,
    {run_kernel<Ops, Float32<Ops>>, run_kernel<Ops, Float16<Ops>>,
     run_kernel<Ops, WidenedBFloat16<Ops>>},
    {run_merge<Ops, Float32<Ops>>, run_merge<Ops, Float16<Ops>>,
     run_merge<Ops, WidenedBFloat16<Ops>>},
    {LayerOps<Ops, Num32<Ops>>::run, nullptr, LayerOps<Ops, Num16<Ops>>::run},
};

}  // namespace fw
