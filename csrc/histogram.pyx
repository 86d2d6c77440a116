# Latency histograms: log-linear cells, filled by each lane on memory of its own and summed when somebody asks.
#
# Cells in the manner of HdrHistogram (Tene): each power of two is cut into 64 cells of one width, and what lies below
# 128 ns has a cell of its own for each value.  The cell of v ≥ 128 with 2^e ≤ v < 2^(e+1) is 2^(e-6) wide and begins at
# 64 · 2^(e-6) or above.  A cell speaks through its middle, so it errs by at most half its width, which is 1/128 = 0.78%
# of the smallest value in it: below 1% for every value, hence also for every quantile and for the mean.
# 3,392 cells reach to 2^58 ns, nine years; a longer time counts as that.

from math import ceil

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from libcpp.atomic cimport memory_order_relaxed
from libcpp.bit cimport bit_width

from native cimport latency_array

cdef enum:
    CELLS_A_DOUBLING = 64
    CELLS = 3392            # the size of a latency_array

cdef int64_t LONGEST_LATENCY_NS = (1 << 58) - 1


cdef inline int cell_of(int64_t ns) noexcept nogil:
    cdef int shift
    ns = min(max(ns, 0), LONGEST_LATENCY_NS)
    if ns < 2 * CELLS_A_DOUBLING:
        return <int> ns
    shift = <int> bit_width(<uint64_t> ns) - 7
    return shift * CELLS_A_DOUBLING + <int> (ns >> shift)


cdef inline int64_t cell_width(int cell) noexcept nogil:
    return <int64_t> 1 << (cell // CELLS_A_DOUBLING - 1) if cell >= 2 * CELLS_A_DOUBLING else 1


cdef inline int64_t cell_begin(int cell) noexcept nogil:
    """The smallest value in it."""
    if cell < 2 * CELLS_A_DOUBLING:
        return cell
    return (CELLS_A_DOUBLING + cell % CELLS_A_DOUBLING) * cell_width(cell)


cdef inline int64_t cell_middle(int cell) noexcept nogil:
    return cell_begin(cell) + cell_width(cell) // 2


cdef cppclass Latencies:
    # What one lane measured, by priority.  A cell has a single writer, so it needs no atomic addition; relaxed on both
    # sides: a reader may see one of two cells that were counted together, and the other the next time.
    latency_array wait[CLASSES]
    latency_array run[CLASSES]


cdef inline void latency_record(latency_array* cells, int64_t ns) noexcept nogil:
    cdef int cell = cell_of(ns)
    cells[0][cell].store(cells[0][cell].load(memory_order_relaxed) + 1, memory_order_relaxed)


@cython.final
@cython.auto_pickle(False)
cdef class Histogram:
    cdef uint64_t cells[CELLS]

    def __cinit__(self):
        memset(self.cells, 0, sizeof(self.cells))

    cdef void add(self, latency_array* cells) noexcept:
        cdef int i
        for i in range(CELLS):
            self.cells[i] += cells[0][i].load(memory_order_relaxed)

    def record(self, ns, times=1):
        self.cells[cell_of(whole("ns", ns, 0, LONGEST_NS))] += <uint64_t> whole("times", times, 0, UINT64_MAX)

    def merge(self, Histogram other not None):
        cdef Histogram merged = Histogram()
        cdef int i
        for i in range(CELLS):
            merged.cells[i] = self.cells[i] + other.cells[i]
        return merged

    def since(self, Histogram earlier not None):
        cdef Histogram difference = Histogram()
        cdef int i
        for i in range(CELLS):
            if self.cells[i] < earlier.cells[i]:
                raise ValueError("earlier: it holds more than this histogram; give an earlier reading of the same")
            difference.cells[i] = self.cells[i] - earlier.cells[i]
        return difference

    @property
    def count(self):
        cdef uint64_t total = 0
        cdef int i
        for i in range(CELLS):
            total += self.cells[i]
        return total

    @property
    def mean(self):
        cdef double total = 0
        cdef uint64_t count = self.count
        cdef int i
        for i in range(CELLS):
            total += <double> self.cells[i] * <double> cell_middle(i)
        return total / <double> count if count else None

    def quantile(self, q):
        cdef uint64_t rank, seen = 0
        cdef int i
        if not 0 < q <= 1:
            raise ValueError(f"q: {q} is no quantile; use 0 < q ≤ 1")
        count = self.count
        rank = min(max(ceil(q * count), 1), count)
        for i in range(CELLS):
            seen += self.cells[i]
            if self.cells[i] and seen >= rank:
                return cell_middle(i)
        return None

    def cells_in_use(self):
        cdef int i
        return [
            (cell_begin(i), cell_begin(i) + cell_width(i), self.cells[i]) for i in range(CELLS) if self.cells[i]
        ]

    def __repr__(self):
        return f"<Histogram of {self.count}>"
