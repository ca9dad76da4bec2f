/* Files of the sandbox, for the host: no symbolic link in them leads out of its disk. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int open_inside(const char *path, int flags, int mode) {
  struct open_how how = {.flags = flags | O_CLOEXEC | O_NONBLOCK, .mode = flags & O_CREAT ? mode : 0, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
  int root = open(DISK, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (root < 0) return -1;
  int fd = syscall(SYS_openat2, root, path, &how, sizeof how), why = errno;
  close(root);
  errno = why;
  return fd;
}

/* The next text of a body, which ends with NUL; none is "". */
static char *text_of(char **body, size_t *size) {
  char *text = *body, *end = memchr(text, 0, *size);
  if (!end) return "";
  *size -= end + 1 - text;
  *body = end + 1;
  return text;
}

void put_file(uint32_t number, char *body, size_t size) {
  char *path = text_of(&body, &size), *mode = text_of(&body, &size), *offset = text_of(&body, &size);
  off_t at = atoll(offset);
  int fd = open_inside(path, O_WRONLY | O_CREAT | (at ? 0 : O_TRUNC), strtol(mode, 0, 8));
  while (fd >= 0 && size) {
    ssize_t wrote = pwrite(fd, body, size, at);
    if (wrote <= 0) break;
    body += wrote, size -= wrote, at += wrote;
  }
  if (fd < 0 || size) send_failure(number, "file.not-written", "%s: %s", path, strerror(errno));
  else frame_send(number, OK, "", 0);
  if (fd >= 0) close(fd);
}

void get_file(uint32_t number, char *body, size_t size) {
  static char bytes[CHUNK];
  char *path = text_of(&body, &size), *offset = text_of(&body, &size);
  int fd = open_inside(path, O_RDONLY, 0);
  ssize_t got = fd < 0 ? -1 : pread(fd, bytes, sizeof bytes, atoll(offset));
  if (got < 0) send_failure(number, "file.not-read", "%s: %s", path, strerror(errno));
  else frame_send(number, OK, bytes, got);
  if (fd >= 0) close(fd);
}
