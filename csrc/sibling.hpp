// What a lane and a zygote say to each other, and the fork that makes a job a child of the node.
// How they play together is drawn in zygote.pyx.
#pragma once

#include "native.hpp"

#include <cstring>
#include <ctime>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

namespace pysched {

// One datagram to the zygote: this, then texts that end with a NUL each: first the words, then the environment.
struct StartRequest {
    std::uint64_t token; // names the attempt; comes back with the reply
    rlimit open_files;
    rlimit mark; // RLIMIT_RTTIME, see tree.pyx
    std::uint64_t processors[processor_bytes / sizeof(std::uint64_t)]; // none: wherever it may run now
    std::int64_t row_pid; // where the attempt's pid stands in the file of attempts; -1: it has no row
    std::uint32_t words;
    std::uint32_t entries;
    std::uint32_t cwd; // where these begin among the texts
    std::uint32_t output[2];
};

// One datagram back, by the job itself: it runs, or it will never.
struct StartReply {
    std::uint64_t token;
    std::int64_t started_ns;      // CLOCK_BOOTTIME
    std::int64_t started_real_ns; // CLOCK_REALTIME
    pid_t pid;                    // 0: there never was a process
    int error;                    // errno of `step`
    std::uint8_t step;            // STEP_NONE: it runs
};

// One datagram back at the end of a call, by a worker that is ready for another one.
struct CallEnd {
    std::uint64_t token;
    std::int64_t cpu_ns; // of this call
    std::int64_t max_rss_kb; // of the worker
    int status;              // as of wait(2)
    char longer[20];         // than a StartReply, by which the two are told apart
};
static_assert(sizeof(CallEnd) != sizeof(StartReply));

constexpr std::size_t start_request_max = 192 * 1024;

// ---- the lane's side ----------------------------------------------------------------------------------------------

// 0 or errno; EAGAIN: the zygote is behind.  `handed`: a descriptor that the other side gets, too; -1: none.
inline int send_start(int socket, StartRequest *request, char *texts, std::size_t size, int handed) noexcept {
    if (size > start_request_max)
        return EMSGSIZE;
    iovec parts[2] = {{request, sizeof *request}, {texts, size}};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof handed)] = {};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    if (handed >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof handed);
        std::memcpy(CMSG_DATA(head), &handed, sizeof handed);
    }
    return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? errno : 0;
}

// 0, EAGAIN, or EPIPE: there is nobody any more who could answer, and every answer has been read.
inline int receive_reply(int socket, StartReply *reply) noexcept {
    ssize_t size;
    do
        size = recv(socket, reply, sizeof *reply, MSG_DONTWAIT);
    while (size < 0 && errno == ECONNRESET); // requests were left unread; said once, before the answers that wait
    if (size == static_cast<ssize_t>(sizeof *reply))
        return 0;
    return size < 0 ? errno : EPIPE;
}

inline bool worker_sockets(int *ours, int *theirs) noexcept {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return false;
    *ours = pair[0];
    *theirs = pair[1];
    return true;
}

enum WorkerSaid { WORKER_NOTHING, WORKER_STARTED, WORKER_ENDED, WORKER_LEFT };

inline WorkerSaid receive_of_worker(int socket, StartReply *reply, CallEnd *end) noexcept {
    union {
        StartReply reply;
        CallEnd end;
    } said;
    ssize_t size;
    do
        size = recv(socket, &said, sizeof said, MSG_DONTWAIT);
    while (size < 0 && errno == ECONNRESET);
    if (size < 0 && errno == EAGAIN)
        return WORKER_NOTHING;
    if (size == static_cast<ssize_t>(sizeof said.reply)) {
        *reply = said.reply;
        return WORKER_STARTED;
    }
    if (size == static_cast<ssize_t>(sizeof said.end)) {
        *end = said.end;
        return WORKER_ENDED;
    }
    return WORKER_LEFT;
}

