// Runs a program whose memory is not to be randomized.
#include <sys/personality.h>
#include <unistd.h>

int main(int argc, char **argv) {
	if (argc < 2 || personality(ADDR_NO_RANDOMIZE) < 0)
		return 125;
	execv(argv[1], argv + 1);
	return 126;
}
