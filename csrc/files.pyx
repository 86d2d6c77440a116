# Batches of small files without the GIL: what is written for completed tasks, what is read from the queue folder.
#
# Writing:
#
#     .NAME.tmp ─written─► all of the batch ─synced (sync.pyx)─► renamed to NAME ─► the folder fsynced, once
#
# A reader, or a crash, sees all of a file under its name or none of it.  After any failure the temporary names are gone
# and what was renamed is complete; a later try makes new files, so no fsync is ever repeated on one that failed.

cimport libc.errno
from libc.errno cimport EINTR, ENOENT, errno
from libc.signal cimport SIGURG
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, strcmp, strlen
from libcpp.algorithm cimport sort
from posix.fcntl cimport O_CREAT, O_DIRECTORY, O_RDONLY, O_TRUNC, O_WRONLY, open as open_path
from posix.unistd cimport close, fsync, read, write

from native cimport (
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    DIR,
    F_OK,
    F_RDLCK,
    F_SETLEASE,
    F_SETSIG,
    O_CLOEXEC,
    O_NOFOLLOW,
    O_NONBLOCK,
    POSIX_FADV_DONTNEED,
    array,
    S_ISREG,
    closedir,
    descriptor_of,
    dirent,
    faccessat,
    fcntl,
    file_status,
    openat,
    opendir,
    posix_fadvise,
    readdir,
    renameat,
    status_at,
    status_of,
    unlinkat,
)

cdef enum:
    OPEN_AT_ONCE = 128


cdef int file_write(int folder, NewFile* file) noexcept nogil:
    """0, or errno; it stays open."""
    cdef const char* data = file.data
    cdef size_t size = file.size
    cdef ssize_t written
    file.error = 0
    file.descriptor = openat(folder, file.temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0o644)
    if file.descriptor < 0:
        return errno
    while size:
        written = write(file.descriptor, data, size)
        if written < 0:
            if errno != EINTR:
                return errno
        else:
            data += written
            size -= <size_t> written
    return 0


cdef int files_put_each(int folder, NewFile* files, size_t count, size_t* failed) noexcept nogil:
    """Write `count` files and wait until each is on the disk; 0, or errno and which one."""
    cdef size_t i, opened = 0
    cdef int error = 0
    while opened < count and error == 0:
        failed[0] = opened
        error = file_write(folder, &files[opened])
        opened += files[opened].descriptor >= 0
    if error == 0:
        # All begin to go to the disk before the first is waited for: one commit of the journal serves many.
        for i in range(count):
            posix_fadvise(files[i].descriptor, 0, 0, POSIX_FADV_DONTNEED)
        files_sync(files, count)
    for i in range(opened):
        if error == 0 and files[i].error:
            failed[0] = i
            error = files[i].error
        close(files[i].descriptor)
    return error


cdef int files_put_together(int folder, NewFile* files, size_t count, size_t* failed, bint* synced) noexcept nogil:
    """The same, with one sync of the file system; `synced`: that has not failed."""
    cdef size_t i
    cdef int error = 0
    synced[0] = True
    for i in range(count):
        failed[0] = i
        error = file_write(folder, &files[i])
        if i + 1 < count and files[i].descriptor >= 0:
            close(files[i].descriptor)
        if error:
            break
    if error == 0:
        synced[0] = filesystem_sync(folder, files[count - 1].descriptor, count)
    if i + 1 == count and files[i].descriptor >= 0:
        close(files[i].descriptor)
    return error


cdef void files_forget(int folder, NewFile* files, size_t count) noexcept nogil:
    """Of what has not been renamed nothing stays."""
    cdef size_t i
    for i in range(count):
        unlinkat(folder, files[i].temporary, 0)


cdef int files_rename(int folder, NewFile* files, size_t count, size_t* failed) noexcept nogil:
    cdef size_t i
    for i in range(count):
        if renameat(folder, files[i].temporary, folder, files[i].name) != 0:
            failed[0] = i
            return errno
    return 0


cdef int files_publish(int folder, NewFile* files, size_t count, bint together, size_t* failed) noexcept nogil:
    """All `count` files, or errno and which one could not be."""
    cdef int error
    cdef bint synced = False
    if together:
        error = files_put_together(folder, files, count, failed, &synced)
        if error == 0 and not synced:
            files_forget(folder, files, count)  # what is written below are others
    if not synced:
        error = files_put_each(folder, files, count, failed)
    if error == 0:
        error = files_rename(folder, files, count, failed)
    if error:
        files_forget(folder, files, count)
    return error