// The end of a call is known, and stands in its row: the worker's own end says nothing of that call any more.
inline bool acknowledge_end(int socket) noexcept {
    const char word = 0;
    return send(socket, &word, sizeof word, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
}

// ---- the zygote's side --------------------------------------------------------------------------------------------

struct Inbox {
    StartRequest request;
    char texts[start_request_max];
};

// 1: a request, 2: an acknowledgement, 0: the node has closed its end, -1: errno.  `handed`: the descriptor that came with
// it, or -1.
inline int receive_start(int socket, Inbox *inbox, int *handed) noexcept {
    iovec part = {inbox, sizeof *inbox};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof *handed)];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    *handed = -1;
    ssize_t size;
    do
        size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (size < 0 && errno == EINTR);
    if (size < 0)
        return errno == ECONNRESET ? 0 : -1;
    const cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head != nullptr && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
        std::memcpy(handed, CMSG_DATA(head), sizeof *handed);
    if (size == 1)
        return 2;
    return size > static_cast<ssize_t>(sizeof inbox->request) ? 1 : 0;
}

// What glibc's fork() would tell the kernel about the only thread of the child.
struct Sibling {
    void *tid_address; // of the thread's number in its pthread structure
    void *robust_list;
    std::size_t robust_size;
};

// Whether this thread can be forked by `fork_sibling`.  The kernel is asked where libc keeps the thread's number; a libc
// that does not keep it there (musl) is told by the number that stands there.
inline bool sibling_prepare(Sibling *sibling) noexcept {
#if defined(__x86_64__) || defined(__aarch64__)
    int *address = nullptr;
    if (prctl(PR_GET_TID_ADDRESS, &address, 0, 0, 0) != 0 || address == nullptr)
        return false;
    sibling->tid_address = address;
    if (syscall(SYS_get_robust_list, 0, &sibling->robust_list, &sibling->robust_size) != 0)
        return false;
    return *address == static_cast<int>(syscall(SYS_gettid));
#else
    (void)sibling;
    return false;
#endif
}

// fork(2) of a process with a single thread, but the child's parent is ours.  libc's fork() cannot do that.  What it does
// beyond the call is done here: the thread's number is corrected by the kernel, the list of robust mutexes is announced
// again.  What is left out: libc takes its own locks around the call, which only matters if another thread may hold them,
// and runs the handlers of pthread_atfork, which are there to do the same for libraries; there is no other thread.
inline pid_t fork_sibling(const Sibling *sibling) noexcept {
    constexpr unsigned long flags = CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
#if defined(__x86_64__)
    const long pid = syscall(SYS_clone, flags, nullptr, nullptr, sibling->tid_address, 0UL);
#elif defined(__aarch64__)
    const long pid = syscall(SYS_clone, flags, nullptr, nullptr, 0UL, sibling->tid_address);
#else
    const long pid = -1;
    errno = ENOSYS;
#endif
    if (pid == 0)
        syscall(SYS_set_robust_list, sibling->robust_list, sibling->robust_size);
    return static_cast<pid_t>(pid);
}

