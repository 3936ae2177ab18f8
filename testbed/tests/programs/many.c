// Starts and ends many processes and threads, and asks that everything they used comes back.
//
// usage: many PROCESSES THREADS
//
// Every twentieth process runs this program anew from the disk, every seventh is killed, every fifth leaves a child of its
// own to process 1. Prints what differs from before; nothing may.
#include <pthread.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BATCH 8
#define PAGES 16
#define WARM_UP 40
#define PATIENCE 100

static char *self;

// What a machine has: free memory and promised memory in kB, threads, open files.
struct state {
	unsigned long free, committed, threads, files;
};

static unsigned long value(const char *path, const char *name)
{
	char line[256];
	unsigned long found = 0;
	FILE *file = fopen(path, "r");
	if (!file)
		exit(2);
	while (fgets(line, sizeof line, file))
		if (!strncmp(line, name, strlen(name)))
			found = strtoul(line + strlen(name), NULL, 10);
	fclose(file);
	return found;
}

static struct state look(void)
{
	struct state state = {
		.free = value("/proc/meminfo", "MemFree:"),
		.committed = value("/proc/meminfo", "Committed_AS:"),
	};
	char line[256] = "";
	FILE *file = fopen("/proc/loadavg", "r");
	if (file && fgets(line, sizeof line, file) && strchr(line, '/'))
		state.threads = strtoul(strchr(line, '/') + 1, NULL, 10);
	if (file)
		fclose(file);
	DIR *dir = opendir("/proc/self/fd");
	while (dir && readdir(dir))
		state.files++;
	if (dir)
		closedir(dir);
	return state;
}

static void child(int number)
{
	char *memory = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int pipes[2];
	if (memory == MAP_FAILED || pipe(pipes))
		_exit(1);
	for (int page = 0; page < PAGES; page++)
		memory[page * 4096] = page;
	if (number % 20 == 0)
		execl(self, self, "child", NULL);
	if (number % 7 == 0)
		raise(SIGKILL);
	if (number % 5 == 0 && fork() == 0) {
		usleep(1000);
		_exit(0);
	}
	_exit(0);
}

static void processes(int count)
{
	for (int begun = 0; begun < count; begun += BATCH) {
		for (int i = 0; i < BATCH; i++) {
			pid_t pid = fork();
			if (pid < 0) {
				perror("fork");
				exit(1);
			}
			if (pid == 0)
				child(begun + i);
		}
		while (wait(NULL) > 0)
			;
	}
}

static void *thread(void *number)
{
	// Its stack is touched deeper than the first page.
	volatile char room[20000];
	room[0] = room[sizeof room - 1] = (long)number;
	return NULL;
}

static void threads(int count)
{
	for (int begun = 0; begun < count; begun += BATCH) {
		pthread_t made[BATCH];
		for (long i = 0; i < BATCH; i++)
			if (pthread_create(&made[i], NULL, thread, (void *)i)) {
				puts("no thread");
				exit(1);
			}
		for (int i = 0; i < BATCH; i++)
			pthread_join(made[i], NULL);
	}
}

int main(int argc, char **argv)
{
	self = argv[0];
	if (argc == 2)
		return 0;
	if (argc != 3)
		return 2;
	processes(WARM_UP);
	threads(WARM_UP);
	struct state before = look(), after = before;
	processes(atoi(argv[1]));
	threads(atoi(argv[2]));
	// Memory goes back to its lender by and by.
	for (int i = 0; i < PATIENCE; i++) {
		after = look();
		if (!memcmp(&before, &after, sizeof before))
			break;
		usleep(100000);
	}
	if (memcmp(&before, &after, sizeof before)) {
		printf("free %lu %lu, committed %lu %lu, threads %lu %lu, files %lu %lu\n", before.free, after.free,
		       before.committed, after.committed, before.threads, after.threads, before.files, after.files);
		return 1;
	}
	puts("everything came back");
	return 0;
}
