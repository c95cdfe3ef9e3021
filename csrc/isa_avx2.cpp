// AVX2 with FMA and F16C: x86-64 since 2013 or so.

#include <immintrin.h>

#include "kernel.h"

namespace {

using namespace fw;

#include "kernel.inl"
#include "portable.h"
#include "layer.inl"

struct Ops : PortableOps<8, 6, 2> {
    static Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
    static Vec load_f16(const char *p) {
        return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
};

bool here() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

}  // namespace

namespace fw {

const Isa ISA_AVX2 = {
    "avx2",
    here,
    {run_kernel<Ops, Float32<Ops>>, run_kernel<Ops, Float16<Ops>>,
     run_kernel<Ops, WidenedBFloat16<Ops>>},
    {run_merge<Ops, Float32<Ops>>, run_merge<Ops, Float16<Ops>>,
     run_merge<Ops, WidenedBFloat16<Ops>>},
    {LayerOps<Ops, Num32<Ops>>::run, nullptr, LayerOps<Ops, Num16<Ops>>::run},
};

}  // namespace fw
