// Makes random system calls and runs random code, from a seed: only the processes that do so may die.
//
// usage: wild SEED SECONDS
//
// A supervisor starts one worker after the other. A worker has threads that race through one address space and
// one table of files; a third of the workers stays root and makes no processes, the others are a user. After
// each the supervisor kills what is left, and asks that new processes, memory, pipes and files still work. It must be
// process 1 or alone: it kills all others. To do one worker again, give its seed and 0 seconds.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS 3
#define LAST_CALL 470
#define ROOM (64 << 10)
#define LIFE_MS 700
#define MEMORY (256UL << 20)
#define NOBODY 65534
// KB that may be promised to what is under way.
#define LOST_KB (16 << 10)

static const char *const paths[] = {
	"/tmp", "/tmp/wild", "/tmp/wild/a", "/tmp/wild/b", "a", ".", "..", "", "/", "/proc/self/maps",
	"/proc/self/fd/3", "/proc/self/exe", "/proc/1/stat", "/dev/null", "/dev/zero", "/dev/full", "/dev/ptmx",
	"/dev/tty", "/dev/shm/w", "/sys", "/bin/wild", "/nowhere/x", "/tmp/wild/fifo", "/dev/pts/0",
};

struct chance {
	uint64_t state;
};

static uint64_t next(struct chance *chance)
{
	// splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
	uint64_t z = chance->state += 0x9e3779b97f4a7c15;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint64_t below(struct chance *chance, uint64_t limit)
{
	return next(chance) % limit;
}

// Memory that calls are given, before a page that is not mapped; and a page that can only be read.
static unsigned char *room, *constant;
static int root;
// Counts the calls of all workers.
static volatile uint64_t *calls;

static uint64_t pointer(struct chance *chance)
{
	switch (below(chance, 12)) {
	case 0: return 0;
	case 1: return below(chance, 4096);
	case 2: return (uint64_t)room + ROOM - below(chance, 64); // up to the end
	case 3: return (uint64_t)room + ROOM + below(chance, 4096); // not mapped
	case 4: return (uint64_t)constant + below(chance, 4096);
	case 5: return 0xffff800000000000 + (next(chance) & 0xffffffffff);
	case 6: return 0xffffffff80000000 + (next(chance) & 0x3fffffff);
	case 7: return 0x7ffffffff000 - 4096 + below(chance, 8192); // the end of the lower half
	case 8: return (uint64_t)paths[below(chance, sizeof paths / sizeof *paths)];
	default: return (uint64_t)room + (below(chance, ROOM) & ~7UL);
	}
}

static uint64_t word(struct chance *chance)
{
	static const uint64_t edges[] = {
		0, 1, 2, 4095, 4096, 4097, 65536, 0x7fffffff, 0x80000000, 0xffffffff, 1UL << 32, 1UL << 47,
		0x7fffffffffffffff, 1UL << 63, -1, -4096, -100, 1 << 20, 3, 8,
	};
	switch (below(chance, 8)) {
	case 0: return edges[below(chance, sizeof edges / sizeof *edges)];
	case 1: return below(chance, 40); // a file, a signal, an operation
	case 2: return below(chance, 300);
	case 3: return 1UL << below(chance, 64) | 1UL << below(chance, 64);
	case 4: return next(chance);
	default: return pointer(chance);
	}
}

// Fills a part of the room with what structures hold: small numbers, pointers, noise.
static void scatter(struct chance *chance)
{
	uint64_t *words = (uint64_t *)(room + (below(chance, ROOM - 512) & ~7UL));
	for (int i = 0; i < 64; i++)
		words[i] = word(chance);
}

static int forks(long call)
{
	return call == SYS_fork || call == SYS_vfork || call == SYS_clone || call == SYS_clone3;
}

static int signals(long call)
{
	return call == SYS_kill || call == SYS_tkill || call == SYS_tgkill || call == SYS_rt_sigqueueinfo ||
	       call == SYS_rt_tgsigqueueinfo;
}

static int ends(long call)
{
	return call == SYS_exit || call == SYS_exit_group || call == SYS_pause || call == SYS_rt_sigsuspend;
}

static void *race(void *seed)
{
	struct chance chance = {(uint64_t)seed};
	for (;;) {
		if (below(&chance, 4) == 0)
			scatter(&chance);
		long call = below(&chance, 20) ? (long)below(&chance, LAST_CALL) : (long)next(&chance);
		uint64_t a[6];
		for (int i = 0; i < 6; i++)
			a[i] = word(&chance);
		// Root could end the supervisor, and fills the machine with processes.
		if (root && (forks(call) || call == SYS_prlimit64 || call == SYS_setpriority))
			continue;
		if (root && signals(call))
			a[0] = a[1] = getpid();
		if (ends(call) && below(&chance, 40))
			continue;
		++*calls;
		syscall(call, a[0], a[1], a[2], a[3], a[4], a[5]);
	}
	return NULL;
}

// Runs random bytes as code, as crashme does.
static void *code(void *seed)
{
	struct chance chance = {(uint64_t)seed};
	uint64_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return NULL;
	for (int i = 0; i < 512; i++)
		page[i] = next(&chance);
	((void (*)(void))((char *)page + below(&chance, 4096)))();
	return NULL;
}

static void limit(int what, rlim_t most)
{
	struct rlimit limits = {most, most};
	setrlimit(what, &limits);
}

static void work(uint64_t seed)
{
	struct chance chance = {seed};
	root = below(&chance, 3) == 0;
	int wild_code = below(&chance, 4) == 0;
	int null = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	room = mmap(NULL, ROOM + 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	munmap(room + ROOM, 4096);
	constant = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	limit(RLIMIT_AS, MEMORY);
	limit(RLIMIT_FSIZE, 1 << 20);
	limit(RLIMIT_NOFILE, 64);
	if (chdir("/tmp/wild"))
		_exit(1);
	// A user's processes are counted; root's are not.
	limit(RLIMIT_NPROC, 20);
	if (!root && (setgid(NOBODY) || setuid(NOBODY)))
		_exit(1);
	if (wild_code && !root) {
		for (int i = 0; i < 40; i++) {
			uint64_t other = next(&chance);
			pid_t pid = fork();
			if (pid == 0) {
				alarm(1);
				code((void *)other);
				_exit(0);
			}
		}
		while (wait(NULL) > 0)
			;
		_exit(0);
	}
	pthread_t threads[THREADS];
	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, race, (void *)next(&chance));
	pthread_join(threads[0], NULL);
	_exit(0);
}

static uint64_t millis(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000UL + now.tv_nsec / 1000000;
}

static void fail(const char *what, uint64_t seed)
{
	printf("%s after seed %lu: %s\n", what, seed, strerror(errno));
	exit(1);
}

// Removes what outlives processes: segments of memory, semaphores, queues, files.
static void clean(void)
{
	struct shmid_ds segment;
	struct shm_info segments;
	int last = shmctl(0, SHM_INFO, (void *)&segments);
	for (int at = 0; at <= last; at++)
		shmctl(shmctl(at, SHM_STAT, &segment), IPC_RMID, NULL);
	struct semid_ds set;
	struct seminfo sets;
	union {
		struct semid_ds *set;
		struct seminfo *sets;
	} argument = {.sets = &sets};
	last = semctl(0, 0, SEM_INFO, argument);
	argument.set = &set;
	for (int at = 0; at <= last; at++)
		semctl(semctl(at, 0, SEM_STAT, argument), 0, IPC_RMID);
	struct msqid_ds queue;
	struct msginfo queues;
	last = msgctl(0, MSG_INFO, (void *)&queues);
	for (int at = 0; at <= last; at++)
		msgctl(msgctl(at, MSG_STAT, &queue), IPC_RMID, NULL);
	system("find /tmp /dev/shm -mindepth 1 -depth -delete 2>/dev/null");
}

// Returns the KB of memory that M has promised.
static long committed(void)
{
	char line[256];
	long size = -1;
	FILE *file = fopen("/proc/meminfo", "r");
	while (file && fgets(line, sizeof line, file))
		sscanf(line, "Committed_AS: %ld", &size);
	if (file)
		fclose(file);
	return size;
}

// Asks that what every program needs still works.
static void examine(uint64_t seed)
{
	int pipes[2], status;
	char byte = 0;
	if (pipe(pipes))
		fail("no pipe", seed);
	pid_t pid = fork();
	if (pid < 0)
		fail("no process", seed);
	if (pid == 0) {
		size_t size = 4 << 20;
		unsigned char *memory = malloc(size);
		if (!memory)
			_exit(1);
		for (size_t at = 0; at < size; at += 4096)
			memory[at] = at >> 12;
		for (size_t at = 0; at < size; at += 4096)
			if (memory[at] != (unsigned char)(at >> 12))
				_exit(2);
		int fd = open("/tmp/examined", O_RDWR | O_CREAT | O_TRUNC, 0600);
		if (fd < 0 || write(fd, "x", 1) != 1 || unlink("/tmp/examined"))
			_exit(3);
		_exit(write(pipes[1], "y", 1) == 1 ? 42 : 4);
	}
	close(pipes[1]);
	ssize_t got = read(pipes[0], &byte, 1);
	int why = errno;
	if (got != 1 || byte != 'y') {
		waitpid(pid, &status, 0);
		printf("read %zd, the child ended with status %#x\n", got, status);
		system("cat /proc/meminfo 1>&2; ls -la /tmp /dev/shm 1>&2");
		errno = why;
		fail("no byte", seed);
	}
	close(pipes[0]);
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 42)
		fail("no status", seed);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	uint64_t seed = strtoul(argv[1], NULL, 0), seconds = strtoul(argv[2], NULL, 0);
	uint64_t start = millis(), workers = 0, ended[3] = {0};
	long before = committed();
	calls = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	setvbuf(stdout, NULL, _IOLBF, 0);
	do {
		clean();
		mkdir("/tmp/wild", 0777);
		chmod("/tmp/wild", 0777);
		printf("seed %lu\n", seed);
		pid_t pid = fork();
		if (pid < 0)
			fail("no worker", seed);
		if (pid == 0)
			work(seed);
		uint64_t since = millis();
		int status = 0;
		pid_t done = 0;
		while (!done && millis() - since < LIFE_MS) {
			done = waitpid(pid, &status, WNOHANG);
			usleep(5000);
		}
		kill(-1, SIGKILL);
		if (!done && waitpid(pid, &status, 0) != pid)
			fail("a worker was lost", seed);
		ended[!done ? 0 : WIFSIGNALED(status) ? 1 : 2]++;
		while (waitpid(-1, NULL, 0) > 0)
			kill(-1, SIGKILL);
		examine(seed);
		workers++;
		seed++;
	} while (millis() - start < seconds * 1000);
	printf("%lu workers made %lu calls and ended: %lu at their time, %lu by a signal, %lu by themselves\n", workers,
	       *calls, ended[0], ended[1], ended[2]);
	clean();
	long after = committed();
	if (before < 0 || after > before + LOST_KB) {
		printf("%ld KB were promised before, %ld KB after\n", before, after);
		return 1;
	}
	puts("all is well");
	return 0;
}
