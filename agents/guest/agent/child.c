/* What a child does between fork and exec: it enters its control group, its root and its user, and becomes the program or says why not. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

int report = -1; /* where a child says why it could not become the program */

void give_up(const char *code, const char *format, ...) {
  char text[1024];
  int used = snprintf(text, 64, "%s", code) + 1;
  va_list rest;
  va_start(rest, format);
  vsnprintf(text + used, sizeof text - used, format, rest);
  va_end(rest);
  if (write(report, text, used + strlen(text + used)) < 0) _exit(125);
  _exit(126);
}

static void make_devices(void) {
  static const struct { const char *name; int minor, major; } devices[] = {{"null", 3, 1}, {"zero", 5, 1}, {"full", 7, 1}, {"random", 8, 1}, {"urandom", 9, 1}, {"tty", 0, 5}};
  static const char *links[][2] = {{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"}};
  char path[64];
  umask(0);
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
    snprintf(path, sizeof path, "dev/%s", devices[i].name);
    mknod(path, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor));
  }
  for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
    snprintf(path, sizeof path, "dev/%s", links[i][0]);
    if (symlink(links[i][1], path)) give_up("sandbox.start-failed", "/%s: %s", path, strerror(errno));
  }
  umask(022);
}

static void mount_in(const char *type, const char *target, unsigned long flags, const char *data) {
  struct stat seen;
  if (!lstat(target, &seen) && S_ISLNK(seen.st_mode)) give_up("sandbox.start-failed", "/%s of the image is a symbolic link", target);
  mkdir(target, 0755);
  if (mount(type, target, type, flags, data)) give_up("sandbox.start-failed", "/%s: %s", target, strerror(errno));
}

/* The disk becomes the root of a mount namespace of the sandbox's own. */
void make_root(void) {
  if (mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) || chdir(DISK)) give_up("sandbox.start-failed", "no disk: %s", strerror(errno));
  mount_in("proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
  mount_in("sysfs", "sys", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, 0);
  mount_in("tmpfs", "dev", MS_NOSUID, "mode=755,size=64k");
  make_devices();
  mount_in("devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620");
  mount_in("tmpfs", "dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
  if (mount(".", "/", 0, MS_MOVE, 0) || chroot(".") || chdir("/")) give_up("sandbox.start-failed", "root: %s", strerror(errno));
}

void enter_group(const char *name) {
  char path[128];
  snprintf(path, sizeof path, SANDBOX "/%s", name);
  mkdir(path, 0755);
  snprintf(path, sizeof path, SANDBOX "/%s/cgroup.procs", name);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, "0", 1) != 1) give_up("sandbox.start-failed", "%s: %s", path, strerror(errno));
  close(fd);
}

static const char *get(struct order *order, const char *name) {
  size_t length = strlen(name);
  for (int i = order->envc; i-- > 0;)
    if (!strncmp(order->env[i], name, length) && order->env[i][length] == '=') return order->env[i] + length + 1;
  return 0;
}

/* The file that a name means, as execvp would look; refused as a shell would say it when there is none. */
static const char *program(struct order *order, char *path, size_t room) {
  const char *name = order->argv[0];
  struct stat seen;
  int there = 0;
  char *folders = strchr(name, '/') ? strdup("") : strdup(get(order, "PATH")), *rest = folders, *folder;
  while ((folder = strsep(&rest, ":"))) {
    if (strchr(name, '/')) snprintf(path, room, "%s", name);
    else if (*folder) snprintf(path, room, "%s/%s", folder, name);
    else continue;
    if (stat(path, &seen)) continue;
    there = 1;
    if (S_ISREG(seen.st_mode) && seen.st_mode & 0111) return path;
  }
  if (there) give_up("sandbox.not-executable", "%s: not executable", name);
  give_up("sandbox.no-such-program", "%s: not found", name);
  return 0;
}

void become(struct order *order) {
  static char home[300], path[4200], default_path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  struct who who;
  if (!resolve_user(order->user, &who)) give_up("user.unknown", "no user %s in the sandbox's files", order->user);
  snprintf(home, sizeof home, "HOME=%s", who.home);
  if (!get(order, "PATH")) order->env[order->envc++] = default_path;
  if (!get(order, "HOME")) order->env[order->envc++] = home;
  order->env[order->envc] = 0;
  if (chdir(*order->cwd ? order->cwd : "/")) give_up("sandbox.not-executable", "%s: no such directory", order->cwd);
  const char *file = program(order, path, sizeof path);
  if (setgroups(who.count, who.groups) || setresgid(who.gid, who.gid, who.gid) || setresuid(who.uid, who.uid, who.uid))
    give_up("sandbox.start-failed", "user %u: %s", who.uid, strerror(errno));
  umask(022);
  execve(file, order->argv, order->env);
  give_up("sandbox.start-failed", "%s: %s", order->argv[0], strerror(errno));
}

void into_child(int in, int out, int err) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, 0);
  signal(SIGPIPE, SIG_DFL);
  setsid();
  dup2(in, 0), dup2(out, 1), dup2(err, 2);
}
