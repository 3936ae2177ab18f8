// System V's interprocess communication between a process and its children: a segment that all
// write under a semaphore, a queue by which they tell of their ends, an undo that frees the
// semaphore of one that died. Prints what came of it.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 4
#define ROUNDS 500

struct note {
    long type;
    int child;
};

static int check(int result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static int operate(int set, int change, int flags) {
    struct sembuf operation = {0, change, flags};
    return semop(set, &operation, 1);
}

static void child(int number, int segment, int set, int queue) {
    volatile long *counters = shmat(segment, NULL, 0);
    for (int round = 0; round < ROUNDS; round++) {
        check(operate(set, -1, SEM_UNDO), "take");
        long value = counters[0];
        if (round % 50 == 0)
            usleep(100);
        counters[0] = value + 1;
        counters[512 * (number + 1)]++;
        check(operate(set, 1, SEM_UNDO), "give");
    }
    struct note note = {number + 1, number};
    check(msgsnd(queue, &note, sizeof note.child, 0), "msgsnd");
    // The last one dies with the semaphore.
    if (number == CHILDREN - 1)
        check(operate(set, -1, SEM_UNDO), "keep");
    _exit(0);
}

int main(void) {
    int segment = check(shmget(IPC_PRIVATE, 4096 * (CHILDREN + 1), IPC_CREAT | 0600), "shmget");
    int set = check(semget(IPC_PRIVATE, 1, IPC_CREAT | 0600), "semget");
    int queue = check(msgget(IPC_PRIVATE, IPC_CREAT | 0600), "msgget");
    long *counters = shmat(segment, NULL, 0);
    check(shmctl(segment, IPC_RMID, NULL), "IPC_RMID");
    check(operate(set, 1, 0), "first");
    for (int number = 0; number < CHILDREN; number++)
        if (check(fork(), "fork") == 0)
            child(number, segment, set, queue);
    for (int number = CHILDREN; number > 0; number--) {
        struct note note;
        check(msgrcv(queue, &note, sizeof note.child, number, 0), "msgrcv");
        printf("child %d has written %ld\n", note.child, counters[512 * number]);
    }
    while (wait(NULL) > 0)
        ;
    struct shmid_ds status;
    check(shmctl(segment, IPC_STAT, &status), "IPC_STAT");
    printf("sum %ld, attached %lu, semaphore %d\n", counters[0], (unsigned long)status.shm_nattch,
           check(semctl(set, 0, GETVAL), "GETVAL"));
    check(msgctl(queue, IPC_RMID, NULL), "remove the queue");
    check(semctl(set, 0, IPC_RMID), "remove the set");
    check(shmdt(counters), "shmdt");
    printf("%s\n", shmat(segment, NULL, 0) == (void *)-1 ? "gone" : "still there");
    return 0;
}
