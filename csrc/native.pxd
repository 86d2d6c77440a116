"""What `native.hpp` and the system's headers offer to the parts of the core."""

from cpython.pythread cimport PyLockStatus, PyThread_type_lock
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic
from posix.resource cimport rlimit, rusage
from posix.types cimport pid_t


cdef extern from "native.hpp" namespace "pysched" nogil:
    cdef cppclass padded_atomic[T](atomic[T]):
        pass

    # 3: CLASSES of ticket.pyx
    cdef cppclass class_counts "pysched::padded_array<std::int64_t, 3>":
        atomic[int64_t]& operator[](size_t index)

    # 9: COUNTERS of counters.pyx
    cdef cppclass counter_array "pysched::padded_array<std::uint64_t, 9>":
        atomic[uint64_t]& operator[](size_t index)

    # 3392: CELLS of histogram.pyx
    cdef cppclass latency_array "pysched::padded_array<std::uint64_t, 3392>":
        atomic[uint64_t]& operator[](size_t index)

    cdef cppclass padded_mutex:
        void lock()
        void unlock()

    void assert_32_bytes[T](T* null)
    void assert_128_bytes[T](T* null)
    void* checked_realloc(void* memory, size_t bytes)
    T* construct[T](void* memory)

    enum Step:
        STEP_NONE
        STEP_CLONE
        STEP_SESSION
        STEP_STDIN
        STEP_STDOUT
        STEP_STDERR
        STEP_CWD
        STEP_LIMITS
        STEP_EXEC

    cdef cppclass SignalReset:
        bint by_kernel

    SignalReset signal_reset()

    cdef cppclass Spawn:
        char** words
        char** environment
        char** candidates
        const char* cwd
        const char** output
        const rlimit* open_files
        rlimit mark
        const SignalReset* signals
        const void* processors
        int leaf
        pid_t* pid_place
        pid_t pid
        int pidfd
        int error
        uint8_t step

    void* map_child_stack()
    void unmap_child_stack(void* base)
    void spawn_process(Spawn* spawn, void* stack)
    bint read_affinity(pid_t pid, uint64_t* bits, size_t size)
    int pidfd_send_signal(int pidfd, int signal)
    int pidfd_open(pid_t pid)
    bint pidfd_ended(int pidfd)
    void pidfd_await(int pidfd, int ms)
    int peek_exit(int pidfd)
    int peek_end(int pidfd, int* status, rusage* usage)
    int peek_status(int pidfd)
    int probe_kernel()

cdef extern from "<thread>" namespace "std" nogil:
    cdef cppclass thread:
        void join() except +

cdef extern from "native.hpp" namespace "pysched":
    thread* start_thread(void (*entry)(void*) noexcept nogil, void* argument, const char* name) except +

cdef extern from "native.hpp" namespace "pysched" nogil:
    thread* try_thread(void (*entry)(void*) noexcept nogil, void* argument, const char* name)

cdef extern from "<vector>" namespace "std" nogil:
    # std::vector as the lanes use it: running out of memory ends the process (an exception that leaves a thread)
    # instead of losing a ticket behind an "unraisable" message.
    cdef cppclass array "std::vector"[T]:
        void push_back(const T&)
        void pop_back()
        void reserve(size_t)
        void clear()
        size_t size()
        bint empty()
        T& operator[](size_t)
        T& back()
        T* data()
        void swap(array[T]&)
        void resize(size_t)

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLLIN
        EPOLLET
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL

    union epoll_data_t:
        void* ptr

    struct epoll_event:
        uint32_t events
        epoll_data_t data

    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int limit, int timeout_ms)

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

    int eventfd(unsigned int value, int flags)
    ctypedef unsigned long long eventfd_t

    int eventfd_write(int fd, eventfd_t value)
    int eventfd_read(int fd, eventfd_t* value)

cdef extern from "<sys/timerfd.h>" nogil:
    enum:
        TFD_CLOEXEC
        TFD_NONBLOCK
        TFD_TIMER_ABSTIME

    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec

    struct itimerspec:
        timespec it_interval
        timespec it_value

    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* new_value, itimerspec* old_value)

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_REALTIME
        CLOCK_BOOTTIME

    int clock_gettime(int clock, timespec* now)

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
        POLLPRI

    struct pollfd:
        int fd
        short events
        short revents

    int ppoll(pollfd* fds, unsigned long count, const timespec* timeout, void* mask)

cdef extern from "Python.h" nogil:
    # Missing from cpython.pythread.  Microseconds, <0: for ever; `interruptible`: PY_LOCK_INTR after a signal.
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long timeout_us, int interruptible)

cdef extern from "<fcntl.h>" nogil:
    enum:
        O_CLOEXEC
        O_NOFOLLOW
        O_PATH

    int posix_fallocate(int fd, long long offset, long long size)

    enum:
        AT_FDCWD
        AT_REMOVEDIR
        AT_SYMLINK_NOFOLLOW
        F_RDLCK
        F_SETLEASE
        F_SETSIG
        O_NONBLOCK
        POSIX_FADV_DONTNEED

    int fcntl(int fd, int command, ...)

    int openat(int folder, const char* path, int flags, ...)
    int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)

cdef extern from "<unistd.h>" nogil:
    enum:
        F_OK

    int faccessat(int folder, const char* path, int mode, int flags)
    int syncfs(int fd)
    int unlinkat(int folder, const char* path, int flags)

cdef extern from "<sys/stat.h>" nogil:
    ctypedef struct file_status "struct stat":
        uint64_t st_dev
        uint64_t st_ino
        uint32_t st_mode
        int64_t st_size
        timespec st_mtim

    bint S_ISREG(uint32_t mode)
    int mkdirat(int folder, const char* path, uint32_t mode)
    int status_of "fstat"(int fd, file_status* status)
    int status_at "fstatat"(int folder, const char* path, file_status* status, int flags)

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs:
        long f_type

    int fstatfs(int fd, statfs* status)

cdef extern from "<stdio.h>" nogil:
    int renameat(int old_folder, const char* old_path, int new_folder, const char* new_path)

cdef extern from "<dirent.h>" nogil:
    ctypedef struct DIR:
        pass

    struct dirent:
        char* d_name

    DIR* opendir(const char* path)
    int descriptor_of "dirfd"(DIR* folder)
    dirent* readdir(DIR* folder)
    void rewinddir(DIR* folder)
    int closedir(DIR* folder)

cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_SET_CHILD_SUBREAPER
        PR_GET_CHILD_SUBREAPER

    int prctl(int option, ...)

cdef extern from "<sys/resource.h>" nogil:
    enum:
        RLIMIT_RTTIME

    int prlimit(pid_t pid, int resource, const rlimit* new_limit, rlimit* old_limit)
