#include "layout.h"

#include "foreword.h"
#include "parallel.h"

namespace {

struct Write {
    void *keys, *values;
    int64_t slots;
    int32_t dtype, head_dim, rows;
    const int64_t *at;
    const void *k, *v;
    int64_t k_row, k_head, v_row, v_head;
    int32_t kv_heads;
    int32_t next = 0;

    // All rows of one head. T is the element, PAIR 2 for bf16.
    template <class T, int PAIR> void head(int32_t h) const {
        const int64_t dim = fw::padded(head_dim);
        T *keys_h = static_cast<T *>(keys) + h * fw::head_stride(slots, dim);
        T *values_h = static_cast<T *>(values) + h * fw::head_stride(slots, dim);
        for (int32_t row = 0; row < rows; row++) {
            const int64_t slot = at[row];
            const T *from_k = static_cast<const T *>(k) + row * k_row + h * k_head;
            const T *from_v = static_cast<const T *>(v) + row * v_row + h * v_head;
            T *to_k = keys_h + slot / fw::GROUP * fw::GROUP * dim + slot % fw::GROUP * PAIR;
            T *to_v = values_h + slot / PAIR * PAIR * dim + slot % PAIR;
            for (int64_t d = 0; d < dim; d += PAIR) {
                for (int i = 0; i < PAIR; i++) {
                    const bool real = d + i < head_dim;
                    to_k[d * fw::GROUP + i] = real ? from_k[d + i] : T{0};
                    to_v[(d + i) * PAIR] = real ? from_v[d + i] : T{0};
                }
            }
        }
    }

    void one(int32_t h) const {
        switch (dtype) {
            case FW_F32: head<uint32_t, 1>(h); break;
            case FW_F16: head<uint16_t, 1>(h); break;
            default: head<uint16_t, 2>(h); break;
        }
    }

    static void enter(void *data) {
        Write &write = *static_cast<Write *>(data);
        for (;;) {
            const int32_t h = __atomic_fetch_add(&write.next, 1, __ATOMIC_RELAXED);
            if (h >= write.kv_heads) return;
            write.one(h);
        }
    }
};

}  // namespace

FW_API int32_t fw_write(void *keys, void *values, int64_t slots, int32_t dtype, int32_t kv_heads,
                        int32_t head_dim, int32_t rows, const int64_t *at, const void *k,
                        int64_t k_row, int64_t k_head, const void *v, int64_t v_row,
                        int64_t v_head, int32_t threads) {
    for (int32_t row = 0; row < rows; row++) {
        if (at[row] < 0 || at[row] >= slots) return -1;
    }
    Write write{keys,  values, slots, dtype,  head_dim, rows,   at,
                k,     v,      k_row, k_head, v_row,    v_head, kv_heads};
    // Below some ten thousand elements waking the other threads takes longer than the work.
    const int64_t elements = int64_t{rows} * kv_heads * head_dim;
    fw::parallel(elements < 32768 ? 1 : threads < kv_heads ? threads : kv_heads, Write::enter,
                 &write);
    return 0;
}
