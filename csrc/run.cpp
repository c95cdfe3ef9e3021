// Handing the tasks of a work list to threads.

#include <string.h>

#include <atomic>
#include <new>

#include "kernel.h"
#include "layout.h"
#include "parallel.h"

namespace fw {

namespace {

constexpr int64_t LINE = 64;

int64_t lines(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

// Takes consecutive pieces of memory, each on a cache line of its own.
struct Carver {
    char *at;
    template <class T> T *take(int64_t count) {
        char *piece = at;
        at += lines(count * static_cast<int64_t>(sizeof(T)));
        return reinterpret_cast<T *>(piece);
    }
};

Scratch carve_from(Carver c, int64_t rows, int64_t dim, char **end) {
    Scratch s;
    s.q = c.take<char>(rows * dim * 4);
    s.out = c.take<float>((rows + STRIP) * dim);
    s.sums = c.take<float>(rows * LANES);
    s.top = c.take<float>(rows);
    s.out_all = c.take<float>(rows * dim);
    s.sums_all = c.take<float>(rows * LANES);
    s.top_all = c.take<float>(rows);
    s.chunk = c.take<int32_t>(rows);
    s.scores = c.take<float>(STRIP * PIECE_ROOM);
    s.weights = c.take<char>(STRIP * PIECE_ROOM * 4);
    s.edge = c.take<char>(STRIP * dim * 2);
    *end = c.at;
    return s;
}

}  // namespace

int64_t scratch_bytes(int64_t rows, int64_t dim) {
    char *end;
    carve_from(Carver{nullptr}, rows, dim, &end);
    return end - static_cast<char *>(nullptr);
}

Scratch carve(char *memory, int64_t rows, int64_t dim) {
    char *end;
    return carve_from(Carver{memory}, rows, dim, &end);
}

namespace {

// The tasks of one call, taken one by one by whichever thread is free. What a task computes does
// not depend on who runs it.
struct Job {
    fw_plan *plan;
    const fw_call *call;
    Kernel kernel;
    Merge merge;
    int32_t splits;  // chunks that are tasks of their own; 0: paths are walked whole
    int64_t rows, dim, per_thread;  // rows: of the tallest block, times the group
    char *scratch;
    Partial partial;  // of all tasks, one after the other
    std::atomic<int32_t> thread{0}, next{0};
    bool merging = false;

    int32_t pairs() const {
        return static_cast<int32_t>(plan->blocks.size()) * plan->kv_heads;
    }
    int32_t tasks() const { return splits && !merging ? pairs() * splits : pairs(); }

    Partial partial_of(int32_t pair) const {
        const int64_t at = int64_t{pair} * splits * rows;
        return {partial.out + at * dim, partial.sums + at * LANES, partial.top + at};
    }

    void work() {
        Scratch mine = carve(scratch + thread.fetch_add(1) * per_thread, rows, dim);
        const int32_t count = tasks();
        for (int32_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
            const bool split = splits && !merging;
            const int32_t pair = split ? i / splits : i;
            const Block &block = plan->blocks[pair / plan->kv_heads];
            Task task{plan, &block, call, pair % plan->kv_heads, split ? i % splits : -1, {}};
            if (splits) task.partial = partial_of(pair);
            if (merging) {
                merge(task, block.chunks, mine);
            } else if (!split || task.chunk < block.chunks) {
                kernel(task, mine);
            }
        }
    }

