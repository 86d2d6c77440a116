# Plain ends: those of which there is nothing to say but when, and with which exit code.
#
# Nearly all ends are such: the first attempt of a task, exited by itself, not to be tried again, with no result or one
# that came with the end.  They go from the lanes' notes to the arrays of the statement that records them, and to the
# bytes of their `.done` files, without a Python object each (but for a result, which is read and written again):
#
#     notes ─► plain? ─yes─► PlainEnds ─► columns() ─► COMMIT ─► write_done()
#                │               │ the store does not take them just so (no answer, one is no longer ours)
#                no              ▼
#                └─► Event ─► Outcome ─► …  as all others
#
# What they become there is what `reaper`, `policy`, `store.ending` and `done` would have made of them; a property test
# holds the two together (tests/integration/test_plain_ends.py).

cimport cython
from libc.errno cimport ENOENT, errno
from libc.math cimport nearbyint
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memset
from libcpp.algorithm cimport sort
from libcpp.unordered_set cimport unordered_set

from native cimport AT_FDCWD, AT_SYMLINK_NOFOLLOW, F_OK, array, faccessat

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef struct PlainEnd:   # texts belong to the `Held` and to the result
    Note note           # without its result
    size_t held         # its place among them, and of its result among those
    Text id
    Text name
    Text kind           # of the task
    Text output         # paths
    Text errors
    Text result
    Text progress
    Text value          # its result as the store has it …
    Text value_done     # … and as its `.done` file has it; of size 0: none
    uint64_t token
    uint8_t priority
    uint8_t code        # with which it exited
    int64_t submitted_us  # all since 1970
    int64_t started_us
    int64_t finished_us
    bint left_file


cdef inline const char* priority_word(uint8_t priority) noexcept nogil:
    return b"HIGH" if priority == 0 else b"MED" if priority == 1 else b"LOW"


cdef inline bint plain_before(const PlainEnd& one, const PlainEnd& other) noexcept nogil:
    """By id."""
    cdef size_t size = min(one.id.size, other.id.size)
    cdef int order = memcmp(one.id.start, other.id.start, size)
    return order < 0 or (order == 0 and one.id.size < other.id.size)


cdef inline int64_t plain_wait_ms(const PlainEnd* end) noexcept nogil:
    # As Python rounds: half to even, of a double.
    return max(<int64_t> 0, <int64_t> nearbyint((end.started_us - end.submitted_us) / 1e6 * 1000.0))


cdef inline int64_t plain_run_ms(const PlainEnd* end) noexcept nogil:
    # As PostgreSQL rounds a numeric: half up.
    return (end.finished_us - end.started_us + 500) // 1000


cdef inline bint is_no_file(Text path) noexcept nogil:
    return faccessat(AT_FDCWD, path.start, F_OK, AT_SYMLINK_NOFOLLOW) != 0 and errno == ENOENT


cdef size_t plain_look(array[PlainEnd]* ends) noexcept nogil:
    """Which of them left a file that somebody must look at; how many did."""
    cdef size_t i, left = 0
    cdef PlainEnd* end
    for i in range(ends.size()):
        end = &ends[0][i]
        end.left_file = end.note.left_result and not (is_no_file(end.result) and is_no_file(end.progress))
        left += end.left_file
    return left


