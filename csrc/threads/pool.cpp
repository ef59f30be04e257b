#include "threads/pool.h"

#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "threads/cores.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace ridgeline {
namespace {

/// How long a thread looks for work before it sleeps. Between two kernels of a step lie 10-50 us.
constexpr std::chrono::microseconds kSpin{100};

thread_local bool inside_loop = false;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/// Spins until done() or until the spinning time is over; returns done().
template <class Done>
bool spin(Done done) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (done()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return done();
}

int initial_threads() {
    const char* text = std::getenv("RIDGELINE_THREADS");
    if (text == nullptr || *text == '\0') return available_cores();
    char* end = nullptr;
    const long threads = std::strtol(text, &end, 10);
    if (*end != '\0' || threads < 1 || threads > Pool::kMaxThreads)
        throw std::invalid_argument("RIDGELINE_THREADS is '" + std::string(text) +
                                    "'; give a whole number from 1 to " + std::to_string(Pool::kMaxThreads));
    return static_cast<int>(threads);
}

std::atomic<Pool*> process_pool{nullptr};
std::atomic<int> chosen_threads{0};  // survives a fork, unlike the pool
thread_local std::unique_ptr<Pool> own_pool;

/// The child of a fork has none of its parent's workers, and maybe a lock that one of them held:
/// it leaves the old pool alone and makes its own when it needs one.
void forget_pool() {
    if (Pool* old = process_pool.exchange(nullptr)) chosen_threads = old->threads();
    if (Pool* old = own_pool.release()) own_pool = std::make_unique<Pool>(old->threads());
    inside_loop = false;
}

void watch_forks() {
#if defined(__unix__) || defined(__APPLE__)
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
    (void)registered;
#endif
}

}  // namespace

void Pool::resize(int threads) {
    std::lock_guard lock(busy_);
    if (threads == threads_) return;
    stop();
    threads_ = threads;
}

void Pool::start() {
    errors_.resize(threads());
    placement_ = std::make_unique<Placement>(threads());
    workers_.reserve(threads() - 1);
    const uint32_t now = generation_.load();
    try {
        for (int i = 1; i < threads(); ++i) workers_.emplace_back([this, i, now] { work(i, now); });
    } catch (...) {  // the system has no more threads to give
        stop();
        throw;
    }
}

void Pool::stop() {
    stopping_ = true;
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
}

void Pool::run(int64_t items, Body body, const void* context) {
    if (items <= 0) return;
    if (inside_loop || items == 1 || threads() == 1) return body(context, 0, items);
    std::lock_guard lock(busy_);
    if (static_cast<int>(workers_.size()) + 1 != threads()) start();
    task_ = {items, body, context, threads()};
    pending_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    placement_->settle(0);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    inside_loop = true;
    run_share(0);
    inside_loop = false;
    wait_for_workers();
    std::exception_ptr first;
    for (auto& error : errors_) {
        if (error && !first) first = error;
        error = nullptr;
    }
    if (first) std::rethrow_exception(first);
}

void Pool::wait_for_workers() {
    if (spin([this] { return pending_.load(std::memory_order_acquire) == 0; })) return;
    for (int left = pending_.load(std::memory_order_acquire); left != 0;
         left = pending_.load(std::memory_order_acquire))
        pending_.wait(left, std::memory_order_acquire);
}

void Pool::work(int index, uint32_t seen) {
    inside_loop = true;
    for (;;) {
        auto moved = [this, seen] { return generation_.load(std::memory_order_acquire) != seen; };
        if (!spin(moved)) generation_.wait(seen, std::memory_order_acquire);
        if (!moved()) continue;
        ++seen;  // the next loop can't begin before this thread has finished its share of this one
        if (stopping_) return;
        placement_->settle(index);
        run_share(index);
        pending_.fetch_sub(1, std::memory_order_release);
        pending_.notify_one();
    }
}

void Pool::run_share(int index) noexcept {
    const int64_t begin = task_.items * index / task_.shares;
    const int64_t end = task_.items * (index + 1) / task_.shares;
    if (begin == end) return;
    try {
        task_.body(task_.context, begin, end);
    } catch (...) {
        errors_[index] = std::current_exception();
    }
}

Pool& pool() {
    if (own_pool) return *own_pool;
    Pool* found = process_pool.load(std::memory_order_acquire);
    if (found != nullptr) return *found;
    watch_forks();
    const int chosen = chosen_threads.load();
    Pool* fresh = new Pool(chosen > 0 ? chosen : initial_threads());
    if (process_pool.compare_exchange_strong(found, fresh)) return *fresh;
    delete fresh;
    return *found;
}

void use_own_pool(int threads) {
    watch_forks();
    own_pool = std::make_unique<Pool>(threads);
}

}  // namespace ridgeline