inline std::int64_t clock_ns(clockid_t clock) noexcept {
    timespec time{};
    clock_gettime(clock, &time);
    return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// From the kernel, which a signal may interrupt.
inline void random_bytes(void *bytes, std::size_t count) noexcept {
    while (getrandom(bytes, count, 0) != static_cast<ssize_t>(count)) {
    }
}

inline bool reply_start(int socket, std::uint64_t token, pid_t pid, Step step, int error) noexcept {
    StartReply reply{};
    reply.token = token;
    reply.started_ns = clock_ns(CLOCK_BOOTTIME);
    reply.started_real_ns = clock_ns(CLOCK_REALTIME);
    reply.pid = pid;
    reply.step = step;
    reply.error = error;
    return send(socket, &reply, sizeof reply, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof reply);
}

inline bool open_as(int wanted, const char *path, int flags) noexcept {
    const int file = open(path, flags, 0640);
    if (file < 0)
        return false;
    if (file == wanted)
        return true;
    const bool moved = dup2(file, wanted) == wanted;
    close(file);
    return moved;
}

inline Step call_prepare(const StartRequest *request, const char *texts) noexcept {
    constexpr int log = O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NOCTTY;
    if (!open_as(0, "/dev/null", O_RDONLY))
        return STEP_STDIN;
    if (!open_as(1, texts + request->output[0], log))
        return STEP_STDOUT;
    if (!open_as(2, texts + request->output[1], log))
        return STEP_STDERR;
    if (chdir(texts + request->cwd) != 0)
        return STEP_CWD;
    if (syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, &request->open_files, nullptr) != 0)
        return STEP_LIMITS;
    for (const std::uint64_t word : request->processors)
        if (word != 0) {
            syscall(SYS_sched_setaffinity, 0, sizeof request->processors, request->processors); // else any will do
            break;
        }
    return STEP_NONE;
}

inline Step job_prepare(const StartRequest *request, const char *texts, int table) noexcept {
    const pid_t pid = getpid();
    if (request->row_pid >= 0 && pwrite(table, &pid, sizeof pid, request->row_pid) < 0)
        return STEP_CLONE;
    if (setsid() < 0)
        return STEP_SESSION;
    return call_prepare(request, texts);
}

// Where a worker that makes many calls has its socket to the lane.
constexpr int worker_socket = 3;

// In the child: become the job, and say so.  Returns only if the node knows of us now and nothing of the zygote's is open
// but `handed`, if it is not -1.  `table`: the file of attempts; -1: there is none.
inline void job_begin(const Inbox *inbox, int socket, int table, int handed) noexcept {
    const Step step = job_prepare(&inbox->request, inbox->texts, table);
    const int error = errno;
    if (!reply_start(socket, inbox->request.token, getpid(), step, error) || step != STEP_NONE)
        _exit(127);
    if (syscall(SYS_prlimit64, 0, RLIMIT_RTTIME, &inbox->request.mark, nullptr) != 0)
        _exit(127); // never: what a process gives up is not refused
    prctl(PR_SET_NAME, "pysched-job", 0, 0, 0);
    sigset_t interrupt; // which the zygote leaves to the node
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_UNBLOCK, &interrupt, nullptr);
    if (handed < 0) {
        syscall(SYS_close_range, 3U, ~0U, 0U);
        return;
    }
    if (handed != worker_socket && dup3(handed, worker_socket, O_CLOEXEC) < 0)
        _exit(127); // never: both are open
    syscall(SYS_close_range, worker_socket + 1U, ~0U, 0U);
}

// In a worker: get ready for a call and say so, or why not; false: it was no call that can be made here.
inline bool call_begin(const Inbox *inbox) noexcept {
    const Step step = call_prepare(&inbox->request, inbox->texts);
    const int error = errno;
    if (step == STEP_NONE)
        // The hard limit is what it was: the soft one tells by whom this call is known, see worker.pyx.
        syscall(SYS_prlimit64, 0, RLIMIT_RTTIME, &inbox->request.mark, nullptr);
    // Whether the node still hears it: its attempt's row has our pid, so this call has begun and will be adopted.
    reply_start(worker_socket, inbox->request.token, step == STEP_NONE ? getpid() : 0, step, error);
    return step == STEP_NONE;
}

// Between two calls nothing is written to the files of the last one.
inline void call_leave_output() noexcept {
    dup2(0, 1);
    dup2(0, 2);
}

inline bool call_end(std::uint64_t token, int status, std::int64_t cpu_ns, std::int64_t max_rss_kb) noexcept {
    CallEnd end{};
    end.token = token;
    end.cpu_ns = cpu_ns;
    end.max_rss_kb = max_rss_kb;
    end.status = status;
    return send(worker_socket, &end, sizeof end, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof end);
}

} // namespace pysched
