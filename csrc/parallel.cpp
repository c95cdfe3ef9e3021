#include "parallel.h"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "foreword.h"

namespace fw {

namespace {

using GompParallel = void (*)(void (*)(void *), void *, unsigned, unsigned);

GompParallel borrowed = nullptr;

// Threads of our own, for where torch's OpenMP cannot be borrowed. Idle ones sleep.
class Pool {
  public:
    void run(int threads, void (*enter)(void *), void *data) {
        std::lock_guard<std::mutex> one(caller_);
        std::unique_lock<std::mutex> lock(mutex_);
        while (static_cast<int>(workers_.size()) < threads - 1) {
            try {
                workers_.emplace_back([this, id = workers_.size()] { serve(id); });
            } catch (...) {
                break;  // fewer threads do the same work
            }
        }
        enter_ = enter;
        data_ = data;
        active_ = threads - 1;
        running_ = active_ < static_cast<int>(workers_.size()) ? active_
                                                              : static_cast<int>(workers_.size());
        round_++;
        lock.unlock();
        start_.notify_all();
        enter(data);
        lock.lock();
        done_.wait(lock, [this] { return running_ == 0; });
    }

  private:
    void serve(size_t id) {
        unsigned long seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            start_.wait(lock, [&] { return round_ != seen; });
            seen = round_;
            if (static_cast<int>(id) >= active_) continue;
            auto enter = enter_;
            auto data = data_;
            lock.unlock();
            enter(data);
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex caller_, mutex_;
    std::condition_variable start_, done_;
    std::vector<std::thread> workers_;
    void (*enter_)(void *) = nullptr;
    void *data_ = nullptr;
    int active_ = 0, running_ = 0;
    unsigned long round_ = 0;
};

}  // namespace

void parallel(int threads, void (*enter)(void *), void *data) {
    if (threads <= 1) {
        enter(data);
    } else if (borrowed != nullptr) {
        borrowed(enter, data, static_cast<unsigned>(threads), 0);
    } else {
        static Pool &pool = *new Pool;  // never destroyed: its threads may outlive main
        pool.run(threads, enter, data);
    }
}

}  // namespace fw

FW_API void fw_set_parallel(void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    fw::borrowed = parallel;
}
