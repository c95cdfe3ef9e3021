// Any processor: vectors of four, which is what SSE2 and NEON have.

#include "kernel.h"

namespace {

using namespace fw;

#include "kernel.inl"
#include "portable.h"
#include "layer.inl"

struct Ops : PortableOps<4, 6, 2> {
    static Vec load_f16(const char *p) {
        const uint16_t *half = reinterpret_cast<const uint16_t *>(p);
        return Vec{from_f16(half[0]), from_f16(half[1]), from_f16(half[2]), from_f16(half[3])};
    }
};

bool here() { return true; }

}  // namespace

namespace fw {

const Isa ISA_PORTABLE = {
    "portable",
    here,
    {run_kernel<Ops, Float32<Ops>>, run_kernel<Ops, Float16<Ops>>,
     run_kernel<Ops, WidenedBFloat16<Ops>>},
    {run_merge<Ops, Float32<Ops>>, run_merge<Ops, Float16<Ops>>,
     run_merge<Ops, WidenedBFloat16<Ops>>},
    {LayerOps<Ops, Num32<Ops>>::run, nullptr, LayerOps<Ops, Num16<Ops>>::run},
};

}  // namespace fw
