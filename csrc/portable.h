// Vector operations in the compiler's own vector types: any processor, any vector width.
//
// Included into an unnamed namespace, like kernel.inl; see there for what must not be used here.

template <int WIDTH> struct VectorTypes {
    typedef float F __attribute__((vector_size(WIDTH * 4)));
    typedef float FU __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
    typedef int32_t I __attribute__((vector_size(WIDTH * 4)));
    typedef uint32_t UU __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
    typedef uint32_t U __attribute__((vector_size(WIDTH * 4)));
};

template <int WIDTH, int ROWS_, int COLS_> struct PortableOps {
    using T = VectorTypes<WIDTH>;
    using Vec = typename T::F;
    static constexpr int W = WIDTH, ROWS = ROWS_, COLS = COLS_;
    static constexpr float INF = __builtin_inff();

    static Vec zero() { return Vec{}; }
    static Vec load(const float *p) { return *reinterpret_cast<const typename T::FU *>(p); }
    static void store(float *p, Vec v) { *reinterpret_cast<typename T::FU *>(p) = v; }
    static Vec set1(float x) { return x - Vec{}; }
    static Vec mul(Vec a, Vec b) { return a * b; }
    static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
    // Where `b` is not a number the answer is `b`.
    static Vec max(Vec a, Vec b) { return a > b ? a : b; }

    static float reduce_max(Vec v) {
        float high = v[0];
        for (int i = 1; i < W; i++) high = v[i] < high ? high : v[i];
        return high;
    }
    static float ceil(float x) { return __builtin_ceilf(x); }
    static float log2(float x) { return __builtin_log2f(x); }
    static float pow2(float n) {  // n whole or -inf
        if (n < -126) return n < -149 ? 0 : __builtin_ldexpf(1.0f, static_cast<int>(n));
        const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
        float f;
        __builtin_memcpy(&f, &bits, 4);
        return f;
    }

    // 2^(x - top), top whole: the fraction of x decides the digits, so they are the same for any
    // top. Relative error below 1e-7; what is below 2^-126 is zero.
    static Vec exp2(Vec x, Vec top) {
        const Vec shift = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
        const Vec near = x < set1(-4194304.0f) ? set1(-4194304.0f) : x;  // keeps NaN
        const Vec n = (near + shift) - shift;
        const Vec f = near - n;
        Vec p = set1(0.0013276472454890609f);
        p = fma(p, f, set1(0.009675540961325169f));
        p = fma(p, f, set1(0.05550713092088699f));
        p = fma(p, f, set1(0.24022120237350464f));
        p = fma(p, f, set1(0.6931469440460205f));
        p = fma(p, f, set1(1.0000001192092896f));
        Vec e = n - top;
        const typename T::I dead = e < set1(-125.0f);
        e = dead ? set1(0.0f) : e;
        e = e > set1(127.0f) ? set1(127.0f) : e;
        const typename T::I whole = __builtin_convertvector(e, typename T::I);
        const typename T::I bits = (whole + 127) << 23;
        const Vec scaled = p * reinterpret_cast<const Vec &>(bits);
        return dead ? set1(0.0f) : scaled;
    }
};

// -- numbers in memory --------------------------------------------------------------------------

inline float from_bf16(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
}