cdef void put_done(array[char]* out, const PlainEnd* end, Text node) noexcept nogil:
    """As `pysched.recorder.done.encode`."""
    put_words(out, b'{"id": "')
    put_bytes(out, end.id.start, end.id.size)
    put_words(out, b'", "name": "')
    put_bytes(out, end.name.start, end.name.size)
    put_words(out, b'", "type": "')
    put_bytes(out, end.kind.start, end.kind.size)
    put_words(out, b'", "priority": "')
    put_words(out, priority_word(end.priority))
    if end.code == 0:
        put_words(out, b'", "status": "succeeded", "reason": null')
    else:
        put_words(out, b'", "status": "failed", "reason": "exit ')
        put_number(out, end.code)
        put_words(out, b'"')
    put_words(out, b', "exit_code": ')
    put_number(out, end.code)
    put_words(out, b', "signal": null, "attempts": 1, "node": "')
    put_bytes(out, node.start, node.size)
    put_words(out, b'", "submitted_at": "')
    put_moment(out, end.submitted_us)
    put_words(out, b'", "started_at": "')
    put_moment(out, end.started_us)
    put_words(out, b'", "finished_at": "')
    put_moment(out, end.finished_us)
    put_words(out, b'", "wait_ms": ')
    put_number(out, plain_wait_ms(end))
    put_words(out, b', "run_ms": ')
    put_number(out, plain_run_ms(end))
    put_words(out, b', "result": ')
    if end.value_done.size:
        put_bytes(out, end.value_done.start, end.value_done.size)
    else:
        put_words(out, b"null")
    if end.note.left_output:
        put_words(out, b', "stdout": "')
        put_bytes(out, end.output.start, end.output.size)
        put_words(out, b'", "stderr": "')
        put_bytes(out, end.errors.start, end.errors.size)
        put_words(out, b'"}\n')
    else:
        put_words(out, b', "stdout": null, "stderr": null}\n')


cdef size_t put_name(array[char]* out, const char* head, Text id, const char* tail) noexcept nogil:
    """A file's name with its NUL; where it begins."""
    cdef size_t place = out.size()
    put_words(out, head)
    put_bytes(out, id.start, id.size)
    put_words(out, tail)
    put_bytes(out, b"", 1)
    return place


cdef int done_write(const char* folder, array[PlainEnd]* ends, Text node, size_t* failed) noexcept nogil:
    """As `files_write`."""
    cdef array[char] text
    cdef array[NewFile] files
    cdef array[size_t] places
    cdef size_t i
    files.resize(ends.size())
    for i in range(ends.size()):
        places.push_back(put_name(&text, b".", ends[0][i].id, b".done.tmp"))
        places.push_back(put_name(&text, b"", ends[0][i].id, b".done"))
        places.push_back(text.size())
        put_done(&text, &ends[0][i], node)
        files[i].size = text.size() - places.back()
        files[i].descriptor = -1
        files[i].error = 0
    for i in range(ends.size()):  # only now does the text stay where it is
        files[i].temporary = text.data() + places[3 * i]
        files[i].name = text.data() + places[3 * i + 1]
        files[i].data = text.data() + places[3 * i + 2]
    return files_write(folder, &files, failed)


cdef inline Text text_in(object text) except *:
    """The UTF-8 of a str, which lives as long as that."""
    cdef Text found
    cdef Py_ssize_t size
    found.start = PyUnicode_AsUTF8AndSize(text, &size)
    found.size = <size_t> size
    return found


cdef bytes bytes_in(array[char]* text):
    return text.data()[:text.size()]


