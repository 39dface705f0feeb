/* Faults from outside: preloaded before the C library, this file sees every operation of a process
 * that changes what is below one folder, and can count them, kill the process at one, let one fail,
 * or write them all down. The program under test knows nothing of it.
 *
 *   LD_PRELOAD=libfaults.so python ...      then, from Python by ctypes:
 *   faults_watch("/folder")                 what is below it is watched
 *   faults_arm(mode, at, error, onwards, kinds)   from here on; operations count from 1
 *   faults_record(fd) faults_note("text")   the trace, read by faults.py
 *
 * Which file an operation touches is asked of the system by /proc/self/fd, so that names relative
 * to a directory, duplicated descriptors and renamed files need no bookkeeping.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, COUNT, KILL_BEFORE, KILL_AFTER, FAIL, SHORTEN };
enum kind { OPEN, WRITE, FSYNC, RENAME, LINK, UNLINK, TRUNCATE, ALLOCATE, MKDIR, CLOSE, N_KINDS };
static const char *const NAMES[N_KINDS] = {"open",   "write",    "fsync",    "rename", "link",
                                           "unlink", "truncate", "allocate", "mkdir",  "close"};

static char root[PATH_MAX];
static size_t root_length;
static volatile int mode = OFF, error_number, onwards, trace = -1;
static volatile unsigned kinds;
static volatile long at, counted, happened;
static long per_kind[N_KINDS];
static int chosen_kind = -1;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name, type, ...)                                                  \
    static type (*real)(__VA_ARGS__);                                          \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static ssize_t real_write(int file, const void *data, size_t length) {
    REAL("write", ssize_t, int, const void *, size_t);
    return real(file, data, length);
}

/* ---- from Python -------------------------------------------------------------------------- */

void faults_watch(const char *folder) {
    root_length = strlen(folder);
    memcpy(root, folder, root_length + 1);
}

void faults_arm(int new_mode, long operation, int error, int from_then_on, unsigned only_kinds) {
    mode = OFF;
    at = operation, error_number = error, onwards = from_then_on, kinds = only_kinds;
    counted = happened = 0, chosen_kind = -1;
    memset(per_kind, 0, sizeof per_kind);
    mode = new_mode;
}

long faults_counted(void) { return counted; }
long faults_of_kind(int kind) { return per_kind[kind]; }
/* How often a fault really happened: 0 when the operation never came. */
long faults_happened(void) { return happened; }
/* Of what kind the first operation was that the fault was for; -1 when it never came. */
int faults_chosen_kind(void) { return chosen_kind; }
void faults_record(int file) { trace = file; }

static void put(const char *text, size_t length) {
    while (length) {
        ssize_t n = real_write(trace, text, length);
        if (n < 0) abort();
        text += n, length -= (size_t)n;
    }
}

/* A line of fields, then as many bytes as its fourth field says. */
static void note(const char *what, unsigned long inode, long offset, size_t length, const char *path,
                 const char *path2, const void *data) {
    if (trace < 0) return;
    char line[2 * PATH_MAX + 128];
    int saved = errno;
    int n = snprintf(line, sizeof line, "%s\t%lu\t%ld\t%zu\t%s\t%s\n", what, inode, offset,
                     data ? length : 0, path, path2);
    pthread_mutex_lock(&guard);
    put(line, (size_t)n);
    if (data) put(data, length);
    pthread_mutex_unlock(&guard);
    errno = saved;
}

void faults_note(const char *text) { note("note", 0, 0, strlen(text), "", "", text); }

/* ---- which file -------------------------------------------------------------------------- */

static int below(const char *path) {
    return root_length && !strncmp(path, root, root_length) &&
           (path[root_length] == '/' || !path[root_length]);
}

