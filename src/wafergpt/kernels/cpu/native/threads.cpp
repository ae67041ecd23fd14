#include "threads.h"

#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>

#include <initializer_list>
#include <system_error>

namespace wafergpt::native {
namespace {

long futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
    return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, nullptr, nullptr, 0);
}

void wake(std::atomic<uint32_t>& word, std::atomic<uint32_t>& sleepers) {
    if (sleepers.load() != 0) futex(word, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

void bind(pthread_t thread, int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(thread, sizeof set, &set);  // not allowed: it stays where the system puts it
}

}  // namespace

Pool::Pool(int n_threads, std::vector<int> cpus) : n_threads_(n_threads), cpus_(std::move(cpus)) {
    cpu_set_t allowed;
    const bool known = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
    if (known && CPU_COUNT(&allowed) < n_threads) spins_between_runs_ = spins_at_barrier_ = 0;
    start();
}

Pool::~Pool() {
    if (owner_ != getpid()) return;  // a fork's copy: the threads are the parent's
    stop_ = true;
    round_.fetch_add(1);
    futex(round_, FUTEX_WAKE_PRIVATE, INT32_MAX);
    for (pthread_t handle : handles_) pthread_join(handle, nullptr);
}

void Pool::start() {
    owner_ = getpid();
    round_ = round_sleepers_ = arrived_ = gate_ = gate_sleepers_ = 0;
    handles_.clear();
    members_.clear();
    for (int thread = 1; thread < n_threads_; ++thread) members_.push_back({this, thread});
    // Signals are for the threads that the program knows of, but for a thread's own faults.
    sigset_t others, before;
    sigfillset(&others);
    for (int own : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP, SIGABRT}) sigdelset(&others, own);
    pthread_sigmask(SIG_SETMASK, &others, &before);
    int failure = 0;
    for (Member& member : members_) {
        pthread_t handle;
        failure = pthread_create(&handle, nullptr, enter, &member);
        if (failure != 0) break;
        if (!cpus_.empty()) bind(handle, cpus_[member.thread]);
        handles_.push_back(handle);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (failure == 0) return;
    stop_ = true;
    round_.fetch_add(1);
    futex(round_, FUTEX_WAKE_PRIVATE, INT32_MAX);
    for (pthread_t handle : handles_) pthread_join(handle, nullptr);
    throw std::system_error(failure, std::generic_category(), "cannot start a thread");
}

void* Pool::enter(void* member) {
    static_cast<Member*>(member)->pool->serve(static_cast<Member*>(member)->thread);
    return nullptr;
}

void Pool::serve(int thread) {
    for (uint32_t seen = 0;;) {
        wait_while_equal(round_, seen, round_sleepers_, spins_between_runs_);
        seen = round_.load();
        if (stop_) return;
        work_(context_, thread);
        barrier();
    }
}

void Pool::run(Work work, void* context) {
    if (owner_ != getpid()) start();
    if (!cpus_.empty()) move_caller();
    work_ = work;
    context_ = context;
    round_.fetch_add(1);
    wake(round_, round_sleepers_);
    work(context, 0);
    barrier();
}

void Pool::move_caller() {
    if (sched_getcpu() == cpus_[0]) return;
    cpu_set_t before;
    if (pthread_getaffinity_np(pthread_self(), sizeof before, &before) != 0) return;
    bind(pthread_self(), cpus_[0]);
    pthread_setaffinity_np(pthread_self(), sizeof before, &before);
}

void Pool::barrier() {
    if (n_threads_ == 1) return;
    const uint32_t gate = gate_.load();
    if (arrived_.fetch_add(1) + 1 == static_cast<uint32_t>(n_threads_)) {
        arrived_.store(0);
        gate_.fetch_add(1);
        wake(gate_, gate_sleepers_);
        return;
    }
    wait_while_equal(gate_, gate, gate_sleepers_, spins_at_barrier_);
}

void Pool::wait_while_equal(std::atomic<uint32_t>& word, uint32_t value, std::atomic<uint32_t>& sleepers, int spins) {
    for (int i = 0; i < spins; ++i) {
        if (word.load(std::memory_order_acquire) != value) return;
        __builtin_ia32_pause();
    }
    sleepers.fetch_add(1);
    while (word.load() == value) futex(word, FUTEX_WAIT_PRIVATE, value);
    sleepers.fetch_sub(1);
}

}  // namespace wafergpt::native
