/* Processes of the sandbox. The main one is the first of a pid namespace, so that with it all others end; each further one has a control
 * group of its own, so that it can be killed with everything it has started, whatever sessions and environments those have made. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct run { uint32_t number; pid_t pid; int in, out, err; size_t room[2]; int dropped, killed; char *input; size_t given, taken; };

static struct run runs[MAX_RUNS];
pid_t main_pid;
static int main_fd[2] = {-1, -1}, main_port[2] = {-1, -1}, own_pids = -1, oom_before;

/* ------------------------------------------------------------------------------------------------------ in the child */

static int report = -1; /* where a child says why it could not become the program */

__attribute__((format(printf, 2, 3))) static void give_up(const char *code, const char *format, ...) {
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
static void make_root(void) {
  if (mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) || chdir(DISK)) give_up("sandbox.start-failed", "no disk: %s", strerror(errno));
  mount_in("proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
  mount_in("sysfs", "sys", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, 0);
  mount_in("tmpfs", "dev", MS_NOSUID, "mode=755,size=64k");
  make_devices();
  mount_in("devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620");
  mount_in("tmpfs", "dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
  if (mount(".", "/", 0, MS_MOVE, 0) || chroot(".") || chdir("/")) give_up("sandbox.start-failed", "root: %s", strerror(errno));
}

static void enter_group(const char *name) {
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

static void become(struct order *order) {
  static char home[300], path[4200], default_path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  struct who who;
  if (!resolve_user(order->user, &who)) give_up("user.unknown", "no user %s in the sandbox's files", order->user);
  snprintf(home, sizeof home, "HOME=%s", who.home);
  if (!get(order, "PATH")) order->env[order->envc++] = default_path;
  if (!get(order, "HOME")) order->env[order->envc++] = home;
  if (chdir(*order->cwd ? order->cwd : "/")) give_up("sandbox.not-executable", "%s: no such directory", order->cwd);
  const char *file = program(order, path, sizeof path);
  if (setgroups(who.count, who.groups) || setresgid(who.gid, who.gid, who.gid) || setresuid(who.uid, who.uid, who.uid))
    give_up("sandbox.start-failed", "user %u: %s", who.uid, strerror(errno));
  umask(022);
  execve(file, order->argv, order->env);
  give_up("sandbox.start-failed", "%s: %s", order->argv[0], strerror(errno));
}

static void into_child(int in, int out, int err) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, 0);
  signal(SIGPIPE, SIG_DFL);
  setsid();
  dup2(in, 0), dup2(out, 1), dup2(err, 2);
}

/* ----------------------------------------------------------------------------------------------------- in the agent */

struct pipes { int in[2], out[2], err[2], why[2]; };

static void open_pipes(struct pipes *p) {
  if (pipe2(p->in, O_CLOEXEC) || pipe2(p->out, O_CLOEXEC) || pipe2(p->err, O_CLOEXEC) || pipe2(p->why, O_CLOEXEC)) abort();
  report = p->why[1];
}

/* Close the child's ends and wait until it is the program, or says why not: then that is passed on. */
static int became(struct pipes *p, uint32_t number) {
  char text[1100];
  close(p->in[0]), close(p->out[1]), close(p->err[1]), close(p->why[1]);
  ssize_t size = read(p->why[0], text, sizeof text);
  close(p->why[0]);
  if (size > 0) frame_send(number, FAILED, text, size);
  if (size > 0) close(p->in[1]), close(p->out[0]), close(p->err[0]);
  return size <= 0;
}

void start_main(uint32_t number, struct order *order) {
  struct pipes p;
  mount_disk();
  open_pipes(&p);
  for (int i = 0; i < 2; i++) main_port[i] = main_port[i] < 0 ? port_open(i ? "strandline.stderr" : "strandline.stdout", O_WRONLY) : main_port[i];
  oom_before = read_number(SANDBOX "/memory.events", "oom_kill");
  main_pid = syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0);
  if (main_pid == 0) {
    into_child(p.in[0], p.out[1], p.err[1]);
    enter_group("main");
    make_root();
    become(order);
  }
  if (!became(&p, number)) {
    waitpid(main_pid, 0, 0);
    main_pid = 0;
    return;
  }
  main_fd[0] = p.out[0], main_fd[1] = p.err[0]; /* its stdin stays open here, so that a shell waits for ever */
  for (int i = 0; i < 2; i++) fcntl(main_fd[i], F_SETFL, O_NONBLOCK), watch(main_fd[i], EPOLLIN, ON_MAIN, i);
  frame_send(number, OK, "", 0);
}

static int enter(const char *kind) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/ns/%s", main_pid, kind);
  return open(path, O_RDONLY | O_CLOEXEC);
}

void start_exec(uint32_t number, struct order *order) {
  struct pipes p;
  struct run *run = runs;
  char group[32];
  while (run < runs + MAX_RUNS && run->pid) run++;
  if (!main_pid) return send_failure(number, "sandbox.not-running", "its main process has ended");
  if (run == runs + MAX_RUNS) return send_failure(number, "exec.too-many", "%d processes run already", MAX_RUNS);
  if (own_pids < 0) own_pids = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
  int pids = enter("pid"), mounts = enter("mnt");
  open_pipes(&p);
  snprintf(group, sizeof group, "x%u", number);
  if (pids < 0 || mounts < 0 || setns(pids, CLONE_NEWPID)) abort();
  pid_t pid = fork();
  if (pid == 0) {
    into_child(p.in[0], p.out[1], p.err[1]);
    enter_group(group);
    if (setns(mounts, CLONE_NEWNS)) give_up("sandbox.not-running", "its main process has ended");
    become(order);
  }
  setns(own_pids, CLONE_NEWPID);
  close(pids), close(mounts);
  if (!became(&p, number)) {
    if (pid > 0) waitpid(pid, 0, 0);
    return;
  }
  *run = (struct run){number, pid, p.in[1], p.out[0], p.err[0], {order->max_output, order->max_output}, 0, 0, 0, 0, 0};
  for (int i = 0; i < 3; i++) fcntl((int[]){run->in, run->out, run->err}[i], F_SETFL, O_NONBLOCK);
  watch(run->out, EPOLLIN, ON_RUN, 2 * (run - runs)), watch(run->err, EPOLLIN, ON_RUN, 2 * (run - runs) + 1);
  frame_send(number, WINDOW, "", 0);
}

