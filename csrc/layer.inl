// What a decoder layer does between its matrix products, rounding where transformers rounds.
//
// Included into an unnamed namespace after kernel.inl and portable.h.
//   Num::load(p, i)      W numbers from element i, widened to float32
//   Num::store(p, i, v)  rounded and stored
//   Num::round(v)        what a store and a load would make of v

template <class Ops> struct Num32 {
    using Vec = typename Ops::Vec;
    static constexpr int BYTES = 4;
    static Vec load(const void *p, int64_t i) {
        return Ops::load(static_cast<const float *>(p) + i);
    }
    static void store(void *p, int64_t i, Vec v) { Ops::store(static_cast<float *>(p) + i, v); }
    static Vec round(Vec v) { return v; }
};

template <class Ops> struct Num16 {  // bf16
    using Vec = typename Ops::Vec;
    static constexpr int BYTES = 2, W = Ops::W;
    typedef uint16_t Half __attribute__((vector_size(W * 2), aligned(2), may_alias));
    typedef uint16_t Halves __attribute__((vector_size(W * 2)));
    using U = typename VectorTypes<W>::U;

    static Vec load(const void *p, int64_t i) {
        const Halves h = *reinterpret_cast<const Half *>(static_cast<const uint16_t *>(p) + i);
        return (Vec)(__builtin_convertvector(h, U) << 16);
    }
    static U rounded(Vec v) {  // to nearest, ties to even; what is not a number stays none
        const U bits = (U)v;
        const U up = bits + 0x7fff + (bits >> 16 & 1);
        return (bits & 0x7fffffff) > 0x7f800000 ? (bits | 0x400000) : up;
    }
    static void store(void *p, int64_t i, Vec v) {
        const Halves h = __builtin_convertvector(rounded(v) >> 16, Halves);
        *reinterpret_cast<Half *>(static_cast<uint16_t *>(p) + i) = h;
    }
    static Vec round(Vec v) { return (Vec)(rounded(v) & 0xffff0000u); }
};

template <class Ops, class Num> struct LayerOps {
    using Vec = typename Ops::Vec;
    static constexpr int W = Ops::W;

    static char *at(void *p, int64_t elements) {
        return static_cast<char *>(p) + elements * Num::BYTES;
    }
    static const char *at(const void *p, int64_t elements) {
        return static_cast<const char *>(p) + elements * Num::BYTES;
    }

    static float sum(Vec v) {
        float total = 0, lanes[W];
        Ops::store(lanes, v);
        for (int i = 0; i < W; i++) total += lanes[i];
        return total;
    }

    // x / sqrt(mean(x^2) + eps) * weight of one vector, into `out`, which may be `x` itself.
    static void norm(const void *x, const void *weight, void *out, int64_t dim, float eps) {
        Vec squares = Ops::zero();
        for (int64_t d = 0; d < dim; d += W) {
            const Vec v = Num::load(x, d);
            squares = Ops::fma(v, v, squares);
        }
        const float mean = sum(squares) / static_cast<float>(dim);
        const Vec scale = Ops::set1(1 / __builtin_sqrtf(mean + eps));
        for (int64_t d = 0; d < dim; d += W) {
            const Vec v = Num::round(Ops::mul(Num::load(x, d), scale));
            Num::store(out, d, Ops::mul(v, Num::load(weight, d)));
        }
    }

    static void add_norm(const fw_layer &job, int64_t row) {
        void *residual = at(job.residual, row * job.dim);
        if (job.x != nullptr) {
            const void *x = at(job.x, row * job.dim);
            for (int64_t d = 0; d < job.dim; d += W) {
                Num::store(residual, d, Num::load(residual, d) + Num::load(x, d));
            }
        }
        norm(residual, job.weight, at(job.out, row * job.dim), job.dim, job.eps);
    }

    // Each head: its norm where there is one, then its rotation. In place.
    static void rope(const fw_layer &job, int64_t row) {
        const int64_t half = job.dim / 2;
        const void *cos = at(job.cos, row * half), *sin = at(job.sin, row * half);
        for (int64_t h = 0; h < job.heads; h++) {
            char *head = at(job.out, row * job.row_stride + h * job.dim);
            if (job.weight != nullptr) {
                norm(head, at(job.weight, h * job.dim), head, job.dim, job.eps);
            }
            for (int64_t d = 0; d < half; d += W) {
                const Vec low = Num::load(head, d), high = Num::load(head, half + d);
                const Vec c = Num::load(cos, d), s = Num::load(sin, d);
                const Vec low_c = Num::round(Ops::mul(low, c));
                const Vec high_s = Num::round(Ops::mul(high, s));
                const Vec high_c = Num::round(Ops::mul(high, c));
                const Vec low_s = Num::round(Ops::mul(low, s));
                Num::store(head, d, low_c - high_s);
                Num::store(head, half + d, high_c + low_s);
            }
        }
    }

    // silu(gate) * up of one row; gates come first.
    static void silu(const fw_layer &job, int64_t row) {
        const char *gate = at(job.x, row * 2 * job.dim), *up = at(gate, job.dim);
        char *out = at(job.out, row * job.dim);
        const Vec one = Ops::set1(1), minus = Ops::set1(-1.44269504088896341f);
        const Vec low = Ops::set1(-126), zero = Ops::zero();
        for (int64_t d = 0; d < job.dim; d += W) {
            const Vec g = Num::load(gate, d);
            // exp(-g), kept within float32: beyond, silu is g or zero to the last bit.
            const Vec e = Ops::exp2(Ops::max(low, zero - Ops::max(low, zero - Ops::mul(g, minus))),
                                    zero);
            Num::store(out, d, Ops::mul(Num::round(g / (one + e)), Num::load(up, d)));
        }
    }

    static void run(const fw_layer &job, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            switch (job.what) {
                case FW_ADD_NORM: add_norm(job, row); break;
                case FW_ROPE: rope(job, row); break;
                default: silu(job, row); break;
            }
        }
    }
};
