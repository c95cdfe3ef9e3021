#include "plan.h"

#include <algorithm>
#include <new>
#include <numeric>

namespace {

using fw::Block;
using fw::Visit;

// Which item a partial belongs to, and which of its rows.
struct Place {
    int32_t item, index;
};

class Builder {
  public:
    Builder(const fw_work &work, fw_plan &plan) : work_(work), plan_(plan) {}

    void build() {
        locate();
        sort_rows();
        const int32_t rows_per_block = block_rows();
        const int32_t rows = work_.rows;
        for (int32_t begin = 0; begin < rows; begin += rows_per_block) {
            add_block(begin, std::min(begin + rows_per_block, rows));
        }
        std::stable_sort(plan_.blocks.begin(), plan_.blocks.end(),
                         [](const Block &a, const Block &b) { return a.cost > b.cost; });
    }

  private:
    void locate() {
        places_.resize(work_.item_ptr[work_.items]);
        for (int32_t item = 0; item < work_.items; item++) {
            for (int32_t p = work_.item_ptr[item]; p < work_.item_ptr[item + 1]; p++) {
                places_[p] = {item, p - work_.item_ptr[item]};
            }
        }
    }

    // Depth-first order of the tree: rows that share more of their path stand closer together.
    void sort_rows() {
        auto &order = plan_.order;
        order.resize(work_.rows);
        std::iota(order.begin(), order.end(), 0);
        std::sort(order.begin(), order.end(), [this](int32_t a, int32_t b) {
            const int32_t *pa = work_.row_partials + work_.row_ptr[a];
            const int32_t *pb = work_.row_partials + work_.row_ptr[b];
            const int32_t na = work_.row_ptr[a + 1] - work_.row_ptr[a];
            const int32_t nb = work_.row_ptr[b + 1] - work_.row_ptr[b];
            for (int32_t i = 0; i < std::min(na, nb); i++) {
                const int32_t ia = places_[pa[i]].item, ib = places_[pb[i]].item;
                if (ia != ib) return ia < ib;
            }
            if (na != nb) return na < nb;
            return a < b;
        });
    }

    // As many rows as fill a block, fewer where threads would be idle; evenly divided.
    int32_t block_rows() const {
        const int32_t rows = std::max(work_.rows, 1);
        int32_t blocks = (rows * plan_.group + fw::BLOCK - 1) / fw::BLOCK;
        const int32_t wanted = 4 * plan_.threads;  // tasks, so that the last ones end together
        if (blocks * plan_.kv_heads < wanted) {
            const int32_t most = (rows * plan_.group + 15) / 16;  // at least 16 rows in each
            blocks = std::max(blocks, std::min(most, (wanted - 1) / plan_.kv_heads + 1));
        }
        blocks = std::min(std::max(blocks, 1), rows);
        return (rows + blocks - 1) / blocks;
    }

    void add_block(int32_t begin, int32_t end) {
        Block block{begin, end, static_cast<int32_t>(plan_.visits.size()), 0, 0, 0};
        // Every (item, row) of the block, then by item: ancestors come first in the list's order.
        entries_.clear();
        for (int32_t i = begin; i < end; i++) {
            const int32_t row = plan_.order[i];
            int64_t base = 0;
            for (int32_t p = work_.row_ptr[row]; p < work_.row_ptr[row + 1]; p++) {
                const Place place = places_[work_.row_partials[p]];
                const bool causal = work_.item_causal[place.item];
                entries_.push_back({place.item, i - begin, causal ? place.index : -1, base});
                base += causal ? place.index + 1 : work_.item_length[place.item];
            }
            block.cost += base;
            block.chunks = std::max(block.chunks, static_cast<int32_t>((base - 1) / fw::CHUNK) + 1);
        }
        std::stable_sort(entries_.begin(), entries_.end(), [](const Entry &a, const Entry &b) {
            return a.item != b.item ? a.item < b.item : a.row < b.row;
        });
        for (const Entry &e : entries_) {
            if (static_cast<size_t>(block.visit_begin) < plan_.visits.size()) {
                Visit &last = plan_.visits.back();
                const bool behind = last.item == e.item && last.first + last.count == e.row &&
                                    last.base == e.base &&
                                    (e.causal < 0 || last.causal + last.count == e.causal);
                if (behind) {
                    last.count++;
                    continue;
                }
            }
            plan_.visits.push_back({e.item, e.row, 1, e.causal, e.base});
        }
        block.visit_end = static_cast<int32_t>(plan_.visits.size());
        plan_.blocks.push_back(block);
    }

    struct Entry {
        int32_t item, row, causal;
        int64_t base;
    };

    const fw_work &work_;
    fw_plan &plan_;
    std::vector<Place> places_;
    std::vector<Entry> entries_;
};

}  // namespace

FW_API fw_plan *fw_plan_new(const fw_work *work, int32_t kv_heads, int32_t group,
                            int32_t threads) {
    fw_plan *plan = nullptr;
    try {
        plan = new fw_plan{kv_heads, group, std::max(threads, 1), {}, {}, {}, {}, {}, {}};
        plan->start.assign(work->item_start, work->item_start + work->items);
        plan->length.assign(work->item_length, work->item_length + work->items);
        Builder(*work, *plan).build();
        return plan;
    } catch (const std::bad_alloc &) {
        delete plan;
        return nullptr;
    }
}

FW_API void fw_plan_lengths(fw_plan *plan, const int32_t *item_length) {
    std::copy(item_length, item_length + plan->length.size(), plan->length.begin());
    for (Block &block : plan->blocks) {
        for (int32_t i = block.visit_begin; i < block.visit_end; i++) {
            const Visit &visit = plan->visits[i];
            const int64_t last = visit.base + plan->length[visit.item] - 1;
            block.chunks = std::max(block.chunks, static_cast<int32_t>(last / fw::CHUNK) + 1);
        }
    }
}

FW_API void fw_plan_free(fw_plan *plan) { delete plan; }