static struct run *find(uint32_t number) {
  for (struct run *run = runs; run < runs + MAX_RUNS; run++)
    if (run->pid && run->number == number) return run;
  return 0;
}

static void shut(int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

static void write_input(struct run *run) {
  while (run->taken < run->given) {
    ssize_t wrote = write(run->in, run->input + run->taken, run->given - run->taken);
    if (wrote < 0 && errno == EAGAIN) return watch(run->in, EPOLLOUT, ON_INPUT, run - runs);
    if (wrote < 0) run->taken = run->given; /* nobody reads it: no error of ours */
    else run->taken += wrote;
  }
  free(run->input);
  run->input = 0, run->given = run->taken = 0;
  frame_send(run->number, WINDOW, "", 0);
}

void give_input(uint32_t number, const char *body, size_t size) {
  struct run *run = find(number);
  if (!run || run->in < 0 || run->input) return;
  if (!size) return shut(&run->in);
  run->input = malloc(size);
  if (!run->input) abort();
  memcpy(run->input, body, size);
  run->given = size, run->taken = 0;
  write_input(run);
}

void input_writable(int index) {
  struct run *run = &runs[index];
  if (run->in < 0) return;
  watch(run->in, 0, ON_INPUT, index);
  if (run->input) write_input(run);
}

void kill_exec(uint32_t number) {
  char path[64];
  struct run *run = find(number);
  if (!run) return;
  run->killed = 1;
  snprintf(path, sizeof path, SANDBOX "/x%u/cgroup.kill", number);
  write_file(path, "1");
}

/* Read one stream; what is beyond its limit is dropped, so that the writer never waits for it. */
static int pump(struct run *run, int stream) {
  static char bytes[CHUNK];
  int *fd = stream ? &run->err : &run->out;
  if (*fd < 0) return 0;
  ssize_t got = read(*fd, bytes, sizeof bytes);
  if (got == 0) shut(fd);
  if (got <= 0) return 0;
  size_t keep = (size_t)got < run->room[stream] ? (size_t)got : run->room[stream];
  run->room[stream] -= keep;
  run->dropped |= keep < (size_t)got;
  if (keep) frame_send(run->number, stream ? ERR : OUT, bytes, keep);
  return 1;
}

static int held;

void run_readable(int index) {
  struct run *run = &runs[index / 2];
  if (frame_waiting() < MAX_FRAME) {
    pump(run, index % 2);
  } else { /* the host does not take what there is already */
    watch(index % 2 ? run->err : run->out, 0, ON_RUN, index);
    held = 1;
  }
}

void run_on(void) {
  if (!held || frame_waiting() >= MAX_FRAME) return;
  held = 0;
  for (int index = 0; index < 2 * MAX_RUNS; index++) {
    int fd = index % 2 ? runs[index / 2].err : runs[index / 2].out;
    if (runs[index / 2].pid && fd >= 0) watch(fd, EPOLLIN, ON_RUN, index);
  }
}

static void end_exec(struct run *run, int code) {
  char path[64], body[5];
  snprintf(path, sizeof path, SANDBOX "/x%u/cgroup.events", run->number);
  for (int look = 0; run->killed && look < 500 && read_number(path, "populated") > 0; look++) nanosleep(&(struct timespec){0, 1000000}, 0);
  for (int stream = 0; stream < 2; stream++) /* a background process may write for ever: no further than the limit */
    while (pump(run, stream) && !run->dropped);
  memcpy(body, &code, 4);
  body[4] = run->dropped;
  frame_send(run->number, ENDED, body, sizeof body);
  shut(&run->in), shut(&run->out), shut(&run->err);
  free(run->input);
  snprintf(path, sizeof path, SANDBOX "/x%u", run->number);
  rmdir(path); /* not while something that it has started lives on */
  memset(run, 0, sizeof *run);
}

int main_readable(int stream) {
  static char bytes[CHUNK];
  ssize_t got = read(main_fd[stream], bytes, sizeof bytes);
  if (got == 0) shut(&main_fd[stream]);
  for (ssize_t done = 0; done < got;) {
    ssize_t wrote = write(main_port[stream], bytes + done, got - done);
    if (wrote <= 0) return 0;
    done += wrote;
  }
  return got > 0;
}

static void end_main(int code) {
  char text[64];
  for (int stream = 0; stream < 2; stream++)
    while (main_fd[stream] >= 0 && main_readable(stream));
  int out_of_memory = code == 137 && read_number(SANDBOX "/memory.events", "oom_kill") > oom_before;
  int size = snprintf(text, sizeof text, "%d %s\n", code, out_of_memory ? "oom" : "exited");
  sync();
  if (write(port_open("strandline.status", O_WRONLY), text, size) != size) fprintf(stderr, "strandline: status was not written\n");
  switch_off();
}

void reap(void) {
  int status;
  pid_t pid;
  while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
    int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if (pid == main_pid) end_main(code);
    for (struct run *run = runs; run < runs + MAX_RUNS; run++)
      if (run->pid == pid) end_exec(run, code);
  }
}