    static void enter(void *job) { static_cast<Job *>(job)->work(); }
};

const Isa *const ISAS[] = {
#ifdef FW_AMX
    &ISA_AMX,
#endif
#ifdef FW_AVX512_BF16
    &ISA_AVX512_BF16,
#endif
#ifdef FW_AVX512
    &ISA_AVX512,
#endif
#ifdef FW_AVX2
    &ISA_AVX2,
#endif
    &ISA_PORTABLE,
#ifdef FW_AMX_EMULATED
    &ISA_AMX_EMULATED,  // last, since it is taken only by name
#endif
};
constexpr int32_t ISA_COUNT = sizeof(ISAS) / sizeof(ISAS[0]);

}  // namespace

}  // namespace fw

FW_API int32_t fw_version(void) { return FW_VERSION; }

FW_API const char *fw_isas(void) {
    static char names[256] = "";
    char line[256] = "";
    for (int32_t i = 0; i < fw::ISA_COUNT; i++) {
        if (i) strcat(line, ",");
        strcat(line, fw::ISAS[i]->name);
    }
    memcpy(names, line, sizeof line);
    return names;
}

FW_API int32_t fw_isa(const char *name, int32_t dtype) {
    for (int32_t i = 0; i < fw::ISA_COUNT; i++) {
        const fw::Isa &isa = *fw::ISAS[i];
        const bool wanted = *name ? strcmp(name, isa.name) == 0 : true;
        if (wanted && isa.kernel[dtype] != nullptr && isa.here()) return i;
    }
    return -1;
}

FW_API int32_t fw_run(fw_plan *plan, const fw_call *call, int32_t isa) {
    using namespace fw;
    if (plan->blocks.empty()) return 0;
    Job job;
    job.plan = plan;
    job.call = call;
    job.kernel = ISAS[isa]->kernel[call->dtype];
    job.merge = ISAS[isa]->merge[call->dtype];
    job.dim = padded(call->head_dim);
    int32_t longest = 0, tallest = 0;
    for (const Block &block : plan->blocks) {
        if (block.chunks > longest) longest = block.chunks;
        if (block.end - block.begin > tallest) tallest = block.end - block.begin;
    }
    job.rows = int64_t{tallest} * plan->group;
    const int32_t threads = plan->threads;
    job.splits = job.pairs() < 2 * threads && threads > 1 && longest > 1 ? longest : 0;
    job.per_thread = lines(scratch_bytes(job.rows, job.dim)) + LINE;
    const int64_t rows = int64_t{job.pairs()} * job.splits * job.rows;
    const int64_t shared = 3 * LINE + rows * (job.dim + LANES + 1) * 4;
    try {
        plan->scratch.resize(job.per_thread * threads + shared + LINE);
    } catch (const std::bad_alloc &) {
        return -1;
    }
    char *memory = plan->scratch.data();
    memory += (LINE - reinterpret_cast<uintptr_t>(memory) % LINE) % LINE;
    job.scratch = memory;
    Carver carver{memory + job.per_thread * threads};
    job.partial.out = carver.take<float>(rows * job.dim);
    job.partial.sums = carver.take<float>(rows * LANES);
    job.partial.top = carver.take<float>(rows);
    parallel(threads < job.tasks() ? threads : job.tasks(), Job::enter, &job);
    if (job.splits) {
        job.merging = true;
        job.thread = 0;
        job.next = 0;
        parallel(threads < job.tasks() ? threads : job.tasks(), Job::enter, &job);
    }
    return 0;
}

namespace {

struct LayerJob {
    const fw_layer *job;
    fw::Layer run;
    int32_t threads;
    std::atomic<int32_t> next{0};

    static void enter(void *data) {
        LayerJob &self = *static_cast<LayerJob *>(data);
        const int64_t rows = self.job->rows, shares = self.threads;
        for (int64_t i = self.next.fetch_add(1); i < shares; i = self.next.fetch_add(1)) {
            self.run(*self.job, rows * i / shares, rows * (i + 1) / shares);
        }
    }
};

}  // namespace

FW_API int32_t fw_layer_run(const fw_layer *job, int32_t isa) {
    const fw::Layer run = fw::ISAS[isa]->layer[job->dtype];
    if (run == nullptr || job->dim % (job->what == FW_ROPE ? 2 * fw::GROUP : fw::GROUP)) return -1;
    // A row's work, in elements; small jobs are done before another thread would be awake.
    const int64_t work = job->rows * job->dim * (job->what == FW_ROPE ? job->heads : 1);
    int64_t threads = work < 32768 ? 1 : job->threads;
    if (threads > job->rows) threads = job->rows;
    if (threads < 1) return 0;
    LayerJob task{job, run, static_cast<int32_t>(threads)};
    fw::parallel(task.threads, LayerJob::enter, &task);
    return 0;
}
