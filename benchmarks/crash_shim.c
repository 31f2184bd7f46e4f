/* A library to be preloaded: it counts the system calls of a process that create, name, rename, remove or sync files below
 * a folder, and at the n-th of them ends the process or sends it signals. See crash_points.py.
 *
 * Nothing happens until crash_arm is called (through ctypes, after a fork), so a program can import its libraries once
 * and try thousands of points. With a log, each call is a line "NUMBER, CALL, PATH, SECOND PATH" (tabs between); with a
 * folder for copies too, the content that an fsync has made safe is copied there under the call's number.
 *
 * Left out: calls that do not pass the C library (safetensors renames its own temporary file so). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COUNT, END, INTERRUPT, INTERRUPT_TWICE, TERMINATE, TERMINATE_TWICE, INTERRUPT_THEN_TERMINATE };
#define PATH 4096

static char root[PATH], copies[PATH];
static long counted, point;
static int action, armed, log_file = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside;

#define NEXT(name) ((__typeof__(&name)) next(#name))
static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

void crash_arm(const char *folder, int what, long at, const char *log, const char *copy_to) {
  snprintf(root, PATH, "%s", folder);
  snprintf(copies, PATH, "%s", copy_to ? copy_to : "");
  log_file = log && *log ? NEXT(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
  action = what, point = at, counted = 0, armed = 1;
}

long crash_disarm(void) { armed = 0; return counted; }

static void by_descriptor(int fd, char *out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, out, PATH - 1);
  out[n < 0 ? 0 : n] = 0;
}

static void absolute(int folder, const char *path, char *out) {
  char base[PATH] = "";
  if (path[0] == '/') { snprintf(out, PATH, "%s", path); return; }
  if (folder == AT_FDCWD) { if (!getcwd(base, PATH)) base[0] = 0; } else by_descriptor(folder, base);
  snprintf(out, PATH, "%.2000s/%.2000s", base, path);
}

static int below(const char *path) {
  size_t n = strlen(root);
  return n && !strncmp(path, root, n) && (path[n] == '/' || !path[n]);
}

static int signal_now(long after) {
  switch (action) {
    case INTERRUPT: return after == 0 ? SIGINT : 0;
    case INTERRUPT_TWICE: return after == 0 || after == 1 ? SIGINT : 0;
    case TERMINATE: return after == 0 ? SIGTERM : 0;
    case TERMINATE_TWICE: return after == 0 || after == 1 ? SIGTERM : 0;
    case INTERRUPT_THEN_TERMINATE: return after == 0 ? SIGINT : after == 1 ? SIGTERM : 0;
  }
  return 0;
}

/* Counts a call; its number, 0 where it is not below the folder. */
static long count(const char *call, const char *one, const char *two) {
  if (!armed || inside || !(below(one) || (two && below(two)))) return 0;
  inside = 1;
  pthread_mutex_lock(&mutex);
  long number = ++counted;
  if (action == END && number == point) _exit(9);
  if (log_file >= 0) {
    char line[3 * PATH];
    int n = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\n", number, call, one, two ? two : "");
    if (write(log_file, line, n) != n) _exit(8);
  }
  int sent = action > END ? signal_now(number - point) : 0;
  pthread_mutex_unlock(&mutex);
  inside = 0;
  if (sent) kill(getpid(), sent);
  return number;
}

static void copy_synced(int fd, long number) {
  struct stat st;
  char from[64], to[PATH + 32], data[65536];
  if (!copies[0] || fstat(fd, &st) || !S_ISREG(st.st_mode)) return;
  snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
  snprintf(to, sizeof to, "%s/%ld", copies, number);
  int in = NEXT(open)(from, O_RDONLY), out = NEXT(open)(to, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  for (ssize_t n; in >= 0 && out >= 0 && (n = read(in, data, sizeof data)) > 0;)
    if (write(out, data, n) != n) _exit(8);
  if (in >= 0) close(in);
  if (out >= 0) close(out);
}

#define OPENS(name, FOLDER, ...)                                                       \
  {                                                                                    \
    mode_t mode = 0;                                                                   \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                             \
      va_list rest;                                                                    \
      va_start(rest, flags);                                                           \
      mode = va_arg(rest, mode_t);                                                     \
      va_end(rest);                                                                    \
    }                                                                                  \
    if (armed && !inside && flags & (O_CREAT | O_TRUNC)) {                             \
      char full[PATH];                                                                 \
      absolute(FOLDER, path, full);                                                    \
      count(flags & O_TRUNC ? "truncate" : "create", full, NULL);                      \
    }                                                                                  \
    return NEXT(name)(__VA_ARGS__, flags, mode);                                       \
  }
int open(const char *path, int flags, ...) OPENS(open, AT_FDCWD, path)
int open64(const char *path, int flags, ...) OPENS(open64, AT_FDCWD, path)
int openat(int folder, const char *path, int flags, ...) OPENS(openat, folder, folder, path)
int openat64(int folder, const char *path, int flags, ...) OPENS(openat64, folder, folder, path)

#define ONE(call, FOLDER, path) \
  if (armed && !inside) { char full[PATH]; absolute(FOLDER, path, full); count(call, full, NULL); }
#define TWO(call, FROM, one, TO, two)                                     \
  if (armed && !inside) {                                                 \
    char full[PATH], other[PATH];                                         \
    absolute(FROM, one, full), absolute(TO, two, other), count(call, full, other); \
  }
int mkdir(const char *path, mode_t mode) { ONE("mkdir", AT_FDCWD, path) return NEXT(mkdir)(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { ONE("mkdir", folder, path) return NEXT(mkdirat)(folder, path, mode); }
int unlink(const char *path) { ONE("remove", AT_FDCWD, path) return NEXT(unlink)(path); }
int rmdir(const char *path) { ONE("remove", AT_FDCWD, path) return NEXT(rmdir)(path); }
int unlinkat(int folder, const char *path, int flags) { ONE("remove", folder, path) return NEXT(unlinkat)(folder, path, flags); }
int rename(const char *one, const char *two) { TWO("rename", AT_FDCWD, one, AT_FDCWD, two) return NEXT(rename)(one, two); }
int renameat(int a, const char *one, int b, const char *two) { TWO("rename", a, one, b, two) return NEXT(renameat)(a, one, b, two); }
int link(const char *one, const char *two) { TWO("link", AT_FDCWD, one, AT_FDCWD, two) return NEXT(link)(one, two); }
int linkat(int a, const char *one, int b, const char *two, int flags) {
  TWO("link", a, one, b, two)
  return NEXT(linkat)(a, one, b, two, flags);
}

#define SYNCS(name)                                                      \
  {                                                                      \
    long number = 0;                                                     \
    if (armed && !inside) {                                              \
      char full[PATH];                                                   \
      by_descriptor(fd, full), number = count("sync", full, NULL);       \
    }                                                                    \
    int result = NEXT(name)(fd);                                         \
    if (number && !result) inside = 1, copy_synced(fd, number), inside = 0; \
    return result;                                                       \
  }
int fsync(int fd) SYNCS(fsync)
int fdatasync(int fd) SYNCS(fdatasync)
