// The C interface of Foreword's native attention: what Python calls, and nothing else.
//
// Plain C types only, so that one library serves every Python and every torch. No function throws;
// those that can fail return null or a negative number.
#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define FW_API extern "C" __declspec(dllexport)
#else
#define FW_API extern "C" __attribute__((visibility("default")))
#endif

// Grows whenever a struct or a function changes; Python refuses a library of another version.
#define FW_VERSION 1

enum fw_dtype { FW_F32 = 0, FW_F16 = 1, FW_BF16 = 2 };

// A work list, as foreword.attention.WorkList describes it.
struct fw_work {
    int32_t rows, items;
    const int32_t *item_ptr;     // [items + 1]
    const int32_t *item_rows;    // [partials]
    const int32_t *item_start;   // [items]
    const int32_t *item_length;  // [items]
    const uint8_t *item_causal;  // [items]
    const int32_t *row_ptr;      // [rows + 1]
    const int32_t *row_partials; // [partials]
};

// One layer's attention. Strides count elements; the last dimension of q is contiguous.
struct fw_call {
    const void *q;       // [rows, kv_heads * group, head_dim], of `dtype`
    const void *keys;    // packed, see layout.h
    const void *values;  // packed
    void *out;           // [rows, kv_heads * group, head_dim], contiguous, of `dtype`
    float *lse;          // [rows, kv_heads * group], contiguous, natural logarithm
    int64_t q_row, q_head;
    int64_t slots;
    int32_t dtype, kv_heads, group, head_dim, threads;
    float scale;
};

// What a decoder layer does between its matrix products, on `rows` rows. All memory is contiguous
// and of `dtype` (FW_F32 or FW_BF16) but for the row stride of FW_ROPE.
enum fw_layer_op {
    // residual += x (unless x is null); out = residual / rms(residual) * weight; all [rows, dim]
    FW_ADD_NORM = 0,
    // out [rows, heads, dim], rows `row_stride` elements apart, in place: each head divided by its
    // rms and multiplied by weight [heads, dim] (unless that is null), then rotated by
    // cos, sin [rows, dim / 2]
    FW_ROPE = 1,
    // out [rows, dim] = silu(gate) * up, x = [rows, 2 * dim] with the gates first
    FW_SILU_MUL = 2,
};

struct fw_layer {
    int32_t what, dtype;
    void *residual, *out;
    const void *x, *weight, *cos, *sin;
    int64_t rows, heads, dim, row_stride;
    float eps;
    int32_t threads;
};

struct fw_plan;

FW_API int32_t fw_version(void);

// The instruction sets compiled in, fastest first, as "amx,avx512_bf16,..."; static storage.
FW_API const char *fw_isas(void);
// Of those, the index of the fastest that this processor runs for `dtype`; or, if `name` is not
// empty, of that one. -1: no such set here.
FW_API int32_t fw_isa(const char *name, int32_t dtype);

// Let `parallel` (GOMP_parallel of the OpenMP runtime that torch uses) supply the threads; null
// returns to a pool of our own.
FW_API void fw_set_parallel(void (*parallel)(void (*)(void *), void *, unsigned, unsigned));

// Order the rows of a work list into blocks. O(partials log rows). Copies what it needs of `work`.
FW_API fw_plan *fw_plan_new(const fw_work *work, int32_t kv_heads, int32_t group, int32_t threads);
// Take new lengths after the list advanced. O(items).
FW_API void fw_plan_lengths(fw_plan *plan, const int32_t *item_length);
FW_API void fw_plan_free(fw_plan *plan);

// Attention of all rows. Mutates `out`, `lse` and scratch inside `plan`: one call at a time per
// plan. 0 on success, -1 if memory ran out.
FW_API int32_t fw_run(fw_plan *plan, const fw_call *call, int32_t isa);

// Mutates what fw_layer_op says. 0, or -1 if `dim` is no multiple of 16 (32 for FW_ROPE).
FW_API int32_t fw_layer_run(const fw_layer *job, int32_t isa);

// Put `rows` tokens into their slots; k and v are [rows, kv_heads, head_dim] with a contiguous last
// dimension, of the pool's dtype. Strides count elements. 0, or -1, with nothing written, if a slot
// lies outside the pool.
FW_API int32_t fw_write(void *keys, void *values, int64_t slots, int32_t dtype, int32_t kv_heads,
                        int32_t head_dim, int32_t rows, const int64_t *at, const void *k,
                        int64_t k_row, int64_t k_head, const void *v, int64_t v_row,
                        int64_t v_head, int32_t threads);
