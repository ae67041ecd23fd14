// The library's own threads: made once, reused by every step, asleep when nothing comes for a while.
//
// They spin first and sleep on a futex after, so that a step is entered and its barriers are passed in a few
// hundred nanoseconds, yet a process that does something else keeps its cores. No OpenMP: torch's threads in
// the same process are left alone. A process that was forked makes its own on first use.
#pragma once
#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

#include <atomic>
#include <vector>

namespace wafergpt::native {

class Pool {
  public:
    using Work = void (*)(void* context, int thread);

    // `cpus`: one per thread to bind it to, or empty. The caller is thread 0; it is moved to its CPU at each
    // run and not bound, so that the threads it makes later inherit nothing.
    Pool(int n_threads, std::vector<int> cpus);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const { return n_threads_; }
    // Runs `work` on every thread; returns when all have finished.
    void run(Work work, void* context);
    // Inside `work`: nobody passes before everybody is here.
    void barrier();

  private:
    struct Member {
        Pool* pool;
        int thread;
    };
    static void* enter(void* member);
    void serve(int thread);
    void start();
    void move_caller();
    void wait_while_equal(std::atomic<uint32_t>& word, uint32_t value, std::atomic<uint32_t>& sleepers, int spins);

    int n_threads_;
    std::vector<int> cpus_;
    // In turns of `pause`, 10 to 50 ns each: at least 200 us between steps, where Python takes its rows and makes
    // the next step with caches that the weights have swept; less at a barrier, where the others are at work on as
    // much. With more threads than cores, none: who spins keeps another from getting here.
    int spins_between_runs_ = 20000, spins_at_barrier_ = 3000;
    std::vector<pthread_t> handles_;
    std::vector<Member> members_;
    pid_t owner_ = 0;
    Work work_ = nullptr;
    void* context_ = nullptr;
    bool stop_ = false;
    alignas(64) std::atomic<uint32_t> round_{0};
    std::atomic<uint32_t> round_sleepers_{0};
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> gate_{0};
    std::atomic<uint32_t> gate_sleepers_{0};
};

}  // namespace wafergpt::native