@cython.final
@cython.auto_pickle(False)
cdef class PlainEnds:
    cdef array[PlainEnd] ends
    cdef list held
    cdef list results       # (what the job left, its text in the store, its bytes in `.done`), or None
    cdef bint sorted

    def __cinit__(self):
        self.held = []
        self.results = []
        self.sorted = True

    def __len__(self):
        return self.ends.size()

    cdef bint consider(self, Note* note, object held, object texts) except -1:
        """Whether it is plain but for the files that it may have left; then its result is taken from the note."""
        cdef PlainEnd end
        cdef object claim, key, task, program, name, left, found
        cdef tuple result = None
        if (note.kind != KIND_EXITED or note.cause != CAUSED_BY_NOTHING or note.survivors or held is None
                or not held.plain or note.status < 0 or note.status & 127):
            return False
        claim, task, program = held.claim, held.task, held.program
        end.code = <uint8_t> (note.status >> 8 & 255)
        if end.code and claim.failures < task.max_retries:
            return False
        key = claim.key
        name = task.name or key[0]
        if not (<str> name).isascii() or not (<str> program.result).isascii():  # else UTF-8 may have no word for it
            return False
        end.note = note[0]
        end.held = <size_t> len(self.held)
        end.id = text_in(key[0])
        end.token = key[2]
        end.name = text_in(name)
        end.kind = text_in(task.type)
        end.priority = claim.priority
        end.output = text_in(program.stdout)
        end.errors = text_in(program.stderr)
        end.result = text_in(program.result)
        end.progress = text_in(program.progress)
        end.submitted_us = epoch_us(claim.submitted_at)
        end.started_us = note.started_ns // 1000
        end.finished_us = end.started_us + note.run_ns // 1000
        end.left_file = False
        if (end.submitted_us < 0 or end.started_us < 0 or key[1] != 1 or not text_is_plain(end.name)
                or not text_is_plain(end.output) or not text_is_plain(end.errors)):
            return False
        memset(&end.value, 0, sizeof(Text))
        memset(&end.value_done, 0, sizeof(Text))
        if note.result != NULL:
            left = note.result[:note.result_size]
            found = texts(left)
            if found is None:
                return False
            result = (left, *found)
            end.value = text_in(result[1])
            end.value_done.start = <const char*> <bytes> result[2]
            end.value_done.size = <size_t> len(<bytes> result[2])
            free(note.result)
            note.result = end.note.result = NULL
        self.ends.push_back(end)
        self.held.append(held)
        self.results.append(result)
        return True

    cdef int keep(self, PlainEnds considered, size_t which) except -1:
        """Take over one of another's."""
        cdef PlainEnd end = considered.ends[which]
        self.held.append(considered.held[end.held])
        self.results.append(considered.results[end.held])
        end.held = <size_t> len(self.held) - 1
        self.ends.push_back(end)
        return 0

    def take_in(self, PlainEnds others not None):
        cdef size_t i, before = self.ends.size()
        cdef PlainEnd end
        for i in range(others.ends.size()):
            end = others.ends[i]
            end.held += before
            self.ends.push_back(end)
        self.held += others.held
        self.results += others.results
        self.sorted = False

    cdef int in_order(self) except -1:
        if not self.sorted and self.ends.size():
            sort(self.ends.data(), self.ends.data() + self.ends.size(), plain_before)
            self.sorted = True
        return 0

    def events(self):
        cdef size_t i
        cdef Event event
        cdef tuple result
        cdef list found = []
        for i in range(self.ends.size()):
            event = event_of(&self.ends[i].note)
            result = self.results[self.ends[i].held]
            if result is not None:
                event.result = result[0]
            found.append((event, self.held[self.ends[i].held]))
        return found

    def keys(self):
        return [held.claim.key for held in self.held]

    def handles(self):
        cdef size_t i
        return [self.ends[i].note.handle for i in range(self.ends.size())]

    def tokens(self):
        cdef size_t i
        return [self.ends[i].token for i in range(self.ends.size())]

    def waits_ms(self):
        cdef size_t i
        return [plain_wait_ms(&self.ends[i]) for i in range(self.ends.size())]

    def runs_ms(self):
        cdef size_t i
        return [plain_run_ms(&self.ends[i]) for i in range(self.ends.size())]

    def tally(self):
        cdef dict found = {}
        cdef size_t i
        cdef int failed, priority
        cdef int64_t[2][CLASSES] counts
        memset(counts, 0, sizeof(counts))
        for i in range(self.ends.size()):
            counts[self.ends[i].code != 0][self.ends[i].priority] += 1
        for failed in range(2):
            for priority in range(CLASSES):
                if counts[failed][priority]:
                    found["failed" if failed else "succeeded", priority] = counts[failed][priority]
        return found

    def ids(self, bint failed):
        cdef array[char] ids
        cdef array[size_t] wanted
        cdef size_t i
        self.in_order()
        for i in range(self.ends.size()):
            if (self.ends[i].code != 0) == failed:
                wanted.push_back(i)
        array_begin(&ids, TYPE_TEXT, wanted.size())
        for i in range(wanted.size()):
            array_put_text(&ids, self.ends[wanted[i]].id)
        return bytes_in(&ids)

    def columns(self):
        cdef array[char] ids, tokens, pids, starts, ends, runs_ms, codes, cpu_ms, max_rss_kb, stdouts, stderrs, results
        cdef size_t i, count = self.ends.size()
        cdef PlainEnd* end
        self.in_order()
        array_begin(&ids, TYPE_TEXT, count)
        array_begin(&tokens, TYPE_INT8, count)
        array_begin(&pids, TYPE_INT4, count)
        array_begin(&starts, TYPE_TIMESTAMPTZ, count)
        array_begin(&ends, TYPE_TIMESTAMPTZ, count)
        array_begin(&runs_ms, TYPE_INT8, count)
        array_begin(&codes, TYPE_INT4, count)
        array_begin(&cpu_ms, TYPE_INT8, count)
        array_begin(&max_rss_kb, TYPE_INT8, count)
        array_begin(&stdouts, TYPE_TEXT, count)
        array_begin(&stderrs, TYPE_TEXT, count)
        array_begin(&results, TYPE_TEXT, count)
        for i in range(count):
            end = &self.ends[i]
            array_put_text(&ids, end.id)
            array_put_number(&tokens, <int64_t> end.token, 8)
            array_put_number(&pids, end.note.pid, 4)
            array_put_number(&starts, end.started_us - POSTGRES_EPOCH_US, 8)
            array_put_number(&ends, end.finished_us - POSTGRES_EPOCH_US, 8)
            array_put_number(&runs_ms, plain_run_ms(end), 8)
            array_put_number(&codes, end.code, 4)
            array_put_number(&cpu_ms, end.note.cpu_ns // 1_000_000, 8)
            array_put_number(&max_rss_kb, end.note.max_rss_kb, 8)
            if end.value.size:
                array_put_text(&results, end.value)
            else:
                array_put_null(&results)
            if end.note.left_output:
                array_put_text(&stdouts, end.output)
                array_put_text(&stderrs, end.errors)
            else:
                array_put_null(&stdouts)
                array_put_null(&stderrs)
        return {
            "ids": bytes_in(&ids), "tokens": bytes_in(&tokens), "pids": bytes_in(&pids), "starts": bytes_in(&starts),
            "ends": bytes_in(&ends), "runs_ms": bytes_in(&runs_ms), "exit_codes": bytes_in(&codes),
            "cpu_ms": bytes_in(&cpu_ms), "max_rss_kb": bytes_in(&max_rss_kb), "stdouts": bytes_in(&stdouts),
            "stderrs": bytes_in(&stderrs), "results": bytes_in(&results),
        }

    def write_done(self, folder, str node not None):
        cdef bytes path = path_text("folder", folder)
        cdef const char* place = path
        cdef Text name = text_in(node)
        cdef size_t failed = 0
        cdef int error
        with nogil:
            error = done_write(place, &self.ends, name, &failed)
        if error:
            blamed = os.fsdecode(path)
            if failed < self.ends.size():
                blamed += f"/{self.held[self.ends[failed].held].claim.key.id}.done"
            raise OSError(error, os.strerror(error), blamed)


cdef tuple plain_split(array[Note]* batch, object held, object texts):
    """(Events of all that is not plain, what is); the notes are spent.  Nobody is told that an attempt runs whose plain
    end is among them."""
    cdef PlainEnds considered = PlainEnds(), plain = considered
    cdef unordered_set[uint64_t] ended
    cdef list events = []
    cdef size_t i, left = 0
    for i in range(batch.size()):
        if batch[0][i].kind == KIND_EXITED:
            considered.consider(&batch[0][i], held.get(batch[0][i].handle), texts)
    with nogil:
        left = plain_look(&considered.ends)
    if left:
        plain = PlainEnds()
        for i in range(considered.ends.size()):
            if not considered.ends[i].left_file:
                plain.keep(considered, i)
    plain.sorted = False
    for i in range(plain.ends.size()):
        ended.insert(plain.ends[i].note.handle)
    for i in range(batch.size()):
        if batch[0][i].kind == KIND_ALARM or not ended.count(batch[0][i].handle):
            events.append(event_of(&batch[0][i]))
    return events, plain