cdef int files_write(const char* path, array[NewFile]* files, size_t* failed) noexcept nogil:
    """0, or errno; `failed` is the number of files if it was the folder."""
    cdef int folder = open_path(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    cdef size_t part, start = 0, count = files.size()
    cdef bint together
    cdef int error = 0
    if folder < 0:
        failed[0] = count
        return errno
    while error == 0 and start < count:
        part = min(<size_t> SYNCED_TOGETHER, count - start)
        together = is_worth_a_filesystem_sync(folder, part)
        if not together:
            part = min(<size_t> OPEN_AT_ONCE, part)
        error = files_publish(folder, files.data() + start, part, together, failed)
        failed[0] += start
        start += part
    if error == 0 and fsync(folder) != 0:
        failed[0] = count
        error = errno
    close(folder)
    return error


cdef bytes path_text(str field, object value):
    """As `text_of`, of bytes or text."""
    return text_of(field, os.fsencode(value))


def write_files(folder, files):
    cdef bytes path = path_text("folder", folder)
    cdef const char* place = path
    cdef array[NewFile] batch
    cdef NewFile new
    cdef list kept = []  # what the batch points into
    cdef size_t failed = 0
    cdef int error
    for name, data in files:
        name = path_text("name", name)
        temporary = b"." + name + b".tmp"
        if type(data) is not bytes:
            raise TypeError(f"data: {data!r} is no bytes")
        kept.append((name, temporary, data))
        new.name = name
        new.temporary = temporary
        new.data = data
        new.size = <size_t> len(data)
        new.descriptor = -1
        new.error = 0
        batch.push_back(new)
    with nogil:
        error = files_write(place, &batch, &failed)
    if error:
        blamed = path if failed >= batch.size() else path + b"/" + (<tuple> kept[failed])[0]
        raise OSError(error, os.strerror(error), os.fsdecode(blamed))


def is_missing(str path not None):
    # With the GIL: giving it up and taking it back costs more than a look into a folder in the cache.
    cdef bytes place = PyUnicode_EncodeFSDefault(path)
    return faccessat(AT_FDCWD, place, F_OK, AT_SYMLINK_NOFOLLOW) != 0 and errno == ENOENT


# ---- the queue folder ------------------------------------------------------------------------------------------------
#
# Only what is plain is done here: a regular file, still the version that the scan saw, small, and with a read lease
# granted, so that nobody has it open for writing, nor can before it is closed here.  All else is left to whoever asked.

cdef struct SeenFile:
    const char* name
    uint64_t device
    uint64_t inode
    int64_t mtime_ns
    int64_t size
    size_t place        # of its content
    bint done


cdef struct Waiting:
    size_t place        # of its name among all names
    const char* name    # once there are no more
    file_status status


cdef inline int64_t mtime_of(const file_status* status) noexcept nogil:
    return status.st_mtim.tv_sec * NS_PER_S + status.st_mtim.tv_nsec


cdef bint waits_longer(const Waiting& one, const Waiting& other) noexcept nogil:
    cdef int64_t mtime_ns = mtime_of(&one.status), other_ns = mtime_of(&other.status)
    return mtime_ns < other_ns or (mtime_ns == other_ns and strcmp(one.name, other.name) < 0)


cdef bint is_wanted(const char* name, const char* suffix, size_t length) noexcept nogil:
    cdef size_t whole = strlen(name)
    return name[0] != 46 and whole > length and strcmp(name + (whole - length), suffix) == 0  # 46: a dot


cdef int files_scan(
    const char* path, const char* suffix, size_t most, array[char]* names, array[Waiting]* found,
) noexcept nogil:
    """The oldest last modified first; 0, or errno."""
    cdef DIR* folder = opendir(path)
    cdef size_t i, length = strlen(suffix)
    cdef dirent* entry
    cdef Waiting file
    cdef int error = 0
    if folder == NULL:
        return errno
    while found.size() < most:
        libc.errno.errno = 0  # else an error could not be told from the end
        entry = readdir(folder)
        if entry == NULL:
            error = errno
            break
        if not is_wanted(entry.d_name, suffix, length):
            continue
        if status_at(descriptor_of(folder), entry.d_name, &file.status, AT_SYMLINK_NOFOLLOW) != 0:
            if errno == ENOENT:  # another node was faster
                continue
            error = errno
            break
        file.place = names.size()
        names.resize(file.place + strlen(entry.d_name) + 1)
        memcpy(names.data() + file.place, entry.d_name, names.size() - file.place)
        found.push_back(file)
    closedir(folder)
    for i in range(found.size()):
        found[0][i].name = names.data() + found[0][i].place
    sort(found.data(), found.data() + found.size(), waits_longer)
    return error


cdef inline bint is_same(const SeenFile* file, const file_status* status) noexcept nogil:
    return (status.st_ino == file.inode and status.st_dev == file.device and status.st_size == file.size
            and mtime_of(status) == file.mtime_ns)


cdef bint file_read(int folder, const SeenFile* file, char* content) noexcept nogil:
    """Whether `content` is what the file holds."""
    cdef file_status status
    cdef int descriptor = openat(folder, file.name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
    cdef bint good
    if descriptor < 0:
        return False
    # The lease ends when the file is closed.  A writer who comes meanwhile waits for that; SIGURG, which is ignored by
    # default, tells of it in the place of SIGIO, which is not.
    good = (fcntl(descriptor, F_SETSIG, SIGURG) == 0 and fcntl(descriptor, F_SETLEASE, F_RDLCK) == 0
            and status_of(descriptor, &status) == 0 and S_ISREG(status.st_mode) and is_same(file, &status)
            and read(descriptor, content, <size_t> file.size) == file.size)
    close(descriptor)
    return good


cdef void files_read(const char* path, array[SeenFile]* files, char* contents) noexcept nogil:
    cdef int folder = open_path(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    cdef size_t i
    if folder < 0:
        return
    for i in range(files.size()):
        if files[0][i].size > 0:
            files[0][i].done = file_read(folder, &files[0][i], contents + files[0][i].place)
    close(folder)


cdef void files_remove(const char* path, array[SeenFile]* files) noexcept nogil:
    cdef int folder = open_path(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    cdef file_status status
    cdef SeenFile* file
    cdef size_t i
    if folder < 0:
        return
    for i in range(files.size()):
        file = &files[0][i]
        file.done = (status_at(folder, file.name, &status, AT_SYMLINK_NOFOLLOW) == 0 and is_same(file, &status)
                     and unlinkat(folder, file.name, 0) == 0)
    close(folder)


cdef size_t see_files(array[SeenFile]* seen, object files, list kept, int64_t most) except? 0:
    """The files in C, their names kept by `kept`; how many bytes those of at most `most` take."""
    cdef SeenFile file
    cdef bytes text
    cdef size_t total = 0
    for name, file.device, file.inode, file.mtime_ns, file.size in files:
        text = path_text("name", name)
        kept.append(text)
        file.name = text
        if file.size > most:
            file.size = 0
        file.place = total
        file.done = False
        total += <size_t> file.size
        seen.push_back(file)
    return total


def scan_files(folder, suffix, most):
    cdef bytes path = path_text("folder", folder), ending = path_text("suffix", suffix)
    cdef const char* place = path
    cdef const char* wanted = ending
    cdef size_t limit = whole("most", most, 1, 2**31)
    cdef array[char] names
    cdef array[Waiting] found
    cdef Waiting* file
    cdef size_t i
    cdef int error
    with nogil:
        error = files_scan(place, wanted, limit, &names, &found)
    if error:
        raise OSError(error, os.strerror(error), os.fsdecode(path))
    files = []
    for i in range(found.size()):
        file = &found[i]
        name = PyUnicode_DecodeFSDefault(file.name)
        files.append((name, file.status.st_dev, file.status.st_ino, mtime_of(&file.status), file.status.st_size))
    return files


def read_files(folder, files, limit):
    cdef bytes path = path_text("folder", folder)
    cdef const char* place = path
    cdef array[SeenFile] seen
    cdef array[char] contents
    cdef list kept = []
    cdef size_t i
    contents.resize(see_files(&seen, files, kept, whole("limit", limit, 0, 2**20)))
    with nogil:
        files_read(place, &seen, contents.data())
    return [
        (contents.data() + seen[i].place)[:seen[i].size] if seen[i].done else None for i in range(seen.size())
    ]


def remove_files(folder, files):
    cdef bytes path = path_text("folder", folder)
    cdef const char* place = path
    cdef array[SeenFile] seen
    cdef list kept = []
    cdef size_t i
    see_files(&seen, files, kept, 2**62)
    with nogil:
        files_remove(place, &seen)
    return [seen[i].done for i in range(seen.size())]
