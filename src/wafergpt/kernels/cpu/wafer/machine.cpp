// The clock: every cycle each PE's core and router act once on the state at its start, in any order and in several
// threads with the same result. Cycles in which nothing can move are skipped and counted apart.
#include "machine.h"

#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

namespace wafergpt::wafer {

thread_local bool raised_here = false;

namespace {

constexpr int kMaxThreads = 64;

class Barrier {
  public:
    explicit Barrier(int n) : n_(n) {}
    void wait() {
        if (n_ == 1) return;
        const int phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++)
            if (spins > 4000) sched_yield();
    }

  private:
    const int n_;
    std::atomic<int> arrived_{0}, phase_{0};
};

struct Report {
    bool moved, fault;
    int32_t next;
    char pad[64];
};

struct Run {
    const Machine& m;
    int64_t limit;
    int n_threads;
    std::vector<Watch> watch;
    Barrier barrier;
    Report reports[2][kMaxThreads];
    int stop = STOP_QUIET;
    bool leaked = false;
};

void prepare(Run& run, int64_t pe) {
    Watch& watch = run.watch[static_cast<size_t>(pe)];
    watch = Watch{};
    for (int32_t& pushed : watch.pushed) pushed = -1;
    for (int thread = 0; thread < kThreads; thread++)
        if (run.m.slots[(pe * kThreads + thread) * kSlotWords + SLOT_OP] >= 0) watch.threads |= 1u << thread;
}

inline bool router_wanted(const Watch& watch, int32_t cycle) {
    if (watch.router <= cycle) return true;
    for (int port = 0; port < kPorts; port++)
        if (__atomic_load_n(&watch.pushed[port], __ATOMIC_ACQUIRE) >= watch.looked) return true;
    return false;
}

// When this PE may act by itself after `cycle`: a timer, or a wavelet on its way (then the next cycle).
int32_t next_event(const Machine& m, const Watch& watch, int64_t pe, int32_t cycle) {
    if (m.latest[pe] > cycle) return cycle + 1;
    int64_t next = kNever;
    if (m.busy_until[pe] > cycle) next = m.busy_until[pe];
    const bool waits = m.pc[pe] >= 0 && !(watch.threads & 1u);
    if (waits && m.main_ready[pe] > cycle && m.main_ready[pe] < next) next = m.main_ready[pe];
    return static_cast<int32_t>(next);
}

bool leaks(const Machine& m) {
    const int64_t n = m.width * m.height;
    int64_t balance = 0, in_flight = 0;
    for (int64_t pe = 0; pe < n; pe++) balance += m.created[pe] - m.removed[pe];
    for (int64_t q = 0; q < n * m.n_colors * kQueues; q++)
        in_flight += m.q_tail[q] - static_cast<uint32_t>(m.q_head[q]);
    return balance != in_flight;
}

// One thread's share of the PEs until the run stops. All threads take the same decisions from the same reports.
void work(Run& run, int thread) {
    const Machine& m = run.m;
    const int64_t n = m.width * m.height, n_threads = run.n_threads;
    const int64_t first = n * thread / n_threads, last = n * (thread + 1) / n_threads;
    for (int64_t i = first; i < last; i++) prepare(run, m.order[i]);
    Watch* watch = run.watch.data();
    int64_t cycle = m.clock[0], skipped = 0, idle = 0, last_moved = m.clock[2] - 1;
    const int64_t limit = run.limit;
    int parity = 0, stop = -1;
    raised_here = false;
    run.barrier.wait();
    while (stop < 0) {
        const int32_t now = static_cast<int32_t>(cycle);
        bool moved = false;
        for (int64_t i = first; i < last; i++) {
            const int64_t pe = m.order[i];
            if (watch[pe].core <= now) moved |= core_step(m, watch, pe, now);
            if (router_wanted(watch[pe], now)) moved |= router_step(m, watch, pe, now);
        }
        Report* reports = run.reports[parity];
        reports[thread].moved = moved;
        reports[thread].fault = raised_here;
        run.barrier.wait();
        bool any = false, fault = false;
        for (int i = 0; i < n_threads; i++) any |= reports[i].moved, fault |= reports[i].fault;
        if (m.check) {
            if (thread == 0) run.leaked = leaks(m);
            run.barrier.wait();
            if (run.leaked) stop = STOP_LEAK;
        }
        parity ^= 1;
        int64_t next = cycle + 1;
        if (fault) {
            stop = STOP_FAULT;
        } else if (any) {
            last_moved = cycle;
        } else {
            idle++;
            int32_t soonest = kNever;
            for (int64_t i = first; i < last; i++) {
                const int32_t mine_next = next_event(m, watch[m.order[i]], m.order[i], now);
                if (mine_next < soonest) soonest = mine_next;
            }
            reports[thread].next = soonest;
            run.barrier.wait();
            for (int i = 0; i < n_threads; i++)
                if (reports[i].next < soonest) soonest = reports[i].next;
            if (soonest == kNever) stop = STOP_QUIET;
            else next = soonest, skipped += soonest - cycle - 1;
        }
        if (stop < 0 && next >= limit) stop = STOP_LIMIT;
        cycle = next;
    }
    if (thread == 0) {
        m.clock[0] = cycle;
        m.clock[1] += skipped;
        m.clock[2] = last_moved + 1;
        m.clock[3] += idle;
        run.stop = stop;
    }
}

}  // namespace

}  // namespace wafergpt::wafer

#pragma GCC visibility push(default)
extern "C" {

int64_t wm_machine_bytes() { return sizeof(wafergpt::wafer::Machine); }

// Advance until nothing moves, a fault, or `limit` (absolute cycle, below 2^30); returns a `Stop`.
int64_t wm_run(const wafergpt::wafer::Machine* machine, int64_t limit, int64_t n_threads) {
    using namespace wafergpt::wafer;
    const int64_t n = machine->width * machine->height;
    const int threads = static_cast<int>(n_threads < 1 ? 1 : n_threads > kMaxThreads ? kMaxThreads : n_threads > n ? n : n_threads);
    Run run{*machine, limit, threads, std::vector<Watch>(static_cast<size_t>(n)), Barrier(threads), {}, STOP_QUIET, false};
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; thread++) others.emplace_back([&run, thread] { work(run, thread); });
    work(run, 0);
    for (std::thread& other : others) other.join();
    return run.stop;
}
}
#pragma GCC visibility pop
