// What Cython cannot say: aligned types, starting a std::thread, and the vfork-style child.
// Everything that decides anything is in the .pyx files.
#pragma once

#include <atomic>
#include <bit>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <mutex>
#include <new>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace pysched {

// Two lines: the adjacent-line prefetcher of current x86 cores pulls 64-byte lines in pairs.
constexpr std::size_t cache_line = 128;

template <class T> struct alignas(cache_line) padded_atomic : std::atomic<T> {
    using std::atomic<T>::atomic;
};

template <class T, std::size_t N> struct alignas(cache_line) padded_array {
    std::atomic<T> &operator[](std::size_t index) noexcept { return values_[index]; }

  private:
    std::atomic<T> values_[N]{};
};

// A mutex on a line of its own.  lock() can only fail for misuse (EDEADLK, EINVAL), so it does not throw.
struct alignas(cache_line) padded_mutex {
    void lock() noexcept { mutex_.lock(); }
    void unlock() noexcept { mutex_.unlock(); }

  private:
    std::mutex mutex_;
};

// A million tickets wait in a queue: their size is a promise.
template <class T> void assert_32_bytes(T *) noexcept { static_assert(sizeof(T) == 32); }

// A file is made of rows like this, which processes of other versions read.
template <class T> void assert_128_bytes(T *) noexcept { static_assert(sizeof(T) == 128); }

// Memory that grows with what waits.  Without it no ticket can be kept, and losing one silently is worse than ending:
// everything here can be rebuilt from the store.
inline void *checked_realloc(void *memory, std::size_t bytes) noexcept {
    void *grown = std::realloc(memory, bytes);
    if (grown == nullptr)
        std::terminate();
    return grown;
}

template <class T> T *construct(void *memory) noexcept { return new (memory) T(); }

// Starts `entry(argument)` with every signal blocked but SIGCHLD, so that signals keep going to Python's threads.
//
// The kernel tells the thread that started a child of its end first.  Nobody here waits for SIGCHLD, so it shall be
// dropped on the spot, which it is only where it is not blocked; blocked, it would be queued for the process and wake
// Python's main thread at the end of each child.  A handler that Python has may run in our thread: it takes notes.
// Throws std::system_error.
inline std::thread *start_thread(void (*entry)(void *), void *argument, const char *name) {
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGCHLD);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    struct Restore {
        sigset_t *mask;
        ~Restore() { pthread_sigmask(SIG_SETMASK, mask, nullptr); }
    } restore{&before};
    auto *thread = new std::thread(entry, argument);
    pthread_setname_np(thread->native_handle(), name);
    return thread;
}

// The same for whoever can do without it; nullptr: there is none to be had.
inline std::thread *try_thread(void (*entry)(void *), void *argument, const char *name) noexcept {
    try {
        return start_thread(entry, argument, name);
    } catch (...) {
        return nullptr;
    }
}

// ---- the vfork-style child --------------------------------------------------------------------------------------

enum Step : std::uint8_t {
    STEP_NONE,
    STEP_CLONE,
    STEP_SESSION,
    STEP_STDIN,
    STEP_STDOUT,
    STEP_STDERR,
    STEP_CWD,
    STEP_LIMITS,
    STEP_EXEC,
};

// What a child must do to begin with the dispositions of a fresh login.  exec resets handlers by itself and keeps what
// is ignored; but once the mask is open, a handler would run in the parent's memory, so handlers must be gone before.
struct SignalReset {
    bool by_kernel;          // clone3 with CLEAR_SIGHAND takes the handlers away
    std::uint64_t ignored;   // what is left to reset: bit N-1 for signal N
};

struct Spawn {
    // in
    char **words;            // words[0] is spare; words[1…] is argv, NULL at the end
    char **environment;      // NULL at the end
    char **candidates;       // paths of the executable, NULL at the end
    const char *cwd;         //
    const char *output[2];   // files for stdout and stderr
    const rlimit *open_files; // of the child
    rlimit mark;             // its RLIMIT_RTTIME, see tree.pyx
    const SignalReset *signals;
    const void *processors; // bits for sched_setaffinity(2); NULL: any
    int leaf;               // descriptor of the cgroup to be born in; -1: ours.  Out: -1 if the kernel has refused that
    pid_t *pid_place; // shared memory in which the kernel writes the pid before the child's first instruction; or NULL
    // out
    pid_t pid;
    int pidfd;
    int error;               // errno of `step`; written by the child through the shared memory
    std::uint8_t step;       // STEP_NONE: the program runs
};

