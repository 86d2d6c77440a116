"""What `sibling.hpp` offers to both sides of a zygote's socket."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from posix.resource cimport rlimit
from posix.types cimport pid_t

from native cimport Step


cdef extern from "sibling.hpp" namespace "pysched" nogil:
    cdef cppclass StartRequest:
        uint64_t token
        rlimit open_files
        rlimit mark
        uint64_t* processors
        int64_t row_pid
        uint32_t words
        uint32_t entries
        uint32_t cwd
        uint32_t* output

    cdef cppclass StartReply:
        uint64_t token
        int64_t started_ns
        int64_t started_real_ns
        pid_t pid
        int error
        uint8_t step

    cdef cppclass CallEnd:
        uint64_t token
        int64_t cpu_ns
        int64_t max_rss_kb
        int status

    enum WorkerSaid:
        WORKER_NOTHING
        WORKER_STARTED
        WORKER_ENDED
        WORKER_LEFT

    cdef cppclass Inbox:
        StartRequest request
        char* texts

    cdef cppclass Sibling:
        pass

    int64_t clock_ns(int clock)
    void random_bytes(void* bytes, size_t count)
    size_t start_request_max
    int send_start(int socket, StartRequest* request, char* texts, size_t size, int handed)
    int receive_reply(int socket, StartReply* reply)
    bint worker_sockets(int* ours, int* theirs)
    WorkerSaid receive_of_worker(int socket, StartReply* reply, CallEnd* end)
    bint acknowledge_end(int socket)
    bint sibling_prepare(Sibling* sibling)
    pid_t fork_sibling(const Sibling* sibling)
    bint reply_start(int socket, uint64_t token, pid_t pid, Step step, int error)
    int receive_start(int socket, Inbox* inbox, int* handed)
    void job_begin(const Inbox* inbox, int socket, int table, int handed)
    int worker_socket
    bint call_begin(const Inbox* inbox)
    void call_leave_output()
    bint call_end(uint64_t token, int status, int64_t cpu_ns, int64_t max_rss_kb)
