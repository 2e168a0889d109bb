/* System calls on a shared folder: mappings, locks, attributes, appending, positions in a folder, files without a name.
   Ends with status 3, or says what is wrong and ends with 1. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define SIZE 10000
#define NEED(what) \
    do \
        if (!(what)) { \
            fprintf(stderr, "%d: %s: %s\n", __LINE__, #what, strerror(errno)); \
            exit(1); \
        } \
    while (0)

static void mappings(void) {
    int fd = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0644);
    NEED(fd >= 0 && ftruncate(fd, SIZE) == 0);
    char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    NEED(at != MAP_FAILED && at[SIZE - 1] == 0);
    memset(at, 'M', SIZE);
    NEED(msync(at, SIZE, MS_SYNC) == 0 && pwrite(fd, "xx", 2, SIZE) == 2 && munmap(at, SIZE) == 0);
    NEED(fsync(fd) == 0 && lseek(fd, 0, SEEK_END) == SIZE + 2 && close(fd) == 0);
}

static int child_ends_with(int (*work)(void)) {
    int status;
    pid_t child = fork();
    if (child == 0)
        _exit(work());
    NEED(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static struct flock range(short type, off_t start, off_t length) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

static int tries(void) {
    struct flock lock = range(F_WRLCK, 50, 100), free = range(F_WRLCK, 100, 0);
    int fd = open("mapped", O_RDWR);
    if (fcntl(fd, F_SETLK, &lock) == 0 || (errno != EAGAIN && errno != EACCES))
        return 1;
    if (fcntl(fd, F_GETLK, &lock) != 0 || lock.l_type != F_WRLCK || lock.l_start != 0 || lock.l_len != 100)
        return 2;
    return fcntl(fd, F_SETLK, &free) == 0 ? 0 : 3;
}

static int flocks(void) {
    int fd = open("mapped", O_RDWR);
    return flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : errno == EWOULDBLOCK ? 1 : 2;
}

static void locks(void) {
    struct flock lock = range(F_WRLCK, 0, 100);
    int fd = open("mapped", O_RDWR);
    NEED(fcntl(fd, F_SETLKW, &lock) == 0);
    NEED(child_ends_with(tries) == 0);
    close(fd);
    fd = open("mapped", O_RDWR);
    NEED(flock(fd, LOCK_EX) == 0 && child_ends_with(flocks) == 1);
    NEED(flock(fd, LOCK_UN) == 0 && child_ends_with(flocks) == 0);
    close(fd);
}

static void attributes(void) {
    char value[100];
    NEED(setxattr("mapped", "user.kept", "value", 5, 0) == 0 && setxattr("mapped", "user.gone", "x", 1, XATTR_CREATE) == 0);
    NEED(setxattr("mapped", "user.gone", "y", 1, XATTR_CREATE) < 0 && errno == EEXIST);
    NEED(listxattr("mapped", value, sizeof value) == 20 && removexattr("mapped", "user.gone") == 0);
    NEED(listxattr("mapped", value, sizeof value) == 10 && getxattr("mapped", "user.kept", value, 100) == 5);
    NEED(getxattr("mapped", "user.gone", value, 100) < 0 && errno == ENODATA);
}

static void append(const char *line) {
    int fd = open("appended", O_WRONLY | O_APPEND | O_CREAT, 0644);
    for (int n = 0; n < 100; n++) {
        NEED(write(fd, line, strlen(line)) == (ssize_t)strlen(line));
        NEED(fsync(fd) == 0);
    }
    close(fd);
}

static int appends(void) {
    append("child\n");
    return 0;
}

static void positions(void) {
    char name[40], seen[500] = {0};
    NEED(mkdir("many", 0755) == 0);
    for (int n = 0; n < 500; n++) {
        sprintf(name, "many/file-with-a-rather-long-name-%03d", n);
        NEED(mknod(name, S_IFREG | 0600, 0) == 0);
    }
    DIR *folder = opendir("many");
    long middle = 0;
    int count = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (entry->d_name[0] == '.')
            continue;
        seen[atoi(strrchr(entry->d_name, '-') + 1)]++;
        if (++count == 250)
            middle = telldir(folder);
    }
    NEED(count == 500 && !memchr(seen, 0, 500));
    seekdir(folder, middle);
    for (count = 0; readdir(folder); count++)
        ;
    NEED(count >= 250 && count <= 252);
    rewinddir(folder);
    for (struct dirent *entry; (entry = readdir(folder));) /* removing while reading misses nothing */
        if (entry->d_name[0] != '.') {
            sprintf(name, "many/%.34s", entry->d_name);
            NEED(unlink(name) == 0);
        }
    closedir(folder);
    NEED(rmdir("many") == 0);
}

static void nameless(void) {
    char text[10] = "";
    struct stat found;
    int fd = open("nameless", O_RDWR | O_CREAT | O_EXCL, 0400);
    NEED(fd >= 0 && unlink("nameless") == 0 && write(fd, "kept", 4) == 4 && ftruncate(fd, 3) == 0);
    NEED(pread(fd, text, 10, 0) == 3 && strcmp(text, "kep") == 0 && fstat(fd, &found) == 0 && found.st_size == 3);
    close(fd);
    NEED(rename("mapped", "other") == 0 && rename("other", "mapped") == 0 && access("other", F_OK) < 0);
}

int main(int count, char **words) {
    mappings();
    locks();
    attributes();
    positions();
    nameless();
    pid_t child = fork();
    if (child == 0)
        _exit(appends());
    append("parent\n");
    int status;
    NEED(waitpid(child, &status, 0) == child && status == 0);
    printf("all is well: %s %s\n", words[1], words[2]);
    return 3;
}
