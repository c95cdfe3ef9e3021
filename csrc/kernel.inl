// The attention kernel, written once and compiled once for each instruction set.
//
// A block of rows walks its whole path from the root, run after run, with the state of every row
// (out, sums, top) in scratch memory: no partial states leave the core. Within a run, a *strip* of a
// few rows meets a *piece* of up to 256 keys:
//
//     scores  = q k^T                 panels of ROWS x COLS vectors held in registers
//     weights = 2^(scale scores - top)
//     out    += weights v             the same panels, over the dimensions
//
// (online softmax: Milakov and Gimelshein, arXiv 1805.02867; tiling as in FlashAttention, arXiv
// 2205.14135; rows of many requests in one strip: ChunkAttention, arXiv 2402.15220.)
//
// The file is included into an unnamed namespace by one source per instruction set, which provides
// a class `Ops` (see portable.h). Nothing from the standard library is used here: an inline function
// of it, compiled for a newer processor, could be the copy that the linker keeps for all.

// Panels live in registers: their loops must be unrolled before anything else is decided.
#define FW_UNROLL _Pragma("GCC unroll 16")

// Storage traits: how units (what one side of a product broadcasts) and vectors are read.
//   Ops::W             floats per vector          Ops::Vec
//   Dot::STEP          elements of the summed dimension per step (1, or 2 for pairs)
//   Dot::Unit          the broadcast operand's type, STEP elements
//   Dot::load(p)       a vector of W units from packed memory -> Dot::Packed
//   Dot::UNIT_BYTES    bytes of one unit in packed memory
//   Dot::dot(acc, packed, broadcast)
//   Dot::TILES         whether strips go to matrix tiles instead, see tiles.inl
template <class Ops, class Dot> struct Attention {
    using Vec = typename Ops::Vec;
    using Unit = typename Dot::Unit;
    static constexpr int W = Ops::W;
    static constexpr int ROWS = Ops::ROWS;
    static constexpr int COLS = Ops::COLS;
    static constexpr int STEP = Dot::STEP;
    static constexpr int UNITS = PIECE_ROOM / STEP;  // units of weights per row
    static constexpr float SLACK = 16;  // how far scores may rise above `top` before rescaling
    static constexpr float NEVER = -1e30f;  // the score of a key that the row must not see

    const Task &task;
    Scratch &s;
    const int64_t dim;    // padded
    const int32_t group;
    const int32_t rows;   // state rows of the block: query rows x group
    const char *keys, *values;
    const float scale2;   // |scale| log2(e); the sign went into q

    Attention(const Task &t, Scratch &scratch)
        : task(t), s(scratch), dim(padded_dim(t.call->head_dim)), group(t.call->group),
          rows((t.block->end - t.block->begin) * t.call->group),
          keys(static_cast<const char *>(t.call->keys) + head_offset(t)),
          values(static_cast<const char *>(t.call->values) + head_offset(t)),
          scale2(magnitude(t.call->scale) * 1.44269504088896341f) {}

    static int64_t padded_dim(int64_t d) { return (d + 15) / 16 * 16; }
    static float magnitude(float x) { return x < 0 ? -x : x; }
    static int64_t head_offset(const Task &t) {
        const int64_t elements = t.head * t.call->slots * padded_dim(t.call->head_dim);
        return elements * Dot::UNIT_BYTES / STEP;
    }
    static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
    static int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }

    Unit *q_row(int32_t row) const { return reinterpret_cast<Unit *>(s.q) + row * (dim / STEP); }
    Unit *weight_row(int32_t i) const { return reinterpret_cast<Unit *>(s.weights) + i * UNITS; }
    float *score_row(int32_t i) const { return s.scores + i * PIECE_ROOM; }

    // -- the two matrix products ----------------------------------------------------------------

    // scores[R rows][C vectors] of the tokens that begin at vector `at` of the pool's row of slots.
    template <int R, int C> void score_panel(const Unit *q, int64_t at, float *out) const {
        Vec acc[R][C];
        FW_UNROLL for (int r = 0; r < R; r++)
            FW_UNROLL for (int c = 0; c < C; c++) acc[r][c] = Ops::zero();
        constexpr int PER_GROUP = 16 / W;
        const char *column[C];
        FW_UNROLL for (int c = 0; c < C; c++) {
            const int64_t v = at + c;
            column[c] = keys + (v / PER_GROUP * (dim / STEP) * 16 + v % PER_GROUP * W)
                                   * Dot::UNIT_BYTES;
        }
        const int64_t steps = dim / STEP, per_row = dim / STEP;
        for (int64_t k = 0; k < steps; k++) {
            typename Dot::Packed packed[C];
            FW_UNROLL for (int c = 0; c < C; c++) {
                packed[c] = Dot::load(column[c] + k * 16 * Dot::UNIT_BYTES);
            }
            FW_UNROLL for (int r = 0; r < R; r++) {
                const typename Dot::Broadcast b = Dot::broadcast(q + r * per_row + k);
                FW_UNROLL for (int c = 0; c < C; c++) acc[r][c] = Dot::dot(acc[r][c], packed[c], b);
            }
        }
        FW_UNROLL for (int r = 0; r < R; r++)
            FW_UNROLL for (int c = 0; c < C; c++) Ops::store(out + r * PIECE_ROOM + c * W, acc[r][c]);
    }

    template <int R> void score(const Unit *q, int64_t at, int32_t vectors, float *out) const {
        int32_t v = 0;
        for (; v + COLS <= vectors; v += COLS) score_panel<R, COLS>(q, at + v, out + v * W);
        switch (vectors - v) {
            case 3: if constexpr (COLS > 3) score_panel<R, 3>(q, at + v, out + v * W); break;
            case 2: if constexpr (COLS > 2) score_panel<R, 2>(q, at + v, out + v * W); break;
            case 1: score_panel<R, 1>(q, at + v, out + v * W); break;
            default: break;
        }
    }

    // out[R rows][C vectors of dimensions] += weights over `steps` packed rows of values.
    template <int R, int C>
    void sum_panel(const Unit *weights, const char *v, int64_t steps, float *out) const {
        Vec acc[R][C];
        FW_UNROLL for (int r = 0; r < R; r++)
            FW_UNROLL for (int c = 0; c < C; c++) acc[r][c] = Ops::load(out + r * dim + c * W);
        const int64_t stride = dim * Dot::UNIT_BYTES;
        for (int64_t k = 0; k < steps; k++) {
            typename Dot::Packed packed[C];
            FW_UNROLL for (int c = 0; c < C; c++) {
                packed[c] = Dot::load(v + k * stride + c * W * Dot::UNIT_BYTES);
            }
            FW_UNROLL for (int r = 0; r < R; r++) {
                const typename Dot::Broadcast b = Dot::broadcast(weights + r * UNITS + k);
                FW_UNROLL for (int c = 0; c < C; c++) acc[r][c] = Dot::dot(acc[r][c], packed[c], b);
            }
        }
        FW_UNROLL for (int r = 0; r < R; r++)
            FW_UNROLL for (int c = 0; c < C; c++) Ops::store(out + r * dim + c * W, acc[r][c]);
    }

    template <int R>
    void sum(const Unit *weights, const char *v, int64_t steps, float *out) const {
        const int32_t vectors = static_cast<int32_t>(dim / W);
        int32_t c = 0;
        while (c < vectors) {
            // Five vectors are better summed as three and two than as four and one.
            int32_t width = least(vectors - c, COLS);
            if (vectors - c == COLS + 1 && COLS > 2) width = (COLS + 2) / 2;
            const char *column = v + c * W * Dot::UNIT_BYTES;
            float *to = out + c * W;
            if constexpr (COLS >= 4) {
                if (width == 4) sum_panel<R, 4>(weights, column, steps, to);
            }
            if constexpr (COLS >= 3) {
                if (width == 3) sum_panel<R, 3>(weights, column, steps, to);
            }
            if (width == 2) sum_panel<R, 2>(weights, column, steps, to);
            if (width == 1) sum_panel<R, 1>(weights, column, steps, to);
            c += width;
        }
    }

    // -- softmax ----------------------------------------------------------------------------------

    // Weights of one row from its scores; rescales the row's state if they rose. Vectors cover
    // whole groups of 16; scores outside the row's keys are NEVER and weigh nothing.
    void weigh(int32_t row, int32_t i, int32_t vectors) const {
        float *score = score_row(i);
        Vec high = Ops::load(score);
        for (int32_t v = 1; v < vectors; v++) high = Ops::max(high, Ops::load(score + v * W));
        const float peak = Ops::ceil(Ops::reduce_max(high) * scale2);
        float top = s.top[row];
        if (peak > top + SLACK || top == -Ops::INF) {
            if (top != -Ops::INF) rescale(row, Ops::pow2(top - peak), s.out, s.sums);
            top = s.top[row] = peak;
        }
        Dot::weigh(score, weight_row(i), s.sums + row * LANES, vectors, scale2, top);
    }

    // Of the scores of tokens [0, end), keep those of [from, to).
    static void hide(float *score, int64_t from, int64_t to, int64_t end) {
        for (int64_t t = 0; t < from; t++) score[t] = NEVER;
        for (int64_t t = to; t < end; t++) score[t] = NEVER;
    }

    void rescale(int32_t row, float factor, float *out, float *sums) const {
        const Vec f = Ops::set1(factor);
        float *o = out + row * dim;
        for (int64_t d = 0; d < dim; d += W) Ops::store(o + d, Ops::mul(Ops::load(o + d), f));
        float *l = sums + row * LANES;
        for (int j = 0; j < LANES; j += W) Ops::store(l + j, Ops::mul(Ops::load(l + j), f));
    }

    // -- a strip of rows against a piece of keys ----------------------------------------------------

    // Sum values [from, to) of the pool into R rows. A pair that reaches beyond is read from a copy
    // in which the token that is not ours is zero: it may hold NaN, and zero times that is NaN.
    template <int R>
    void sum_range(int64_t from, int64_t to, int64_t origin, const Unit *weights,
                   float *out) const {
        if constexpr (STEP == 2) {
            if (from & 1) {
                sum_edge<R>(from, 1, origin, weights, out);
                from++;
            }
            const int64_t even = to & ~int64_t{1};
            if (even > from) sum_steps<R>(from, even, origin, weights, out);
            if ((to & 1) && to > from) sum_edge<R>(to - 1, 0, origin, weights, out);
        } else if (to > from) {
            sum_steps<R>(from, to, origin, weights, out);
        }
    }

    template <int R>
    void sum_steps(int64_t from, int64_t to, int64_t origin, const Unit *weights,
                   float *out) const {
        sum<R>(weights + (from - origin) / STEP, values + from / STEP * dim * Dot::UNIT_BYTES,
               (to - from) / STEP, out);
    }

    // The half `half` of the pair that holds `token`, the other half zeroed.
    template <int R>
    void sum_edge(int64_t token, int half, int64_t origin, const Unit *weights,
                  float *out) const {
        const char *pair = values + token / 2 * dim * Dot::UNIT_BYTES;
        const uint16_t *from = reinterpret_cast<const uint16_t *>(pair);
        uint16_t *edge = reinterpret_cast<uint16_t *>(s.edge);
        for (int64_t d = 0; d < dim; d++) {
            edge[2 * d + half] = from[2 * d + half];
            edge[2 * d + 1 - half] = 0;
        }
        sum<R>(weights + (token - origin) / STEP, s.edge, 1, out);
    }

    // Rows [row, row + R) against slots [from, to); `limit[i]` ends what row i sees of them.
    template <int R>
    void strip(int32_t row, int64_t from, int64_t to, const int64_t *limit) const {
        const int64_t origin = from & ~int64_t{15};
        const int32_t vectors = static_cast<int32_t>((to - origin + 15) / 16) * (16 / W);
        score<R>(q_row(row), origin / W, vectors, s.scores);
        int64_t common = to;
        for (int r = 0; r < R; r++) {
            if (limit[r] < common) common = limit[r];
            hide(score_row(r), from - origin, limit[r] - origin, vectors * W);
            weigh(row + r, r, vectors);
        }
        float *out = s.out + row * dim;
        sum_range<R>(from, common, origin, weight_row(0), out);
        for (int r = 0; r < R; r++) {
            if (limit[r] > common) {
                sum_range<1>(common, limit[r], origin, weight_row(r), out + r * dim);
            }
        }
    }

    void strip_of(int32_t count, int32_t row, int64_t from, int64_t to,
                  const int64_t *limit) const {
        switch (count) {
            case 1: strip<1>(row, from, to, limit); break;
            case 2: strip<2>(row, from, to, limit); break;
            case 3: strip<3>(row, from, to, limit); break;
            case 4: strip<4>(row, from, to, limit); break;
            case 5: if constexpr (ROWS >= 5) strip<5>(row, from, to, limit); break;
            default: if constexpr (ROWS >= 6) strip<6>(row, from, to, limit); break;
        }
    }

    // The same on tiles, up to 32 rows. Weights and values go in blocks of 32 tokens; a block that
    // reaches beyond what is ours is copied with the rest zeroed.
    void tiled_strip(int32_t count, int32_t row, int64_t from, int64_t to,
                     const int64_t *limit) const {
        if (s.tile_rows != count) {
            Dot::configure(count);
            s.tile_rows = count;
        }
        const int64_t origin = from & ~int64_t{15};
        const int32_t groups = static_cast<int32_t>((to - origin + 15) / 16);
        Dot::score(reinterpret_cast<const char *>(q_row(row)), count,
                   keys + origin / 16 * dim * 32, groups, dim, s.scores);
        for (int32_t r = 0; r < count; r++) {
            hide(score_row(r), from - origin, limit[r] - origin, groups * 16);
            weigh(row + r, r, groups);
            if (groups % 2) {
                __builtin_memset(s.weights + (r * PIECE_ROOM + groups * 16) * 2, 0, 32);
            }
        }
        float *out = s.out + row * dim;
        const int64_t whole_from = (from - origin + 31) / 32, whole_to = (to - origin) / 32;
        const int64_t blocks = (to - origin + 31) / 32;
        for (int64_t b = 0; b < blocks; b++) {
            if (b >= whole_from && b < whole_to) {
                tiled_sum(count, b, whole_to - b, values + (origin / 2 + b * 16) * dim * 4, out);
                b = whole_to - 1;
            } else {
                copy_block(origin + b * 32, from, to);
                tiled_sum(count, b, 1, s.edge, out);
            }
        }
    }

    void tiled_sum(int32_t count, int64_t block, int64_t blocks, const char *v, float *out) const {
        Dot::sum(s.weights + block * 64, count, v, static_cast<int32_t>(blocks), dim, out);
    }

    // The values of slots [at, at + 32) in s.edge, those outside [from, to) zeroed.
    void copy_block(int64_t at, int64_t from, int64_t to) const {
        const uint16_t *pool = reinterpret_cast<const uint16_t *>(values);
        uint16_t *edge = reinterpret_cast<uint16_t *>(s.edge);
        for (int64_t t = at; t < at + 32; t++) {
            const bool ours = t >= from && t < to;
            const uint16_t *in = pool + (t / 2 * dim) * 2 + t % 2;
            uint16_t *to_edge = edge + ((t - at) / 2 * dim) * 2 + t % 2;
            for (int64_t d = 0; d < dim; d++) to_edge[2 * d] = ours ? in[2 * d] : 0;
        }
    }

    // State rows [first, last) against slots [from, to), the run of `visit` beginning at `start`.
    void piece(const Visit &visit, int32_t first, int32_t last, int64_t start, int64_t from,
               int64_t to) const {
        const bool tiles = Dot::TILES && dim % 32 == 0;
        const int32_t highest = tiles ? STRIP : ROWS, count = last - first;
        const int32_t strips = (count + highest - 1) / highest;
        int32_t row = first;
        for (int32_t i = 0; i < strips; i++) {
            // Strips of even height: seven rows are four and three. Tiles are filled instead.
            const int32_t height = tiles ? least(last - row, STRIP) : (count + i) / strips;
            int64_t limit[STRIP], end = from;
            for (int32_t r = 0; r < height; r++) {
                limit[r] = to;
                if (visit.causal >= 0) {
                    const int64_t seen =
                        start + visit.causal + (row + r) / group - visit.first + 1;
                    if (seen < to) limit[r] = seen;
                }
                if (limit[r] > end) end = limit[r];
            }
            if constexpr (Dot::TILES) {
                if (tiles) {
                    tiled_strip(height, row, from, end, limit);
                    row += height;
                    continue;
                }
            }
            strip_of(height, row, from, end, limit);
            row += height;
        }
    }

    // -- a row's path -----------------------------------------------------------------------------

    void clear(int32_t row) const {
        for (int64_t d = 0; d < dim; d++) s.out[row * dim + d] = 0;
        for (int j = 0; j < LANES; j++) s.sums[row * LANES + j] = 0;
        s.top[row] = -Ops::INF;
    }

    // Add a state to the row's total. Both are sums of weights against a whole top, so bringing
    // them to the higher one is exact.
    void add(int32_t row, const float *out, const float *sums, float top) const {
        if (top == -Ops::INF) return;
        float *o = s.out_all + row * dim, *l = s.sums_all + row * LANES;
        if (s.top_all[row] == -Ops::INF) {
            for (int64_t d = 0; d < dim; d++) o[d] = out[d];
            for (int j = 0; j < LANES; j++) l[j] = sums[j];
            s.top_all[row] = top;
            return;
        }
        const float high = top > s.top_all[row] ? top : s.top_all[row];
        const float a = Ops::pow2(s.top_all[row] - high), b = Ops::pow2(top - high);
        for (int64_t d = 0; d < dim; d++) o[d] = o[d] * a + out[d] * b;
        for (int j = 0; j < LANES; j++) l[j] = l[j] * a + sums[j] * b;
        s.top_all[row] = high;
    }

    // Bring rows [first, last) to `chunk`: whoever was in another one closes it.
    void enter(int32_t first, int32_t last, int32_t chunk) const {
        for (int32_t row = first; row < last; row++) {
            if (s.chunk[row] == chunk) continue;
            if (s.chunk[row] >= 0) {
                add(row, s.out + row * dim, s.sums + row * LANES, s.top[row]);
                clear(row);
            }
            s.chunk[row] = chunk;
        }
    }

    void visit(const Visit &v) const {
        const int64_t start = task.plan->start[v.item];
        int64_t length = task.plan->length[v.item];
        if (v.causal >= 0) length = v.causal + v.count;
        const int32_t last = (v.first + v.count) * group;
        for (int64_t at = 0; at < length;) {
            const int32_t chunk = static_cast<int32_t>((v.base + at) / CHUNK);
            int64_t end = (chunk + int64_t{1}) * CHUNK - v.base;
            if (end > length) end = length;
            if (task.chunk >= 0 && task.chunk != chunk) {
                at = end;
                continue;
            }
            enter(v.first * group, last, chunk);
            for (; at < end;) {
                int64_t to = (start + at) / PIECE * PIECE + PIECE;  // pieces are aligned in the pool
                if (to > start + end) to = start + end;
                int32_t first = v.first;
                if (v.causal >= 0) first += most(0, static_cast<int32_t>(at) - v.causal);
                piece(v, first * group, last, start, start + at, to);
                at = to - start;
            }
        }
    }

    void load_queries() const {
        const fw_call &call = *task.call;
        for (int32_t row = 0; row < rows; row++) {
            const int64_t at = task.plan->order[task.block->begin + row / group];
            const int64_t head = int64_t{task.head} * group + row % group;
            Dot::load_query(call.q, at * call.q_row + head * call.q_head, call.head_dim, dim,
                            call.scale < 0, q_row(row));
        }
    }

    void store(int32_t row, const float *out, const float *sums, float top) const {
        const fw_call &call = *task.call;
        float total = 0;
        for (int j = 0; j < LANES; j++) total += sums[j];
        const int64_t at = task.plan->order[task.block->begin + row / group];
        const int64_t to = at * call.kv_heads * group + int64_t{task.head} * group + row % group;
        call.lse[to] = (top + Ops::log2(total)) * 0.693147180559945309f;
        Dot::store_out(call.out, to * call.head_dim, out, call.head_dim, 1 / total);
    }

    void run() const {
        load_queries();
        s.tile_rows = 0;
        for (int32_t row = 0; row < rows; row++) {
            clear(row);
            s.top_all[row] = -Ops::INF;
            s.chunk[row] = -1;
        }
        for (int32_t i = task.block->visit_begin; i < task.block->visit_end; i++) {
            visit(task.plan->visits[i]);
        }
        if constexpr (Dot::TILES) Dot::release();
        if (task.chunk >= 0) {
            to_partial();
            return;
        }
        for (int32_t row = 0; row < rows; row++) {
            const float *out = s.out + row * dim, *sums = s.sums + row * LANES;
            if (s.top_all[row] == -Ops::INF) {
                store(row, out, sums, s.top[row]);
            } else {
                add(row, out, sums, s.top[row]);
                store(row, s.out_all + row * dim, s.sums_all + row * LANES, s.top_all[row]);
            }
        }
    }

    void to_partial() const {
        const int64_t base = int64_t{task.chunk} * rows;
        for (int32_t row = 0; row < rows; row++) {
            float *out = task.partial.out + (base + row) * dim;
            float *sums = task.partial.sums + (base + row) * LANES;
            for (int64_t d = 0; d < dim; d++) out[d] = s.out[row * dim + d];
            for (int j = 0; j < LANES; j++) sums[j] = s.sums[row * LANES + j];
            task.partial.top[base + row] = s.top[row];
        }
    }

    void merge(int32_t chunks) const {
        for (int32_t row = 0; row < rows; row++) {
            s.top_all[row] = -Ops::INF;
            for (int32_t chunk = 0; chunk < chunks; chunk++) {
                const int64_t at = int64_t{chunk} * rows + row;
                add(row, task.partial.out + at * dim, task.partial.sums + at * LANES,
                    task.partial.top[at]);
            }
            store(row, s.out_all + row * dim, s.sums_all + row * LANES, s.top_all[row]);
        }
    }
};

template <class Ops, class Dot> void run_kernel(const Task &task, Scratch &scratch) {
    Attention<Ops, Dot>(task, scratch).run();
}

template <class Ops, class Dot>
void run_merge(const Task &task, int32_t chunks, Scratch &scratch) {
    Attention<Ops, Dot>(task, scratch).merge(chunks);
}