inline uint16_t to_bf16(float x) {  // to nearest, ties to even
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_f16(uint16_t x) {
    const uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16, rest = x & 0x7fff;
    uint32_t bits = sign | (rest << 13);
    float f;
    __builtin_memcpy(&f, &bits, 4);
    f *= 0x1p112f;  // moves the exponent's bias from 15 to 127, subnormal numbers included
    if (rest >= 0x7c00) {
        bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
        __builtin_memcpy(&f, &bits, 4);
    }
    return f;
}

inline uint16_t to_f16(float x) {  // to nearest, ties to even
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
    if (bits < 0x38800000) {  // subnormal: let the processor round at the right place
        float f;
        __builtin_memcpy(&f, &bits, 4);
        f += 0.5f;
        __builtin_memcpy(&bits, &f, 4);
        return static_cast<uint16_t>(sign | (bits - 0x3f000000));
    }
    return static_cast<uint16_t>(sign | (((bits - 0x38000000) + 0xfff + (bits >> 13 & 1)) >> 13));
}

// -- storage traits, see kernel.inl ---------------------------------------------------------------

// What the traits below have in common: products in float32, weights not rounded.
template <class Ops> struct FloatDot {
    using Vec = typename Ops::Vec;
    static constexpr bool TILES = false;

    static void weigh(const float *score, void *to, float *sums, int32_t vectors, float scale2,
                      float top) {
        float *weight = static_cast<float *>(to);
        const Vec t = Ops::set1(top), c = Ops::set1(scale2);
        for (int32_t v = 0; v < vectors; v++) {
            const Vec p = Ops::exp2(Ops::mul(Ops::load(score + v * Ops::W), c), t);
            Ops::store(weight + v * Ops::W, p);
            float *lanes = sums + v * Ops::W % LANES;
            Ops::store(lanes, Ops::load(lanes) + p);
        }
    }
};

template <class Ops> struct Float32 : FloatDot<Ops> {
    using Vec = typename Ops::Vec;
    using Unit = float;
    using Packed = Vec;
    using Broadcast = Vec;
    static constexpr int STEP = 1, UNIT_BYTES = 4;

    static Packed load(const char *p) { return Ops::load(reinterpret_cast<const float *>(p)); }
    static Broadcast broadcast(const Unit *u) { return Ops::set1(*u); }
    static Vec dot(Vec acc, Packed p, Broadcast b) { return Ops::fma(b, p, acc); }

    static void load_query(const void *q, int64_t at, int64_t n, int64_t dim, bool negate,
                           Unit *to) {
        const float *from = static_cast<const float *>(q) + at;
        for (int64_t d = 0; d < n; d++) to[d] = negate ? -from[d] : from[d];
        for (int64_t d = n; d < dim; d++) to[d] = 0;
    }
    static void store_out(void *out, int64_t at, const float *o, int64_t n, float scale) {
        float *to = static_cast<float *>(out) + at;
        for (int64_t d = 0; d < n; d++) to[d] = o[d] * scale;
    }
};

template <class Ops> struct Float16 : FloatDot<Ops> {
    using Vec = typename Ops::Vec;
    using Unit = float;
    using Packed = Vec;
    using Broadcast = Vec;
    static constexpr int STEP = 1, UNIT_BYTES = 2;

    static Packed load(const char *p) { return Ops::load_f16(p); }
    static Broadcast broadcast(const Unit *u) { return Ops::set1(*u); }
    static Vec dot(Vec acc, Packed p, Broadcast b) { return Ops::fma(b, p, acc); }

    static void load_query(const void *q, int64_t at, int64_t n, int64_t dim, bool negate,
                           Unit *to) {
        const uint16_t *from = static_cast<const uint16_t *>(q) + at;
        for (int64_t d = 0; d < n; d++) to[d] = negate ? -from_f16(from[d]) : from_f16(from[d]);
        for (int64_t d = n; d < dim; d++) to[d] = 0;
    }
    static void store_out(void *out, int64_t at, const float *o, int64_t n, float scale) {
        uint16_t *to = static_cast<uint16_t *>(out) + at;
        for (int64_t d = 0; d < n; d++) to[d] = to_f16(o[d] * scale);
    }
};

// Pairs of bf16, each half widened to float32.
template <class Ops> struct WidenedBFloat16 : FloatDot<Ops> {
    using Vec = typename Ops::Vec;
    struct Unit {
        float a, b;
    };
    struct Packed {
        Vec a, b;
    };
    using Broadcast = Packed;
    static constexpr int STEP = 2, UNIT_BYTES = 4;

    static Packed load(const char *p) {
        using T = VectorTypes<Ops::W>;
        const typename T::U pairs = *reinterpret_cast<const typename T::UU *>(p);
        const typename T::U low = pairs << 16, high = pairs & 0xffff0000u;
        return {(Vec)low, (Vec)high};
    }
    static Broadcast broadcast(const Unit *u) { return {Ops::set1(u->a), Ops::set1(u->b)}; }
    static Vec dot(Vec acc, const Packed &p, const Broadcast &b) {
        return Ops::fma(b.b, p.b, Ops::fma(b.a, p.a, acc));
    }

    static void load_query(const void *q, int64_t at, int64_t n, int64_t dim, bool negate,
                           Unit *units) {
        float *to = &units->a;
        const uint16_t *from = static_cast<const uint16_t *>(q) + at;
        for (int64_t d = 0; d < n; d++) to[d] = negate ? -from_bf16(from[d]) : from_bf16(from[d]);
        for (int64_t d = n; d < dim; d++) to[d] = 0;
    }
    static void store_out(void *out, int64_t at, const float *o, int64_t n, float scale) {
        uint16_t *to = static_cast<uint16_t *>(out) + at;
        for (int64_t d = 0; d < n; d++) to[d] = to_bf16(o[d] * scale);
    }
};
