// For LD_PRELOAD: the time of day is off by the seconds in the file $CLOCK_OFFSET, a long that may
// change at any time; the monotonic clock is as it is. (libfaketime 0.9.10 fails Python's sleep.)
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long *offset;

__attribute__((constructor)) static void open_offset(void) {
  const char *path = getenv("CLOCK_OFFSET");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) offset = mapped;
  close(file);
}

static long seconds(void) { return offset ? *offset : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = (int)syscall(SYS_clock_gettime, clock, now);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += seconds();
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec found;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &found)) return -1;
  now->tv_sec = found.tv_sec;
  now->tv_usec = found.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *place) {
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  if (place) *place = found.tv_sec;
  return found.tv_sec;
}

// A wait until a time of day ends by the true clock; small numbers are of the monotonic one.
static struct timespec real(const struct timespec *until) {
  struct timespec found = *until;
  if (found.tv_sec > 1000000000) found.tv_sec -= seconds();
  return found;
}

static void *next(void **kept, const char *name) {
  return *kept ? *kept : (*kept = dlsym(RTLD_NEXT, name));
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  static void *kept;
  struct timespec end = real(until);
  int (*wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  *(void **)&wait = next(&kept, "pthread_cond_timedwait");
  return wait(condition, mutex, &end);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex,
                            const struct timespec *restrict until) {
  static void *kept;
  struct timespec end = real(until);
  int (*lock)(pthread_mutex_t *, const struct timespec *);
  *(void **)&lock = next(&kept, "pthread_mutex_timedlock");
  return lock(mutex, &end);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
  static void *kept;
  struct timespec end = real(until);
  int (*wait)(sem_t *, const struct timespec *);
  *(void **)&wait = next(&kept, "sem_timedwait");
  return wait(semaphore, &end);
}
