// Rights of files: `rights DIR` prints what calls of several users do in directories of several modes, which must be what
// Linux prints. What Linux makes depend on fs.protected_* is left out.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

struct who {
    const char *name;
    uid_t uid;
    gid_t gid, other;
};

static const struct who people[] = {
    {"root", 0, 0, 0}, {"owner", 1000, 100, 100}, {"member", 1001, 100, 100}, {"also", 1002, 200, 100}, {"other", 1003, 300, 300},
};

// Prints 0 or the error.
#define TRY(call) (printf(" %d", (call) < 0 ? errno : 0))

static int opens(const char *name, int flags) {
    int fd = open(name, flags, 0666);
    if (fd < 0) return -1;
    close(fd);
    return 0;
}

static int appends(const char *name) {
    int fd = open(name, O_WRONLY | O_APPEND);
    if (fd < 0) return -1;
    if (write(fd, "more", 4) != 4) return -1;
    close(fd);
    return 0;
}

static void show(const char *name) {
    struct stat st;
    if (lstat(name, &st)) printf(" -");
    else printf(" %o:%u:%u:%ld", st.st_mode, st.st_uid, st.st_gid, S_ISREG(st.st_mode) ? (long)st.st_size : 0);
}

// Asks, and changes nothing.
static void look(void) {
    struct stat st;
    char target[16];
    printf(" look");
    TRY(stat("d", &st));
    TRY(stat("d/f", &st));
    TRY(stat("d/missing", &st));
    TRY(stat("d/sub/..", &st));
    TRY(readlink("d/link", target, sizeof target));
    TRY(opens("d", O_RDONLY | O_DIRECTORY));
    TRY(opens("d/f", O_RDONLY));
    TRY(opens("d/f", O_WRONLY));
    TRY(opens("d/f", O_RDWR));
    TRY(opens("d/f", O_PATH));
    for (int mode = 1; mode < 8; mode++) TRY(access("d/f", mode));
    TRY(access("d", W_OK | X_OK));
}

// Makes names.
static void make(void) {
    printf(" make");
    TRY(opens("d/new", O_RDWR | O_CREAT));
    TRY(opens("d/none", O_RDONLY | O_CREAT | O_EXCL));
    TRY(mkdir("d/dir", 02750));
    TRY(mkfifo("d/fifo", 06666));
    TRY(mknod("d/null", S_IFCHR | 0666, makedev(1, 3)));
    TRY(symlink("f", "d/soft"));
    TRY(link("d/own", "d/hard"));
    for (const char *const *name = (const char *const[]){"new", "none", "dir", "fifo", "null", "soft", "hard", NULL}; *name; name++) {
        char path[32];
        snprintf(path, sizeof path, "d/%s", *name);
        show(path);
    }
}

// Changes attributes and contents.
static void change(const struct who *who) {
    struct timespec times[2] = {{.tv_sec = 5}, {.tv_sec = 6}}, now[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_NOW}};
    printf(" change");
    TRY(appends("d/f"));
    show("d/f");
    TRY(utimensat(AT_FDCWD, "d/f", NULL, 0));
    TRY(utimensat(AT_FDCWD, "d/f", now, 0));
    TRY(utimensat(AT_FDCWD, "d/f", times, 0));
    TRY(chown("d/f", who->uid, -1));
    TRY(chown("d/f", -1, who->other));
    TRY(chown("d/f", -1, 777));
    show("d/f");
    TRY(chmod("d/f", 06775));
    show("d/f");
    TRY(opens("d/f", O_RDONLY | O_TRUNC));
    TRY(truncate("d/f", 3));
    show("d/f");
}

// Takes names away.
static void take(void) {
    printf(" take");
    TRY(rename("d/f", "d/g"));
    TRY(rename("d/mine", "other/f"));
    TRY(rename("d/sub", "other/sub"));
    TRY(rename("other/theirs", "d/theirs"));
    TRY(renameat2(AT_FDCWD, "d/link", AT_FDCWD, "other/kept", RENAME_EXCHANGE));
    TRY(unlink("d/g"));
    TRY(unlink("d/own"));
    TRY(rmdir("d/sub"));
    TRY(rmdir("d"));
    show("d/f");
    show("d/mine");
    show("other/f");
    show("other/kept");
}

static void file(const char *name, mode_t mode, uid_t uid, gid_t gid) {
    int fd = open(name, O_CREAT | O_RDWR | O_EXCL, 0600);
    if (fd < 0 || write(fd, "text", 4) != 4 || fchown(fd, uid, gid) || fchmod(fd, mode)) perror(name);
    close(fd);
}

static void directory(const char *name, mode_t mode, uid_t uid, gid_t gid) {
    if (mkdir(name, 0700) || chown(name, uid, gid) || chmod(name, mode)) perror(name);
}

static void prepare(const struct who *who, mode_t dir, mode_t mode, int theirs) {
    uid_t uid = theirs ? 1003 : 1000;
    gid_t gid = theirs ? 300 : 100;
    directory("d", 0700, 1000, 100);
    directory("other", 0777, 0, 0);
    directory("d/sub", 0755, uid, gid);
    file("d/f", mode, uid, gid);
    file("d/mine", 0600, who->uid, who->gid);
    file("d/own", 0600, who->uid, who->gid);
    file("other/theirs", 0600, 0, 0);
    file("other/kept", 0600, who->uid, who->gid);
    if (symlink("f", "d/link") || lchown("d/link", uid, gid) || chmod("d", dir)) perror("d");
}

static void clean(void) {
    if (system("rm -rf d other")) perror("rm");
}

int main(int count, char **args) {
    static const mode_t dirs[] = {0700, 0711, 0744, 0755, 0777, 01777, 02775}, files[] = {0644, 0666, 04711, 06755};
    if (count < 2 || chdir(args[1])) return 2;
    umask(022);
    for (size_t d = 0; d < LENGTH(dirs); d++)
        for (size_t f = 0; f < LENGTH(files); f++)
            for (size_t p = 0; p < LENGTH(people); p++) {
                const struct who *who = &people[p];
                int theirs = (d + f) % 2, status;
                prepare(who, dirs[d], files[f], theirs);
                printf("%o %o %d %s:", dirs[d], files[f], theirs, who->name);
                fflush(stdout);
                if (!fork()) {
                    gid_t groups[] = {5, who->other};
                    if (setgroups(2, groups) || setresgid(who->gid, who->gid, who->gid)) return 3;
                    if (who->uid && setresuid(who->uid, who->uid, who->uid)) return 4;
                    look();
                    make();
                    change(who);
                    take();
                    puts("");
                    return 0;
                }
                if (wait(&status) < 0 || status) printf("ended with %x\n", status);
                clean();
            }
    return 0;
}
