#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "threads/placement.h"

namespace ridgeline {

/// A fixed set of threads that share loops. Thread t of n always gets items
/// [items * t / n, items * (t + 1) / n), so what a thread does depends on nothing but the sizes.
///
/// Workers spin for a short while after a loop, since the next one usually follows at once, then
/// sleep. The caller works as thread 0. A loop inside a loop runs on the thread that meets it.
class Pool {
public:
    using Body = void (*)(const void* context, int64_t begin, int64_t end);

    static constexpr int kMaxThreads = 1024;

    explicit Pool(int threads) : threads_(threads) {}
    ~Pool() { stop(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_.load(std::memory_order_relaxed); }

    /// Waits for a running loop, then goes on with `threads` threads.
    void resize(int threads);

    /// Runs body over [0, items). Rethrows what the lowest-numbered thread that failed threw.
    void run(int64_t items, Body body, const void* context);

private:
    void start();
    void stop();
    void work(int index, uint32_t seen);
    void run_share(int index) noexcept;
    void wait_for_workers();

    struct Task {
        int64_t items = 0;
        Body body = nullptr;
        const void* context = nullptr;
        int shares = 0;
    };

    std::mutex busy_;  // one loop at a time; callers from other threads wait
    std::atomic<int> threads_;
    std::vector<std::thread> workers_;
    std::vector<std::exception_ptr> errors_;
    std::unique_ptr<Placement> placement_;
    Task task_;
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<uint32_t> generation_{0};  // counts loops; workers wait for it to move
    alignas(64) std::atomic<int> pending_{0};          // workers that have not finished their share
};

/// The calling thread's pool: the process's, unless it has one of its own. It is made on first use, and made
/// anew in a forked child, which has no threads but its own.
Pool& pool();

/// Gives the calling thread a pool of its own until it ends, so that it computes beside the other threads
/// instead of in turns with them.
void use_own_pool(int threads);

/// Runs f(begin, end) over [0, items) on the calling thread's pool.
template <class F>
void parallel_for(int64_t items, const F& f) {
    pool().run(
        items,
        [](const void* context, int64_t begin, int64_t end) {
            (*static_cast<const F*>(context))(begin, end);
        },
        &f);
}

}  // namespace ridgeline