// The size of a set of processors, in bits for sched_setaffinity(2).
constexpr std::size_t processor_bytes = 128;

constexpr std::size_t child_stack_size = 64 * 1024;

// Memory for the child, with a guard page below; NULL: out of memory.
inline void *map_child_stack() noexcept {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void *base = mmap(nullptr, page + child_stack_size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (base == MAP_FAILED)
        return nullptr;
    mprotect(base, page, PROT_NONE);
    return base;
}

inline void unmap_child_stack(void *base) noexcept {
    if (base != nullptr)
        munmap(base, static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) + child_stack_size);
}

// The child runs in the parent's memory while the calling thread stands still, so it may only make system calls and
// write to its own stack and to `Spawn`.  Raw system calls: no wrapper of libc, no interceptor of a sanitizer may keep
// notes about the child in memory that is the parent's.
#define PYSCHED_CHILD __attribute__((no_sanitize("thread", "address", "undefined"), no_stack_protector, noinline))

[[noreturn]] PYSCHED_CHILD static inline void child_fail(Spawn *spawn, Step step) noexcept {
    spawn->error = errno;
    spawn->step = step;
    for (;;)
        syscall(SYS_exit_group, 127);
}

PYSCHED_CHILD static inline void child_open(Spawn *spawn, Step step, const char *path, int flags, int wanted) noexcept {
    const long fd = syscall(SYS_openat, AT_FDCWD, path, flags, 0640);
    if (fd == wanted)
        return;
    if (fd >= 0)
        errno = EBADF; // every descriptor was closed, so the lowest free one is the wanted one
    child_fail(spawn, step);
}

// Also libc's own 32 and 33, which posix_spawn(3) leaves ignored in what it starts, and so may have left in us.
PYSCHED_CHILD static inline void child_reset_signals(std::uint64_t ignored) noexcept {
    const std::uint64_t empty[4] = {0, 0, 0, 0}; // of the kernel: handler SIG_DFL, flags, restorer, mask
    for (; ignored != 0; ignored &= ignored - 1)
        syscall(SYS_rt_sigaction, std::countr_zero(ignored) + 1, empty, nullptr, sizeof empty[0]);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &empty, nullptr, sizeof empty[0]);
}

// execvpe(3) on a list of paths: what is not there is passed over, EACCES is remembered, a file of no known format
// is given to /bin/sh.  Returns only if nothing could be run, with errno.
PYSCHED_CHILD static inline void child_exec(Spawn *spawn) noexcept {
    char **argv = spawn->words + 1;
    bool denied = false;
    for (char **path = spawn->candidates; *path != nullptr; ++path) {
        syscall(SYS_execve, *path, argv, spawn->environment);
        if (errno == ENOEXEC) {
            static char shell[] = "/bin/sh";
            char *name = argv[0];
            spawn->words[0] = shell;
            argv[0] = *path;
            syscall(SYS_execve, shell, spawn->words, spawn->environment);
            argv[0] = name;
        }
        if (errno == EACCES)
            denied = true;
        else if (errno != ENOENT && errno != ENOTDIR && errno != ESTALE && errno != ENODEV && errno != ETIMEDOUT)
            return;
    }
    if (denied)
        errno = EACCES;
}

PYSCHED_CHILD static inline int child_main(void *argument) noexcept {
    auto *spawn = static_cast<Spawn *>(argument);
    // The table of descriptors is shared until here.  UNSHARE together with "close all" gives this process an empty
    // one without ever copying the parent's, which may hold thousands of pidfds.
    if (syscall(SYS_close_range, 0U, ~0U, CLOSE_RANGE_UNSHARE) != 0)
        child_fail(spawn, STEP_CLONE);
    if (syscall(SYS_setsid) < 0)
        child_fail(spawn, STEP_SESSION);
    constexpr int log = O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NOCTTY;
    child_open(spawn, STEP_STDIN, "/dev/null", O_RDONLY, 0);
    child_open(spawn, STEP_STDOUT, spawn->output[0], log, 1);
    child_open(spawn, STEP_STDERR, spawn->output[1], log, 2);
    if (syscall(SYS_chdir, spawn->cwd) != 0)
        child_fail(spawn, STEP_CWD);
    if (syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, spawn->open_files, nullptr) != 0)
        child_fail(spawn, STEP_LIMITS);
    if (syscall(SYS_prlimit64, 0, RLIMIT_RTTIME, &spawn->mark, nullptr) != 0)
        child_fail(spawn, STEP_LIMITS);
    if (spawn->processors != nullptr) // in vain if one has been taken from us since: then any will do
        syscall(SYS_sched_setaffinity, 0, processor_bytes, spawn->processors);
    child_reset_signals(spawn->signals->ignored);
    child_exec(spawn);
    child_fail(spawn, STEP_EXEC);
}

