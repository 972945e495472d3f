/* Preloaded into a program: it may connect to this machine only. What it tries else is refused and noted. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int is_ours(const struct sockaddr *address) {
    struct ifaddrs *all = NULL, *one;
    int found = 0;
    if (getifaddrs(&all) != 0) return 0;
    for (one = all; one != NULL && !found; one = one->ifa_next) {
        if (one->ifa_addr == NULL || one->ifa_addr->sa_family != address->sa_family) continue;
        if (address->sa_family == AF_INET)
            found = ((struct sockaddr_in *)one->ifa_addr)->sin_addr.s_addr == ((struct sockaddr_in *)address)->sin_addr.s_addr;
        else
            found = memcmp(&((struct sockaddr_in6 *)one->ifa_addr)->sin6_addr, &((struct sockaddr_in6 *)address)->sin6_addr, 16) == 0;
    }
    freeifaddrs(all);
    return found;
}

static int allowed(const struct sockaddr *address) {
    if (address == NULL) return 1;
    if (address->sa_family == AF_INET) {
        unsigned long host = ntohl(((struct sockaddr_in *)address)->sin_addr.s_addr);
        return host >> 24 == 127 || host == 0 || is_ours(address);
    }
    if (address->sa_family == AF_INET6) {
        const struct in6_addr *host = &((struct sockaddr_in6 *)address)->sin6_addr;
        if (IN6_IS_ADDR_V4MAPPED(host)) {
            struct sockaddr_in plain = {.sin_family = AF_INET};
            memcpy(&plain.sin_addr, &host->s6_addr[12], 4);
            return allowed((struct sockaddr *)&plain);
        }
        return IN6_IS_ADDR_LOOPBACK(host) || IN6_IS_ADDR_UNSPECIFIED(host) || is_ours(address);
    }
    return 1; /* not of a network */
}

static int refuse(const struct sockaddr *address) {
    char text[INET6_ADDRSTRLEN] = "?", line[256];
    const char *path = getenv("REFUSED_LOG");
    const void *host = address->sa_family == AF_INET ? (void *)&((struct sockaddr_in *)address)->sin_addr
                                                     : (void *)&((struct sockaddr_in6 *)address)->sin6_addr;
    inet_ntop(address->sa_family, host, text, sizeof text);
    int log = path == NULL ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (log >= 0) {
        snprintf(line, sizeof line, "process %d: %s\n", (int)getpid(), text);
        if (write(log, line, strlen(line)) < 0) perror("REFUSED_LOG");
        close(log);
    }
    errno = ENETUNREACH;
    return -1;
}

int connect(int fd, const struct sockaddr *address, socklen_t size) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    return allowed(address) ? real(fd, address, size) : refuse(address);
}

ssize_t sendto(int fd, const void *data, size_t bytes, int flags, const struct sockaddr *address, socklen_t size) {
    ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
    return allowed(address) ? real(fd, data, bytes, flags, address, size) : refuse(address);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    return allowed(message->msg_name) ? real(fd, message, flags) : refuse(message->msg_name);
}