static int path_of(int file, char *path) {
    char link[64];
    if (file == AT_FDCWD)
        strcpy(link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    path[n < 0 ? 0 : n] = 0;
    return n > 0;
}

/* Whether there is something to do for this descriptor; its path. */
static int watched(int file, char *path) {
    if (mode == OFF && trace < 0) return 0;
    int saved = errno, yes = path_of(file, path) && below(path);
    errno = saved;
    return yes;
}

static int watched_at(int directory, const char *name, char *path) {
    if (mode == OFF && trace < 0) return 0;
    int saved = errno, yes = 0;
    if (name[0] == '/') {
        yes = snprintf(path, PATH_MAX, "%s", name) < PATH_MAX;
    } else if (path_of(directory, path)) {
        size_t n = strlen(path);
        yes = snprintf(path + n, PATH_MAX - n, "/%s", name) < (int)(PATH_MAX - n);
    }
    errno = saved;
    return yes && below(path);
}

static unsigned long inode_at(const char *path) {
    struct stat status;
    int saved = errno;
    unsigned long inode = lstat(path, &status) ? 0 : status.st_ino;
    errno = saved;
    return inode;
}

static unsigned long inode_of(int file, long *size) {
    struct stat status;
    int saved = errno;
    if (fstat(file, &status)) memset(&status, 0, sizeof status);
    if (size) *size = status.st_size;
    errno = saved;
    return status.st_ino;
}

/* ---- what to do with it ------------------------------------------------------------------- */

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Count an operation; return whether the fault is for it. */
static int chosen(enum kind kind, int *last) {
    *last = 0;
    if (mode == OFF || !(kinds >> kind & 1)) return 0;
    pthread_mutex_lock(&guard);
    long n = ++counted;
    per_kind[kind]++;
    pthread_mutex_unlock(&guard);
    int now = n == at || (onwards && n > at && at > 0);
    if (n == at) chosen_kind = kind;
    if (now && mode == KILL_BEFORE) die();
    *last = now && mode == KILL_AFTER;
    if (now && (mode == FAIL || (mode == SHORTEN && kind == WRITE))) {
        happened++;
        return 1;
    }
    return 0;
}

#define FAILS(kind)                                                            \
    int last = 0;                                                              \
    if (inside && chosen(kind, &last) && mode == FAIL) return errno = error_number, -1
#define ENDS                                                                   \
    if (last) die()

/* ---- the operations ----------------------------------------------------------------------- */

static int opened(int (*real)(int, const char *, int, ...), int directory, const char *name,
                  int flags, mode_t rights) {
    char path[PATH_MAX];
    int inside = watched_at(directory, name, path);
    FAILS(OPEN);
    unsigned long before = inside ? inode_at(path) : 0;
    int file = real(directory, name, flags, rights);
    if (inside && file >= 0) {
        unsigned long inode = inode_of(file, NULL);
        if (!before && flags & O_CREAT) note("create", inode, 0, 0, path, "", NULL);
        if (before && flags & O_TRUNC && flags & (O_WRONLY | O_RDWR))
            note("truncate", inode, 0, 0, path, "", NULL);
    }
    ENDS;
    return file;
}

#define RIGHTS                                                                 \
    mode_t rights = 0;                                                         \
    if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {                      \
        va_list rest;                                                          \
        va_start(rest, flags);                                                 \
        rights = va_arg(rest, mode_t);                                         \
        va_end(rest);                                                          \
    }
#define OPENAT(name)                                                           \
    int name(int directory, const char *path, int flags, ...) {                \
        RIGHTS;                                                                \
        REAL("openat64", int, int, const char *, int, ...);                    \
        return opened(real, directory, path, flags, rights);                   \
    }
#define OPEN_(name)                                                            \
    int name(const char *path, int flags, ...) {                               \
        RIGHTS;                                                                \
        REAL("openat64", int, int, const char *, int, ...);                    \
        return opened(real, AT_FDCWD, path, flags, rights);                    \
    }
OPENAT(openat)
OPENAT(openat64)
OPEN_(open)
OPEN_(open64)

/* Write a part of the data when told so; offset -1 is where the file stands. */
static ssize_t written(int file, const void *data, size_t length, long offset) {
    REAL("pwrite64", ssize_t, int, const void *, size_t, off64_t);
    char path[PATH_MAX];
    int inside = watched(file, path), last = 0;
    if (inside && chosen(WRITE, &last)) {
        if (mode == FAIL) return errno = error_number, -1;
        if (length > 1)
            length /= 2;
        else
            happened--;
    }
    long where = offset;
    unsigned long inode = 0;
    if (inside && trace >= 0) {
        long size;
        inode = inode_of(file, &size);
        if (fcntl(file, F_GETFL) & O_APPEND)
            where = size;  /* Linux appends then, whatever offset is given */
        else if (offset < 0)
            where = lseek(file, 0, SEEK_CUR);
    }
    ssize_t n = offset < 0 ? real_write(file, data, length) : real(file, data, length, offset);
    if (inside && n > 0) note("write", inode, where, (size_t)n, path, "", data);
    ENDS;
    return n;
}

ssize_t write(int file, const void *data, size_t length) { return written(file, data, length, -1); }
ssize_t pwrite(int file, const void *data, size_t length, off_t offset) {
    return written(file, data, length, offset);
}
ssize_t pwrite64(int file, const void *data, size_t length, off64_t offset) {
    return written(file, data, length, offset);
}
/* Whole buffers one by one: as legal as the one call, and each can be the last. */
ssize_t writev(int file, const struct iovec *parts, int n_parts) {
    ssize_t total = 0;
    for (int i = 0; i < n_parts; i++) {
        ssize_t n = written(file, parts[i].iov_base, parts[i].iov_len, -1);
        if (n < 0) return total ? total : n;
        total += n;
        if ((size_t)n < parts[i].iov_len) break;
    }
    return total;
}

static int synced(int (*real)(int), int file) {
    char path[PATH_MAX];
    int inside = watched(file, path);
    FAILS(FSYNC);
    int result = real(file);
    if (inside && !result) note("fsync", inode_of(file, NULL), 0, 0, path, "", NULL);
    ENDS;
    return result;
}
int fsync(int file) {
    REAL("fsync", int, int);
    return synced(real, file);
}
int fdatasync(int file) {
    REAL("fdatasync", int, int);
    return synced(real, file);
}

static int named(enum kind kind, int from_dir, const char *from, int to_dir, const char *to,
                 unsigned flags) {
    char path[PATH_MAX], path2[PATH_MAX];
    int inside = watched_at(from_dir, from, path) | watched_at(to_dir, to, path2);
    FAILS(kind);
    unsigned long inode = inside ? inode_at(path) : 0;
    int result;
    if (kind == LINK) {
        REAL("linkat", int, int, const char *, int, const char *, int);
        result = real(from_dir, from, to_dir, to, (int)flags);
    } else {
        REAL("renameat2", int, int, const char *, int, const char *, unsigned);
        result = real(from_dir, from, to_dir, to, flags);
    }
    if (inside && !result) note(NAMES[kind], inode, 0, 0, path, path2, NULL);
    ENDS;
    return result;
}
int renameat2(int d, const char *from, int d2, const char *to, unsigned flags) {
    return named(RENAME, d, from, d2, to, flags);
}
int renameat(int d, const char *from, int d2, const char *to) {
    return named(RENAME, d, from, d2, to, 0);
}
int rename(const char *from, const char *to) {
    return named(RENAME, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int linkat(int d, const char *from, int d2, const char *to, int flags) {
    return named(LINK, d, from, d2, to, (unsigned)flags);
}
int link(const char *from, const char *to) { return named(LINK, AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int directory, const char *name, int flags) {
    REAL("unlinkat", int, int, const char *, int);
    char path[PATH_MAX];
    int inside = watched_at(directory, name, path);
    FAILS(UNLINK);
    unsigned long inode = inside ? inode_at(path) : 0;
    int result = real(directory, name, flags);
    if (inside && !result) note("unlink", inode, 0, 0, path, "", NULL);
    ENDS;
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int ftruncate64(int file, off64_t size) {
    REAL("ftruncate64", int, int, off64_t);
    char path[PATH_MAX];
    int inside = watched(file, path);
    FAILS(TRUNCATE);
    int result = real(file, size);
    if (inside && !result) note("truncate", inode_of(file, NULL), size, 0, path, "", NULL);
    ENDS;
    return result;
}
int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

/* Unlike the others, posix_fallocate returns its error. */
int posix_fallocate64(int file, off64_t offset, off64_t length) {
    REAL("posix_fallocate64", int, int, off64_t, off64_t);
    char path[PATH_MAX];
    int inside = watched(file, path), last = 0;
    if (inside && chosen(ALLOCATE, &last) && mode == FAIL) return error_number;
    int result = real(file, offset, length);
    if (inside && !result)
        note("allocate", inode_of(file, NULL), offset + length, 0, path, "", NULL);
    ENDS;
    return result;
}
int posix_fallocate(int file, off_t offset, off_t length) {
    return posix_fallocate64(file, offset, length);
}
int fallocate64(int file, int how, off64_t offset, off64_t length) {
    REAL("fallocate64", int, int, int, off64_t, off64_t);
    char path[PATH_MAX];
    int inside = watched(file, path);
    FAILS(ALLOCATE);
    int result = real(file, how, offset, length);
    if (inside && !result)
        note("allocate", inode_of(file, NULL), offset + length, 0, path, "", NULL);
    ENDS;
    return result;
}
int fallocate(int file, int how, off_t offset, off_t length) {
    return fallocate64(file, how, offset, length);
}

int mkdirat(int directory, const char *name, mode_t rights) {
    REAL("mkdirat", int, int, const char *, mode_t);
    char path[PATH_MAX];
    int inside = watched_at(directory, name, path);
    FAILS(MKDIR);
    int result = real(directory, name, rights);
    if (inside && !result) note("mkdir", inode_at(path), 0, 0, path, "", NULL);
    ENDS;
    return result;
}
int mkdir(const char *path, mode_t rights) { return mkdirat(AT_FDCWD, path, rights); }

/* Only of files that were written: some file systems report a failed write here. */
int close(int file) {
    REAL("close", int, int);
    char path[PATH_MAX];
    int inside = watched(file, path) && (fcntl(file, F_GETFL) & O_ACCMODE) != O_RDONLY, last = 0;
    int fails = inside && chosen(CLOSE, &last) && mode == FAIL;
    int result = real(file);
    ENDS;
    return fails ? (errno = error_number, -1) : result;
}
