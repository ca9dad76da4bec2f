/* From the kernel's hands to a machine that waits for orders: file systems, modules, ports. The disk comes later, with the first order:
 * a machine whose memory was saved before that starts from any disk. */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void mount_or_say(const char *source, const char *target, const char *type, unsigned long flags, const char *data) {
  mkdir(target, 0755);
  if (mount(source, target, type, flags, data)) fprintf(stderr, "strandline: mount %s: %s\n", target, strerror(errno));
}

void write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, text, strlen(text)) < 0) fprintf(stderr, "strandline: %s: %s\n", path, strerror(errno));
  if (fd >= 0) close(fd);
}

/* The number in a file, or behind a key in a file of "key number" lines; -1 when it is not there. */
long read_number(const char *path, const char *key) {
  char text[4096], *found = text;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t size = read(fd, text, sizeof text - 1);
  close(fd);
  text[size > 0 ? size : 0] = 0;
  if (key) {
    size_t length = strlen(key);
    while (found && (strncmp(found, key, length) || found[length] != ' ')) {
      found = strchr(found, '\n');
      if (found) found++;
    }
    if (!found) return -1;
    found += length + 1;
  }
  return atol(found);
}

int load_modules(const char *list) {
  char name[256], path[300];
  FILE *file = fopen(list, "re");
  if (!file) return 0;
  while (fgets(name, sizeof name, file)) {
    name[strcspn(name, "\n")] = 0;
    snprintf(path, sizeof path, "/modules/%s.ko", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)) fprintf(stderr, "strandline: module %s: %s\n", name, strerror(errno));
    if (fd >= 0) close(fd);
  }
  fclose(file);
  return 1;
}

static void a_moment(void) { nanosleep(&(struct timespec){0, 2000000}, 0); }

/* A port by the name that the host gave it: its device's number is whatever the bus made of it (reference/runtimes.md §4). */
static int port_try(const char *name, int flags) {
  DIR *directory = opendir("/sys/class/virtio-ports");
  struct dirent *entry;
  int fd = -1;
  while (directory && fd < 0 && (entry = readdir(directory))) {
    char path[300], said[128] = "";
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) continue;
    ssize_t size = read(file, said, sizeof said - 1);
    close(file);
    said[size > 0 ? size : 0] = 0;
    said[strcspn(said, "\n")] = 0;
    snprintf(path, sizeof path, "/dev/%s", entry->d_name);
    if (!strcmp(said, name)) fd = open(path, flags | O_CLOEXEC);
  }
  if (directory) closedir(directory);
  return fd;
}

int port_open(const char *name, int flags) {
  int fd;
  while ((fd = port_try(name, flags)) < 0) a_moment();
  return fd;
}

static void make_groups(void) {
  mount_or_say("cgroup2", CGROUPS, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
  write_file(CGROUPS "/cgroup.subtree_control", "+cpu +memory +pids");
  mkdir(SANDBOX, 0755);
  mkdir(SANDBOX "/main", 0755);
}

void boot(void) {
  mount_or_say("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, 0);
  mount_or_say("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
  mount_or_say("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
  int console = open("/dev/console", O_RDWR);
  for (int fd = 0; console >= 0 && fd < 3; fd++) dup2(console, fd);
  if (console > 2) close(console);
  make_groups();
  load_modules("/modules/early");
}

/* A driver that is built in has found the disk of the first boot; it has to look again. */
static void find_disk_anew(void) {
  char target[256], *name;
  ssize_t size = readlink("/sys/block/vda/device", target, sizeof target - 1);
  if (size < 0) return; /* a module: it has not looked yet */
  target[size] = 0;
  name = strrchr(target, '/') ? strrchr(target, '/') + 1 : target;
  write_file("/sys/bus/virtio/drivers/virtio_blk/unbind", name);
  write_file("/sys/bus/virtio/drivers/virtio_blk/bind", name);
}

/* Once; 0 when it was there already. */
int mount_disk(void) {
  static int mounted;
  struct stat seen;
  if (mounted) return 0;
  mkdir(DISK, 0755);
  find_disk_anew();
  load_modules("/modules/late");
  while (stat("/dev/vda", &seen)) a_moment();
  mount_or_say("/dev/vda", DISK, "ext4", MS_NOATIME, 0);
  return mounted = 1;
}

void settle_disk(void) {
  int fd = open(DISK, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  syncfs(fd);
  close(fd);
}

void switch_off(void) {
  sync();
  reboot(RB_AUTOBOOT); /* with reboot=t and QEMU's -no-reboot: the shortest way out, 1 ms */
  for (;;) pause();
}
