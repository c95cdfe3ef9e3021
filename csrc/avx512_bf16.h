// Pairs of bf16 multiplied as they are (vdpbf16ps). Included into an unnamed namespace.

struct PairedBFloat16 {
    using Vec = __m512;
    using Unit = uint32_t;
    using Packed = __m512bh;
    using Broadcast = __m512bh;
    static constexpr int STEP = 2, UNIT_BYTES = 4;
    static constexpr bool TILES = false;

    static Packed load(const char *p) {
        return (__m512bh)_mm512_loadu_si512(reinterpret_cast<const void *>(p));
    }
    static Broadcast broadcast(const Unit *u) {
        return (__m512bh)_mm512_set1_epi32(static_cast<int>(*u));
    }
    static Vec dot(Vec acc, Packed p, Broadcast b) { return _mm512_dpbf16_ps(acc, p, b); }

    static void load_query(const void *q, int64_t at, int64_t n, int64_t dim, bool negate,
                           Unit *units) {
        uint16_t *to = reinterpret_cast<uint16_t *>(units);
        const uint16_t *from = static_cast<const uint16_t *>(q) + at;
        const uint16_t sign = negate ? 0x8000 : 0;
        for (int64_t d = 0; d < n; d++) to[d] = from[d] ^ sign;
        for (int64_t d = n; d < dim; d++) to[d] = 0;
    }
    static void store_out(void *out, int64_t at, const float *o, int64_t n, float scale) {
        uint16_t *to = static_cast<uint16_t *>(out) + at;
        for (int64_t d = 0; d < n; d++) to[d] = to_bf16(o[d] * scale);
    }

    // The sums are of the rounded weights, so that weights and sums round alike.
    static void weigh(const float *score, void *to, float *sums, int32_t vectors, float scale2,
                      float top) {
        char *weight = static_cast<char *>(to);
        const Vec t = _mm512_set1_ps(top), c = _mm512_set1_ps(scale2);
        const __m256bh ones = (__m256bh)_mm256_set1_epi16(0x3f80);
        __m256 sum = _mm256_loadu_ps(sums);
        for (int32_t v = 0; v < vectors; v++) {
            const Vec x = _mm512_mul_ps(_mm512_loadu_ps(score + v * 16), c);
            const __m256bh p = _mm512_cvtneps_pbh(Avx512Ops::exp2_short(x, t));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(weight + v * 32), (__m256i)p);
            sum = _mm256_dpbf16_ps(sum, p, ones);
        }
        _mm256_storeu_ps(sums, sum);
    }
};