// ThreadSanitizer's clone() takes every child for a fork and clears its notes about the other threads, here in memory
// that is the parent's too.  The other name of the same function passes it by.
#ifdef __SANITIZE_THREAD__
extern "C" int __clone(int (*)(void *), void *, int, void *, ...);
#define PYSCHED_CLONE __clone
#else
#define PYSCHED_CLONE clone
#endif

// clone3(2), which no libc wraps: the child begins in `child_main` on a stack of its own.
#if defined(__x86_64__)
#define PYSCHED_CLONE3
inline pid_t clone3_spawn(Spawn *spawn, clone_args *how) noexcept {
    long result;
    // The kernel keeps every register but rax, rcx and r11, in the child as well.  The end of the stack is aligned to 16
    // bytes, as a call wants it.
    asm volatile("syscall\n\t"
                 "test %%rax, %%rax\n\t"
                 "jnz 1f\n\t"
                 "mov %[spawn], %%rdi\n\t"
                 "call *%[entry]\n\t"
                 "hlt\n"
                 "1:"
                 : "=a"(result)
                 : "0"(SYS_clone3), "D"(how), "S"(sizeof *how), [spawn] "r"(spawn), [entry] "r"(child_main)
                 : "rcx", "r11", "cc", "memory");
    if (result < 0)
        errno = static_cast<int>(-result);
    return result < 0 ? -1 : static_cast<pid_t>(result);
}
#endif

// How this process's children come to a fresh login's dispositions.  Where clone3 is not to be had (another processor, a
// container whose filter refuses it), they reset every signal themselves: 62 calls, a tenth of the start of an empty
// program.  What is ignored is read once, so who ignores another signal later hands that on to children.
inline SignalReset signal_reset() noexcept {
    SignalReset reset{false, 0};
#ifdef PYSCHED_CLONE3
    reset.by_kernel = syscall(SYS_clone3, nullptr, 0) < 0 && errno == EINVAL; // the size is wrong, the call is known
#endif
    for (int signal = 1; signal <= 64; ++signal) {
        std::uint64_t now[4];
        if (signal == SIGKILL || signal == SIGSTOP)
            continue;
        syscall(SYS_rt_sigaction, signal, nullptr, now, sizeof now[0]);
        if (!reset.by_kernel || now[0] == reinterpret_cast<std::uintptr_t>(SIG_IGN))
            reset.ignored |= std::uint64_t{1} << (signal - 1);
    }
    return reset;
}

