// What a lane and a zygote say to each other, and the fork that makes a job a child of the node.
// How they play together is drawn in zygote.pyx.
#pragma once

#include "native.hpp"

#include <cstring>
#include <ctime>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

namespace pysched {

// One datagram to the zygote: this, then texts that end with a NUL each: first the words, then the environment.
struct StartRequest {
    std::uint64_t token; // names the attempt; comes back with the reply
    std::uint64_t call;  // of a worker: which of its calls it is, from 1; 0: it is for a process of its own
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

// A page that a worker and its lane have in common, see worker.pyx.
struct Desk {
    std::atomic<std::uint64_t> begun; // the worker's: its last call that has begun, released after the two that follow
    std::int64_t started_ns;          // when; CLOCK_BOOTTIME
    std::int64_t started_real_ns;     // CLOCK_REALTIME
    std::atomic<std::uint64_t> heard; // the lane's: the last call whose end it knows, released after its row says so
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

// What a call has left beside what the end of it says.
enum CallLeft : std::uint32_t {
    CALL_LEFT_OUTPUT = 1, // in its log files
    CALL_LEFT_RESULT = 2, // in the file for it, and nothing follows here
};

constexpr std::size_t call_result_max = 1024; // what is longer goes by the file

// One datagram back at the end of a call, by a worker that is ready for another one; its result follows, as JSON.
struct CallEnd {
    std::uint64_t token;
    std::int64_t cpu_ns;     // of this call
    std::int64_t max_rss_kb; // of the worker
    int status;              // as of wait(2)
    std::uint32_t left;      // CallLeft
    char longer[16];         // than a StartReply, by which the two are told apart
};
static_assert(sizeof(CallEnd) > sizeof(StartReply));

constexpr std::size_t start_request_max = 192 * 1024;

// ---- the lane's side ----------------------------------------------------------------------------------------------

// What goes to a worker with the request for its first call: descriptors, -1 for none.
struct Handed {
    int socket;
    int desk;
};

// 0 or errno; EAGAIN: the zygote is behind.
inline int send_start(int socket, StartRequest *request, char *texts, std::size_t size, const Handed *handed) noexcept {
    if (size > start_request_max)
        return EMSGSIZE;
    iovec parts[2] = {{request, sizeof *request}, {texts, size}};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof *handed)] = {};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    if (handed->socket >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof *handed);
        std::memcpy(CMSG_DATA(head), handed, sizeof *handed);
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

inline Desk *desk_map(int file) noexcept {
    void *page = mmap(nullptr, sizeof(Desk), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return page == MAP_FAILED ? nullptr : static_cast<Desk *>(page);
}

inline void desk_unmap(Desk *desk) noexcept {
    if (desk != nullptr)
        munmap(desk, sizeof *desk);
}

inline void handed_close(const Handed *handed) noexcept {
    if (handed->socket >= 0)
        close(handed->socket);
    if (handed->desk >= 0)
        close(handed->desk);
}

// A socket and a desk, and what the worker needs to have them, too; false with errno.
inline bool worker_equip(int *socket, Desk **desk, Handed *handed) noexcept {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return false;
    *socket = pair[0];
    handed->socket = pair[1];
    handed->desk = memfd_create("pysched-desk", MFD_CLOEXEC);
    *desk = nullptr;
    if (handed->desk >= 0 && ftruncate(handed->desk, sizeof(Desk)) == 0)
        *desk = desk_map(handed->desk);
    if (*desk != nullptr)
        return true;
    const int error = errno;
    handed_close(handed);
    close(*socket);
    errno = error;
    return false;
}

enum WorkerSaid { WORKER_NOTHING, WORKER_REFUSED, WORKER_ENDED, WORKER_LEFT };

// What a worker says: why it does not begin a call, or how one has ended.
struct WorkerWords {
    union {
        StartReply refusal;
        CallEnd end;
    };
    char result[call_result_max];
    std::size_t result_size;
};

inline WorkerSaid receive_of_worker(int socket, WorkerWords *words) noexcept {
    ssize_t size;
    iovec parts[2] = {{&words->end, sizeof words->end}, {words->result, sizeof words->result}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    do
        size = recvmsg(socket, &message, MSG_DONTWAIT);
    while (size < 0 && errno == ECONNRESET);
    if (size < 0 && errno == EAGAIN)
        return WORKER_NOTHING;
    if (size == static_cast<ssize_t>(sizeof words->refusal))
        return WORKER_REFUSED;
    if (size < static_cast<ssize_t>(sizeof words->end) || (message.msg_flags & MSG_TRUNC) != 0)
        return WORKER_LEFT;
    words->result_size = static_cast<std::size_t>(size) - sizeof words->end;
    return WORKER_ENDED;
}

// ---- the zygote's side --------------------------------------------------------------------------------------------

struct Inbox {
    StartRequest request;
    char texts[start_request_max];
};

// 1: a request, 0: the node has closed its end, -1: errno, EINTR among them.  `handed`: what came with it, or -1.
inline int receive_start(int socket, Inbox *inbox, Handed *handed) noexcept {
    iovec part = {inbox, sizeof *inbox};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof *handed)];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    handed->socket = handed->desk = -1;
    const ssize_t size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (size < 0)
        return errno == ECONNRESET ? 0 : -1;
    const cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head != nullptr && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS &&
        head->cmsg_len == CMSG_LEN(sizeof *handed))
        std::memcpy(handed, CMSG_DATA(head), sizeof *handed);
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

// ---- files that must stay as they are --------------------------------------------------------------------------------

struct Source {
    const char *path;
    bool there;
    std::int64_t size;
    std::int64_t changed_ns;
};

inline Source source_now(const char *path) noexcept {
    struct stat status;
    if (stat(path, &status) != 0)
        return {path, false, 0, 0};
    return {path, true, status.st_size, std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec};
}

inline bool source_changed(const Source &before) noexcept {
    const Source now = source_now(before.path);
    return now.there != before.there || now.size != before.size || now.changed_ns != before.changed_ns;
}

// ---- the files of a job's output ----------------------------------------------------------------------------------
//
// A worker's call that prints nothing leaves no log: the empty files become the next call's, by two renames, which cost a
// tenth of making two files and of removing them some day.  The condition is that nobody else can still write to them:
// no process that the call has started, and they are what they were.

constexpr std::size_t log_path_max = 4096;

struct Logs {
    bool known;     // what the descriptors 1 and 2 are open on stands below
    bool empty;     // since the end of the call: they may be moved
    dev_t device[2];
    ino_t number[2];
    char path[2][log_path_max];
};

// Whether the descriptor is what we have opened, with nothing in it and under one name.
inline bool log_is_empty(const Logs *logs, int which) noexcept {
    struct stat status;
    return fstat(which + 1, &status) == 0 && status.st_dev == logs->device[which] &&
           status.st_ino == logs->number[which] && S_ISREG(status.st_mode) && status.st_size == 0 &&
           status.st_nlink == 1;
}

inline bool logs_are_empty(const Logs *logs) noexcept {
    return logs->known && log_is_empty(logs, 0) && log_is_empty(logs, 1);
}

inline void logs_note(Logs *logs, const char *const path[2]) noexcept {
    struct stat status;
    logs->known = true;
    for (int which = 0; which < 2; ++which) {
        if (fstat(which + 1, &status) != 0 || std::strlen(path[which]) >= log_path_max) {
            logs->known = false;
            return;
        }
        logs->device[which] = status.st_dev;
        logs->number[which] = status.st_ino;
        std::strcpy(logs->path[which], path[which]);
    }
}

// Whether the descriptors are on empty files of these names now, those of the call before.
inline bool logs_move(Logs *logs, const char *const path[2]) noexcept {
    if (!logs->empty || !logs_are_empty(logs))
        return false;
    for (int which = 0; which < 2; ++which) {
        if (std::strlen(path[which]) >= log_path_max || rename(logs->path[which], path[which]) != 0)
            return false; // one that was moved is opened again
        std::strcpy(logs->path[which], path[which]);
    }
    return true;
}

// The last call has left no output, and there is no next one.
inline void logs_remove(Logs *logs) noexcept {
    if (logs->empty && logs_are_empty(logs))
        for (const char *path : logs->path)
            unlink(path);
}

inline bool is_null_device(int file) noexcept {
    struct stat status;
    return fstat(file, &status) == 0 && S_ISCHR(status.st_mode) && status.st_rdev == makedev(1, 3);
}

// `logs`: of a worker; nullptr: of a process that runs one job.
inline Step output_prepare(const char *const path[2], Logs *logs) noexcept {
    constexpr int flags = O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NOCTTY;
    if (logs != nullptr) {
        const bool moved = logs_move(logs, path);
        logs->empty = false;
        if (moved)
            return STEP_NONE;
        logs->known = false;
    }
    if (!open_as(1, path[0], flags))
        return STEP_STDOUT;
    if (!open_as(2, path[1], flags))
        return STEP_STDERR;
    if (logs != nullptr)
        logs_note(logs, path);
    return STEP_NONE;
}

// ---- a job, or a call, begins and ends ----------------------------------------------------------------------------

inline Step call_prepare(const StartRequest *request, const char *texts, Logs *logs) noexcept {
    const char *const path[2] = {texts + request->output[0], texts + request->output[1]};
    if ((logs == nullptr || !is_null_device(0)) && !open_as(0, "/dev/null", O_RDONLY))
        return STEP_STDIN;
    const Step step = output_prepare(path, logs);
    if (step != STEP_NONE)
        return step;
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

inline Step job_prepare(const StartRequest *request, const char *texts, int table, Logs *logs) noexcept {
    const pid_t pid = getpid();
    if (request->row_pid >= 0 && pwrite(table, &pid, sizeof pid, request->row_pid) < 0)
        return STEP_CLONE;
    if (setsid() < 0)
        return STEP_SESSION;
    return call_prepare(request, texts, logs);
}

// What became of processes that this one has started.
struct Children {
    bool there;            // now
    bool may_be_elsewhere; // some were there since the last look: what those have started may be anywhere
    rusage usage;          // of all that were waited for
};

inline void children_look(Children *children) noexcept {
    const rusage before = children->usage;
    siginfo_t info{};
    struct sigaction action {};
    getrusage(RUSAGE_CHILDREN, &children->usage);
    sigaction(SIGCHLD, nullptr, &action); // where it is ignored, children end unseen
    // No process is without page faults.
    const bool were = children->usage.ru_minflt != before.ru_minflt || children->usage.ru_majflt != before.ru_majflt;
    children->there = waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 || errno != ECHILD;
    children->may_be_elsewhere =
        children->there || were || action.sa_handler == SIG_IGN || (action.sa_flags & SA_NOCLDWAIT) != 0;
}

// Where a worker that makes many calls has its socket to the lane.
constexpr int worker_socket = 3;

// What a worker keeps from call to call.
struct WorkerState {
    Desk *desk; // nullptr: this is no worker
    Logs logs;
    Children children;
};

// In the child: become the job, and say so.  Returns only if the node knows of us now and nothing of the zygote's is open
// but a worker's socket.  `table`: the file of attempts; -1: there is none.
inline void job_begin(const Inbox *inbox, int socket, int table, const Handed *handed, WorkerState *worker) noexcept {
    const bool is_worker = handed->socket >= 0;
    Step step = STEP_NONE;
    if (is_worker && (worker->desk = desk_map(handed->desk)) == nullptr)
        step = STEP_CLONE;
    if (step == STEP_NONE)
        step = job_prepare(&inbox->request, inbox->texts, table, is_worker ? &worker->logs : nullptr);
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
    if (!is_worker) {
        syscall(SYS_close_range, 3U, ~0U, 0U);
        return;
    }
    if (handed->socket != worker_socket && dup3(handed->socket, worker_socket, O_CLOEXEC) < 0)
        _exit(127); // never: both are open
    syscall(SYS_close_range, worker_socket + 1U, ~0U, 0U);
}

// In a worker: say why a call does not begin here.  Whether the node still hears it: then its attempt waits again.
inline void call_refuse(const Inbox *inbox, Step step, int error) noexcept {
    reply_start(worker_socket, inbox->request.token, 0, step, error);
}

// In a worker: get ready for a call and note that it has begun, or say why not; false: it cannot be made here.
inline bool call_begin(const Inbox *inbox, WorkerState *worker) noexcept {
    const Step step = call_prepare(&inbox->request, inbox->texts, &worker->logs);
    if (step != STEP_NONE) {
        call_refuse(inbox, step, errno);
        return false;
    }
    // The hard limit is what it was: the soft one tells by whom this call is known, see worker.pyx.
    syscall(SYS_prlimit64, 0, RLIMIT_RTTIME, &inbox->request.mark, nullptr);
    worker->desk->started_ns = clock_ns(CLOCK_BOOTTIME);
    worker->desk->started_real_ns = clock_ns(CLOCK_REALTIME);
    worker->desk->begun.store(inbox->request.call, std::memory_order_release);
    return true;
}

// What the call that ends has left in its logs; between two calls nothing is written to them.  By the path of a log
// whoever records and prunes finds the file of a result, so where there is one the logs stay, too.
inline std::uint32_t call_leave_output(WorkerState *worker, bool has_result_file) noexcept {
    Logs *logs = &worker->logs;
    logs->empty = !has_result_file && !worker->children.may_be_elsewhere && logs_are_empty(logs);
    if (logs->empty)
        return 0;
    dup2(0, 1);
    dup2(0, 2);
    return CALL_LEFT_OUTPUT;
}

// Whether the node is there to hear it.
inline bool call_end(CallEnd *end, const char *result, std::size_t size) noexcept {
    iovec parts[2] = {{end, sizeof *end}, {const_cast<char *>(result), size}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    ssize_t sent;
    do
        sent = sendmsg(worker_socket, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent == static_cast<ssize_t>(sizeof *end + size);
}

} // namespace pysched
