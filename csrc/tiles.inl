// The products of a strip of up to 32 rows on AMX tiles, 2 x 2 tiles of 16 x 16 sums at a time.
//
// Included into an unnamed namespace after kernel.inl and avx512_bf16.h, by a source that defines
// the tile instructions as macros: FW_TILE_CONFIGURE(memory), FW_TILE_RELEASE(),
// FW_TILE_LOAD(tile, address, stride), FW_TILE_STORE, FW_TILE_ZERO(tile), FW_TILE_DOT(sums, a, b).
// Macros, since the number of a tile is part of its instruction.
//
// Tiles 0 and 1 hold rows (queries or weights), 2 and 3 keys or values, 4 to 7 sums.

struct TiledBFloat16 : PairedBFloat16 {
    static constexpr bool TILES = true;

    struct alignas(64) Config {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    };

    // Tiles for `rows` rows, 1 to 32: sums of rows that are not there must not be touched.
    static void configure(int32_t rows) {
        Config c = {};
        const int32_t upper = rows < 16 ? rows : 16;
        const int32_t lower = rows - upper > 0 ? rows - upper : 1;
        const int32_t height[8] = {upper, lower, 16, 16, upper, upper, lower, lower};
        c.palette = 1;
        for (int t = 0; t < 8; t++) {
            c.bytes[t] = 64;
            c.rows[t] = static_cast<uint8_t>(height[t]);
        }
        FW_TILE_CONFIGURE(&c);
    }
    static void release() { FW_TILE_RELEASE(); }

    // scores[rows][16 * groups] of packed key groups. `dim` is a multiple of 32.
    static void score(const char *q, int32_t rows, const char *keys, int32_t groups, int64_t dim,
                      float *scores) {
        const int64_t row_bytes = dim * 2, group_bytes = dim * 32;
        const int64_t score_bytes = PIECE_ROOM * 4;
        const bool two = rows > 16;
        const char *q_low = q + 16 * row_bytes;
        for (int32_t g = 0; g < groups; g += 2) {
            const bool pair = g + 1 < groups;
            const char *first = keys + g * group_bytes, *second = first + group_bytes;
            float *to = scores + g * 16;
            FW_TILE_ZERO(4);
            FW_TILE_ZERO(5);
            FW_TILE_ZERO(6);
            FW_TILE_ZERO(7);
            for (int64_t k = 0; k < dim / 32; k++) {
                FW_TILE_LOAD(0, q + k * 64, row_bytes);
                FW_TILE_LOAD(2, first + k * 1024, 64);
                FW_TILE_DOT(4, 0, 2);
                if (pair) {
                    FW_TILE_LOAD(3, second + k * 1024, 64);
                    FW_TILE_DOT(5, 0, 3);
                }
                if (two) {
                    FW_TILE_LOAD(1, q_low + k * 64, row_bytes);
                    FW_TILE_DOT(6, 1, 2);
                    if (pair) FW_TILE_DOT(7, 1, 3);
                }
            }
            FW_TILE_STORE(4, to, score_bytes);
            if (pair) FW_TILE_STORE(5, to + 16, score_bytes);
            if (two) {
                FW_TILE_STORE(6, to + 16 * PIECE_ROOM, score_bytes);
                if (pair) FW_TILE_STORE(7, to + 16 * PIECE_ROOM + 16, score_bytes);
            }
        }
    }

    // out[rows][dim] += weights[rows][32 * blocks] times packed values, which begin at `values`.
    static void sum(const char *weights, int32_t rows, const char *values, int32_t blocks,
                    int64_t dim, float *out) {
        const int64_t weight_bytes = PIECE_ROOM * 2, value_bytes = dim * 4, out_bytes = dim * 4;
        const bool two = rows > 16;
        const char *low = weights + 16 * weight_bytes;
        for (int64_t d = 0; d < dim; d += 32) {
            float *to = out + d, *to_low = to + 16 * dim;
            FW_TILE_LOAD(4, to, out_bytes);
            FW_TILE_LOAD(5, to + 16, out_bytes);
            if (two) {
                FW_TILE_LOAD(6, to_low, out_bytes);
                FW_TILE_LOAD(7, to_low + 16, out_bytes);
            }
            const char *column = values + d * 4;
            for (int32_t b = 0; b < blocks; b++, column += 16 * value_bytes) {
                FW_TILE_LOAD(0, weights + b * 64, weight_bytes);
                FW_TILE_LOAD(2, column, value_bytes);
                FW_TILE_LOAD(3, column + 64, value_bytes);
                FW_TILE_DOT(4, 0, 2);
                FW_TILE_DOT(5, 0, 3);
                if (two) {
                    FW_TILE_LOAD(1, low + b * 64, weight_bytes);
                    FW_TILE_DOT(6, 1, 2);
                    FW_TILE_DOT(7, 1, 3);
                }
            }
            FW_TILE_STORE(4, to, out_bytes);
            FW_TILE_STORE(5, to + 16, out_bytes);
            if (two) {
                FW_TILE_STORE(6, to_low, out_bytes);
                FW_TILE_STORE(7, to_low + 16, out_bytes);
            }
        }
    }
};
