/* The machine's network: one interface, whose addresses are the host's to say, at a start and again in each copy. */
#include "agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TEXT = 64 };

static void name_it(struct ifreq *ask, const char *name) {
  memset(ask, 0, sizeof *ask);
  strncpy(ask->ifr_name, name, IFNAMSIZ - 1);
}

static int set_flags(int fd, const char *name, int up) {
  struct ifreq ask;
  name_it(&ask, name);
  if (ioctl(fd, SIOCGIFFLAGS, &ask)) return 0;
  if (!!(ask.ifr_flags & IFF_UP) == up) return 1;
  ask.ifr_flags = up ? ask.ifr_flags | IFF_UP : ask.ifr_flags & ~IFF_UP;
  return !ioctl(fd, SIOCSIFFLAGS, &ask);
}

static int set_address(int fd, unsigned long what, const char *address) {
  struct ifreq ask;
  struct sockaddr_in *in = (struct sockaddr_in *)&ask.ifr_addr;
  name_it(&ask, "eth0");
  in->sin_family = AF_INET;
  return inet_pton(AF_INET, address, &in->sin_addr) == 1 && !ioctl(fd, what, &ask);
}

static int set_hardware(int fd, const char *text) {
  struct ifreq ask;
  unsigned char *b = (unsigned char *)ask.ifr_hwaddr.sa_data;
  name_it(&ask, "eth0");
  ask.ifr_hwaddr.sa_family = ARPHRD_ETHER;
  return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", b, b + 1, b + 2, b + 3, b + 4, b + 5) == 6 && !ioctl(fd, SIOCSIFHWADDR, &ask);
}

static int set_route(int fd, const char *gateway) {
  struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
  struct sockaddr_in *through = (struct sockaddr_in *)&route.rt_gateway;
  route.rt_dst.sa_family = route.rt_genmask.sa_family = through->sin_family = AF_INET;
  return inet_pton(AF_INET, gateway, &through->sin_addr) == 1 && (!ioctl(fd, SIOCADDRT, &route) || errno == EEXIST);
}

/* Told with its new hardware address, whoever knew the address under another one forgets that (arp_notify). */
void open_network(void) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  set_flags(fd, "lo", 1);
  close(fd);
  write_file("/proc/sys/net/ipv4/conf/all/arp_notify", "1");
}

/* "address netmask gateway hardware-address", or "" for none. 0: it could not be. */
int set_network(const char *text) {
  static int configured;
  if (!*text && !configured) return 1;
  configured = *text != 0;
  char address[TEXT], mask[TEXT], gateway[TEXT], hardware[TEXT];
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), done = 1;
  if (sscanf(text, "%63s %63s %63s %63s", address, mask, gateway, hardware) == 4)
    done = set_flags(fd, "eth0", 0) && set_hardware(fd, hardware) && set_address(fd, SIOCSIFADDR, address) &&
           set_address(fd, SIOCSIFNETMASK, mask) && set_flags(fd, "eth0", 1) && set_route(fd, gateway);
  else
    set_flags(fd, "eth0", 0);
  int why = errno;
  close(fd);
  errno = why;
  return done;
}
