// AVX-512 in intrinsics. Included into an unnamed namespace, like kernel.inl.

struct Avx512Ops {
    using Vec = __m512;
    static constexpr int W = 16, ROWS = 6, COLS = 4;
    static constexpr float INF = __builtin_inff();

    static Vec zero() { return _mm512_setzero_ps(); }
    static Vec load(const float *p) { return _mm512_loadu_ps(p); }
    static void store(float *p, Vec v) { _mm512_storeu_ps(p, v); }
    static Vec set1(float x) { return _mm512_set1_ps(x); }
    static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
    static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b where one is not a number
    static Vec load_f16(const char *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }

    static float reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }
    static float ceil(float x) { return __builtin_ceilf(x); }
    static float log2(float x) { return __builtin_log2f(x); }
    static float pow2(float n) {  // n whole or -inf
        return _mm_cvtss_f32(_mm_scalef_ss(_mm_set_ss(1.0f), _mm_set_ss(n)));
    }

    // As PortableOps::exp2.
    static Vec exp2(Vec x, Vec top) {
        const Vec n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const Vec f = _mm512_sub_ps(x, n);
        Vec p = set1(0.0013276472454890609f);
        p = fma(p, f, set1(0.009675540961325169f));
        p = fma(p, f, set1(0.05550713092088699f));
        p = fma(p, f, set1(0.24022120237350464f));
        p = fma(p, f, set1(0.6931469440460205f));
        p = fma(p, f, set1(1.0000001192092896f));
        return _mm512_scalef_ps(p, _mm512_sub_ps(n, top));
    }
    // The same to a relative error of 8e-5, for weights that are rounded to bf16 (4e-3) next.
    static Vec exp2_short(Vec x, Vec top) {
        const Vec n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const Vec f = _mm512_sub_ps(x, n);
        Vec p = set1(0.0551716685295105f);
        p = fma(p, f, set1(0.2426111251115799f));
        p = fma(p, f, set1(0.6932609677314758f));
        p = fma(p, f, set1(0.9999280571937561f));
        return _mm512_scalef_ps(p, _mm512_sub_ps(n, top));
    }
};
