#pragma once

#include <atomic>
#include <vector>

namespace ridgeline {

/// Keeps the threads of a loop on cores of their own.
///
/// A system that wakes a worker on the core of the thread that woke it may leave both there for seconds,
/// and a loop takes twice as long. So every thread says where it is, and a worker that finds itself on
/// the core of a lower-numbered thread moves to a free one. It may be moved on from there: nothing is pinned.
class Placement {
public:
    /// For `threads` threads on the cores that the calling thread may use.
    explicit Placement(int threads);

    /// Called by thread `index` at the start of its share.
    void settle(int index);

private:
    struct alignas(64) Seat {
        std::atomic<int> core{-1};
    };

    int current_core() const;
    bool taken(int core, int by_fewer_than) const;
    void move_to(int core);

    std::vector<std::vector<int>> cores_;
    std::vector<int> core_of_cpu_;
    std::vector<Seat> seats_;
};

}  // namespace ridgeline
