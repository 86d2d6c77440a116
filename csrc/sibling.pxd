"""What `sibling.hpp` offers to both sides of a zygote's socket."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic
from posix.resource cimport rlimit, rusage
from posix.types cimport pid_t

from native cimport Step


cdef extern from "sibling.hpp" namespace "pysched" nogil:
    cdef cppclass StartRequest:
        uint64_t token
        uint64_t call
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

    cdef cppclass Desk:
        atomic[uint64_t] begun
        int64_t started_ns
        int64_t started_real_ns
        atomic[uint64_t] heard

    enum:
        CALL_LEFT_OUTPUT
        CALL_LEFT_RESULT

    cdef cppclass CallEnd:
        uint64_t token
        int64_t cpu_ns
        int64_t max_rss_kb
        int status
        uint32_t left

    cdef cppclass Handed:
        int socket
        int desk

    enum WorkerSaid:
        WORKER_NOTHING
        WORKER_REFUSED
        WORKER_ENDED
        WORKER_LEFT

    cdef cppclass WorkerWords:
        StartReply refusal
        CallEnd end
        char* result
        size_t result_size

    cdef cppclass Inbox:
        StartRequest request
        char* texts

    cdef cppclass Sibling:
        pass

    cdef cppclass Source:
        pass

    Source source_now(const char* path)
    bint source_changed(const Source& before)

    cdef cppclass Logs:
        pass

    cdef cppclass Children:
        bint there
        rusage usage

    cdef cppclass WorkerState:
        Desk* desk
        Logs logs
        Children children

    int64_t clock_ns(int clock)
    void random_bytes(void* bytes, size_t count)
    size_t start_request_max
    size_t call_result_max
    int send_start(int socket, StartRequest* request, char* texts, size_t size, const Handed* handed)
    int receive_reply(int socket, StartReply* reply)
    bint worker_equip(int* socket, Desk** desk, Handed* handed)
    void handed_close(const Handed* handed)
    void desk_unmap(Desk* desk)
    WorkerSaid receive_of_worker(int socket, WorkerWords* words)
    bint sibling_prepare(Sibling* sibling)
    pid_t fork_sibling(const Sibling* sibling)
    bint reply_start(int socket, uint64_t token, pid_t pid, Step step, int error)
    int receive_start(int socket, Inbox* inbox, Handed* handed)
    void job_begin(const Inbox* inbox, int socket, int table, const Handed* handed, WorkerState* worker)
    int worker_socket
    void call_refuse(const Inbox* inbox, Step step, int error)
    bint call_begin(const Inbox* inbox, WorkerState* worker)
    void children_look(Children* children)
    uint32_t call_leave_output(WorkerState* worker, bint has_result_file)
    void logs_remove(Logs* logs)
    bint call_end(CallEnd* end, const char* result, size_t size)
