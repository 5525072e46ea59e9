/* Loaded into a node by LD_PRELOAD: a wall clock that can be set, and a disk that can be held.
 *
 * CAPSTAN_TEST_CLOCK=FILE: eight bytes, seconds that CLOCK_REALTIME is ahead, read at every call.
 * CAPSTAN_TEST_GATE=FILE:  after the first tensor of a mapped *.safetensors file, loading goes on
 *                          only when FILE is gone; FILE.reached is made when it waits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead;
static const char *gate;

__attribute__((constructor)) static void begin(void) {
  const char *clock_file = getenv("CAPSTAN_TEST_CLOCK");
  if (clock_file) {
    int fd = open(clock_file, O_RDONLY | O_CLOEXEC);
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) abort();
    ahead = at;
    close(fd);
  }
  gate = getenv("CAPSTAN_TEST_GATE");
}

static int64_t seconds(void) { return ahead ? *ahead : 0; }

int clock_gettime(clockid_t id, struct timespec *out) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int rc = real(id, out);
  if (rc == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) out->tv_sec += seconds();
  return rc;
}

int gettimeofday(struct timeval *out, void *zone) {
  static int (*real)(struct timeval *, void *);
  if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
  int rc = real(out, zone);
  if (rc == 0) out->tv_sec += seconds();
  return rc;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}

static struct {
  char *begin, *end;
} files[64];
static int count;

static int is_checkpoint(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  return n >= 12 && memcmp(path + n - 12, ".safetensors", 12) == 0;
}

static void *map(void *at, size_t size, int access_, int flags, int fd, off_t offset) {
  static void *(*real)(void *, size_t, int, int, int, off_t);
  if (!real) real = dlsym(RTLD_NEXT, "mmap");
  char *mapped = real(at, size, access_, flags, fd, offset);
  if (gate && fd >= 0 && mapped != MAP_FAILED && count < 64 && is_checkpoint(fd)) {
    files[count].begin = mapped;
    files[count++].end = mapped + size;
  }
  return mapped;
}

void *mmap(void *at, size_t size, int a, int flags, int fd, off_t offset) {
  return map(at, size, a, flags, fd, offset);
}
void *mmap64(void *at, size_t size, int a, int flags, int fd, off_t offset) {
  return map(at, size, a, flags, fd, offset);
}

/* A tensor has been read and its pages are given back: the next one is slow to come. */
int madvise(void *at, size_t size, int advice) {
  static int (*real)(void *, size_t, int);
  if (!real) real = dlsym(RTLD_NEXT, "madvise");
  for (int i = 0; i < count; ++i) {
    if ((char *)at < files[i].begin || (char *)at >= files[i].end) continue;
    char reached[4096];
    snprintf(reached, sizeof reached, "%s.reached", gate);
    if (access(gate, F_OK) == 0) close(open(reached, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    while (access(gate, F_OK) == 0) usleep(10000);
  }
  return real(at, size, advice);
}