// Starts the program of `spawn` as a session leader with clone(VM|VFORK): the cost does not grow with the parent's
// memory.  Returns when the child has called exec or given up.  The calling thread must have every signal blocked but
// SIGCHLD, which nobody sends to a child: the child shares its memory, and no handler may run there.
inline void spawn_process(Spawn *spawn, void *stack_base) noexcept {
    char *bottom = static_cast<char *>(stack_base) + sysconf(_SC_PAGESIZE);
    spawn->error = 0;
    spawn->step = STEP_NONE;
    spawn->pidfd = -1;
    const int flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PIDFD |
                      (spawn->pid_place != nullptr ? CLONE_CHILD_SETTID : 0);
#ifdef PYSCHED_CLONE3
    if (spawn->signals->by_kernel) {
        clone_args how{};
        how.flags = static_cast<std::uint64_t>(flags) | CLONE_CLEAR_SIGHAND;
        how.pidfd = reinterpret_cast<std::uintptr_t>(&spawn->pidfd);
        how.child_tid = reinterpret_cast<std::uintptr_t>(spawn->pid_place);
        how.exit_signal = SIGCHLD;
        how.stack = reinterpret_cast<std::uintptr_t>(bottom);
        how.stack_size = child_stack_size;
        spawn->pid = -1;
        if (spawn->leaf >= 0) {
            how.flags |= CLONE_INTO_CGROUP;
            how.cgroup = static_cast<std::uint64_t>(spawn->leaf);
            spawn->pid = clone3_spawn(spawn, &how);
            how.flags &= ~std::uint64_t{CLONE_INTO_CGROUP};
            how.cgroup = 0;
        }
        if (spawn->pid < 0) {
            spawn->leaf = -1;
            spawn->pid = clone3_spawn(spawn, &how);
        }
    } else
#endif
    {
        spawn->leaf = -1;
        spawn->pid = PYSCHED_CLONE(child_main, bottom + child_stack_size, flags | SIGCHLD, spawn, &spawn->pidfd,
                                   nullptr, spawn->pid_place);
    }
    if (spawn->pid < 0) {
        spawn->error = errno;
        spawn->step = STEP_CLONE;
        return;
    }
    if (spawn->step != STEP_NONE) { // the child has given up: nobody shall ever see it
        close(spawn->pidfd);
        while (waitpid(spawn->pid, nullptr, 0) < 0 && errno == EINTR)
            ;
    }
}

#undef PYSCHED_CHILD
#undef PYSCHED_CLONE
#undef PYSCHED_CLONE3

// ---- system calls without a libc wrapper in the oldest supported libc ---------------------------------------------

// Which processors a process may use, as bits; false with errno.  The kernel's own set may be shorter.
inline bool read_affinity(pid_t pid, std::uint64_t *bits, std::size_t size) noexcept {
    for (std::size_t word = 0; word < size / sizeof *bits; ++word)
        bits[word] = 0;
    return syscall(SYS_sched_getaffinity, pid, size, bits) > 0;
}

inline int pidfd_send_signal(int pidfd, int signal) noexcept {
    return static_cast<int>(syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0));
}

inline int pidfd_open(pid_t pid) noexcept { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

// Whether the process has ended, be it a zombie or reaped.
inline bool pidfd_ended(int pidfd) noexcept {
    pollfd watched{pidfd, POLLIN, 0};
    return poll(&watched, 1, 0) == 1;
}

// Until it has, or so many milliseconds have passed.
inline void pidfd_await(int pidfd, int ms) noexcept {
    pollfd watched{pidfd, POLLIN, 0};
    poll(&watched, 1, ms);
}

// waitid(P_PIDFD) that leaves the zombie in place: 0 it has ended, else errno (ECHILD: somebody else reaped it).
inline int peek_exit(int pidfd) noexcept {
    siginfo_t info{};
    if (waitid(static_cast<idtype_t>(3 /* P_PIDFD, glibc ≥2.36 */), static_cast<id_t>(pidfd), &info,
               WEXITED | WNOHANG | WNOWAIT) != 0)
        return errno;
    return info.si_pid != 0 ? 0 : EAGAIN;
}

inline int wait_status(const siginfo_t &info) noexcept {
    return info.si_code == CLD_EXITED ? W_EXITCODE(info.si_status, 0)
                                      : info.si_status | (info.si_code == CLD_DUMPED ? WCOREFLAG : 0);
}

// The same with all that wait4 would tell; by the system call itself, whose last argument libc does not pass on.
inline int peek_end(int pidfd, int *status, rusage *usage) noexcept {
    siginfo_t info{};
    if (syscall(SYS_waitid, 3, pidfd, &info, WEXITED | WNOHANG | WNOWAIT, usage) != 0)
        return errno;
    if (info.si_pid == 0)
        return EAGAIN;
    *status = wait_status(info);
    return 0;
}

// The raw wait status of an ended child that stays uncollected; -1: somebody else collected it.
inline int peek_status(int pidfd) noexcept {
    siginfo_t info{};
    if (waitid(static_cast<idtype_t>(3), static_cast<id_t>(pidfd), &info, WEXITED | WNOHANG | WNOWAIT) != 0)
        return -1;
    return wait_status(info);
}

// 0, or the errno that shows which kernel feature is missing: close_range with UNSHARE (Linux 5.9) is the newest needed.
inline int probe_kernel() noexcept {
    return syscall(SYS_close_range, ~0U, ~0U, 0U) == 0 ? 0 : errno;
}

} // namespace pysched
