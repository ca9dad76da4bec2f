/* Processes of the sandbox. The main one is the first of a pid namespace, so that with it all others end; each further one has a control
 * group of its own, so that it can be killed with everything it has started, whatever sessions and environments those have made. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct run { uint32_t number; pid_t pid; int in, out, err; size_t room[2]; int dropped, killed; char *input; size_t given, taken; };

static struct run runs[MAX_RUNS];
pid_t main_pid;
static int main_fd[2] = {-1, -1}, main_port[2] = {-1, -1}, status_port = -1, own_pids = -1, oom_before;

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

void open_ports(void) {
  main_port[0] = port_open("strandline.stdout", O_WRONLY);
  main_port[1] = port_open("strandline.stderr", O_WRONLY);
  status_port = port_open("strandline.status", O_WRONLY);
}

/* Done once before the machine is saved: everything that the kernel does at the first time only - caches, patched branches - is done in
 * every machine that goes on from there. Done again in one that waits: an emulator forgets what it had translated. */
void rehearse(void) {
  set_limits("100000 67108864 64");
  mkdir(DISK, 0755);
  pid_t pid = syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0);
  if (pid == 0) {
    enter_group("main");
    if (mount("tmpfs", DISK, "tmpfs", 0, 0)) _exit(1);
    make_root();
    _exit(0);
  }
  waitpid(pid, 0, 0);
}

void start_main(uint32_t number, struct order *order) {
  struct pipes p;
  mount_disk();
  open_pipes(&p);
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
  if (!run->pid || run->in < 0) return;
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
  if (!run->pid) return; /* it ended earlier in the same round of events */
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
  *run = (struct run){.in = -1, .out = -1, .err = -1};
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
  if (write(status_port, text, size) != size) fprintf(stderr, "strandline: status was not written\n");
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
