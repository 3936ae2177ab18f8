//! Named pipes, sizes of pipes, and calls that move bytes from file to file.

use super::*;
use crate::error::errno;
use crate::syscall::now::{SHORT, Taken};

const O_WRONLY: u64 = 1;
const NONBLOCK: u64 = 0o4000;
const F_SETPIPE_SZ: u64 = 1031;
const F_GETPIPE_SZ: u64 = 1032;

impl Run {
    fn pipe_ends(&mut self) -> (u64, u64) {
        self.call(nr::__NR_pipe2, &[DATA, NONBLOCK]).unwrap();
        let bytes = self.get(DATA, 8);
        let end = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
        (end(0), end(4))
    }

    fn made(&mut self, path: &str, text: &[u8]) -> u64 {
        self.put(DATA, format!("{path}\0").as_bytes());
        let fd = self.call(nr::__NR_open, &[DATA, 0o102, 0o600]).unwrap();
        self.put(DATA + 512, text);
        let len = text.len() as u64;
        assert_eq!(
            self.call(nr::__NR_pwrite64, &[fd, DATA + 512, len, 0]),
            Ok(len)
        );
        fd
    }

    fn whole(&mut self, fd: u64) -> Vec<u8> {
        let len = self.call(nr::__NR_read, &[fd, DATA + 512, 1024]).unwrap();
        self.get(DATA + 512, usize::try_from(len).unwrap())
    }
}

#[test]
fn a_named_pipe_waits_for_its_other_end() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    run.put(DATA + 64, b"/tmp/fifo\0");
    let name = DATA + 64;
    assert_eq!(run.call(nr::__NR_mknod, &[name, 0o010_644]), Ok(0));
    let again = run.call(nr::__NR_mknod, &[name, 0o020_644]);
    assert_eq!(errno_of(again), Some(errno::EEXIST));
    assert_eq!(run.call(nr::__NR_stat, &[name, DATA + 256]), Ok(0));
    assert_eq!(run.get(DATA + 280, 4), 0o010_644u32.to_le_bytes());
    let refused = run.call(nr::__NR_open, &[name, O_WRONLY | NONBLOCK]);
    assert_eq!(errno_of(refused), Some(errno::ENXIO));
    let open = SystemCall {
        number: nr::__NR_open.into(),
        args: [name, 0, 0, 0, 0, 0],
    };
    assert!(node.try_block_on(run.thread.system_call(open)).is_none());
    let reader = run.call(nr::__NR_open, &[name, NONBLOCK]).unwrap();
    let writer = run.call(nr::__NR_open, &[name, O_WRONLY]).unwrap();
    // The open end is the inode that the name leads to.
    assert_eq!(run.call(nr::__NR_fchmod, &[writer, 0o600]), Ok(0));
    assert_eq!(run.call(nr::__NR_stat, &[name, DATA + 256]), Ok(0));
    assert_eq!(run.call(nr::__NR_fstat, &[reader, DATA + 512]), Ok(0));
    assert_eq!(run.get(DATA + 256, 144), run.get(DATA + 512, 144));
    assert_eq!(run.get(DATA + 280, 4), 0o010_600u32.to_le_bytes());
    run.put(DATA + 512, b"through");
    assert_eq!(run.call(nr::__NR_write, &[writer, DATA + 512, 7]), Ok(7));
    assert_eq!(run.whole(reader), b"through");
    assert_eq!(
        errno_of(run.call(nr::__NR_read, &[reader, DATA + 512, 9])),
        Some(errno::EAGAIN)
    );
    run.call(nr::__NR_close, &[writer]).unwrap();
    assert_eq!(run.whole(reader), b"");
    assert_eq!(run.call(nr::__NR_unlink, &[name]), Ok(0));
    assert_eq!(run.call(nr::__NR_fstat, &[reader, DATA + 512]), Ok(0));
    assert_eq!(run.get(DATA + 520, 8), run.get(DATA + 264, 8), "its number");
    run.end();
}

#[test]
fn a_pipe_s_size_can_be_changed() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (reader, writer) = run.pipe_ends();
    assert_eq!(
        run.call(nr::__NR_fcntl, &[reader, F_GETPIPE_SZ]),
        Ok(65_536)
    );
    assert_eq!(
        run.call(nr::__NR_fcntl, &[writer, F_SETPIPE_SZ, 5000]),
        Ok(8192)
    );
    assert_eq!(run.call(nr::__NR_fcntl, &[reader, F_GETPIPE_SZ]), Ok(8192));
    let at = run.map(16_384).unwrap();
    assert_eq!(run.call(nr::__NR_write, &[writer, at, 16_384]), Ok(8192));
    let file = run.open("/big").unwrap();
    let wrong = run.call(nr::__NR_fcntl, &[file, F_GETPIPE_SZ]);
    assert_eq!(errno_of(wrong), Some(errno::EBADF));
    run.end();
}

#[test]
fn sendfile_and_copies_move_bytes_between_files() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let big = run.open("/big").unwrap();
    let copy = run.made("/tmp/copy", b"");
    assert_eq!(
        run.call(nr::__NR_sendfile, &[copy, big, 0, 1 << 30]),
        Ok(100_000)
    );
    assert_eq!(run.call(nr::__NR_lseek, &[big, 0, 1]), Ok(100_000));
    let (one, other) = (run.map(100_000).unwrap(), run.map(100_000).unwrap());
    assert_eq!(
        run.call(nr::__NR_pread64, &[big, one, 100_000, 0]),
        Ok(100_000)
    );
    assert_eq!(
        run.call(nr::__NR_pread64, &[copy, other, 200_000, 0]),
        Ok(100_000)
    );
    assert!(run.get(one, 100_000) == run.get(other, 100_000));
    // At positions of the program's.
    run.put(
        DATA,
        &[&99_990u64.to_le_bytes()[..], &5u64.to_le_bytes()].concat(),
    );
    let part = [big, DATA, copy, DATA + 8, 100, 0];
    assert_eq!(run.call(nr::__NR_copy_file_range, &part), Ok(10));
    assert_eq!(run.get(DATA, 9)[..3], [0xa0, 0x86, 1]);
    assert_eq!(run.call(nr::__NR_pread64, &[copy, other, 10, 5]), Ok(10));
    assert_eq!(run.get(other, 10), run.get(one + 99_990, 10));
    run.put(DATA, &[0; 16]);
    let itself = [copy, DATA, copy, DATA + 8, 100, 0];
    assert_eq!(
        errno_of(run.call(nr::__NR_copy_file_range, &itself)),
        Some(errno::EINVAL)
    );
    let (reader, writer) = run.pipe_ends();
    run.put(DATA, &u64::MAX.to_le_bytes());
    for (to, from, at, error) in [
        (writer, big, DATA, errno::EINVAL),
        (big, copy, 0, errno::EBADF),
        (writer, reader, 0, errno::EINVAL),
        (copy, writer, 0, errno::EBADF),
    ] {
        assert_eq!(
            errno_of(run.call(nr::__NR_sendfile, &[to, from, at, 10])),
            Some(error)
        );
    }
    // Into a pipe goes what has room.
    assert_eq!(run.call(nr::__NR_lseek, &[big, 0, 0]), Ok(0));
    assert_eq!(
        run.call(nr::__NR_sendfile, &[writer, big, 0, 100_000]),
        Ok(65_536)
    );
    assert_eq!(run.call(nr::__NR_lseek, &[big, 0, 1]), Ok(65_536));
    run.end();
}

#[test]
fn splices_lose_nothing_and_tee_leaves_what_it_copies() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let file = run.made("/tmp/x", b"spliced bytes");
    let (reader, writer) = run.pipe_ends();
    let (second, into_second) = run.pipe_ends();
    assert_eq!(
        run.call(nr::__NR_splice, &[file, 0, writer, 0, 100, 0]),
        Ok(13)
    );
    assert_eq!(run.call(nr::__NR_tee, &[reader, into_second, 7, 0]), Ok(7));
    assert_eq!(run.whole(second), b"spliced");
    let out = run.made("/tmp/y", b"");
    assert_eq!(run.call(nr::__NR_splice, &[reader, 0, out, 0, 8, 0]), Ok(8));
    assert_eq!(run.whole(reader), b"bytes");
    assert_eq!(run.call(nr::__NR_lseek, &[out, 0, 0]), Ok(0));
    assert_eq!(run.whole(out), b"spliced ");
    let again = run.call(nr::__NR_splice, &[reader, 0, out, 0, 8, 2]);
    assert_eq!(errno_of(again), Some(errno::EAGAIN));
    // A socket that is full takes a part; the rest stays in the pipe.
    run.call(nr::__NR_socketpair, &[1, 1 | NONBLOCK, 0, DATA])
        .unwrap();
    let socket = u64::from(run.get(DATA, 1)[0]);
    let at = run.map(1 << 20).unwrap();
    let sent = run.call(nr::__NR_write, &[socket, at, 1 << 20]).unwrap();
    let peer = socket + 1;
    assert_eq!(run.call(nr::__NR_read, &[peer, at, 1000]), Ok(1000));
    run.put(DATA + 512, &[7; 1024]);
    for _ in 0..3 {
        assert_eq!(
            run.call(nr::__NR_write, &[writer, DATA + 512, 1024]),
            Ok(1024)
        );
    }
    let moved = run
        .call(nr::__NR_splice, &[reader, 0, socket, 0, 3072, 2])
        .unwrap();
    assert!(moved < 3072, "{moved}");
    let left = run.call(nr::__NR_read, &[reader, at, 5000]);
    assert_eq!(left, Ok(3072 - moved));
    let rest = run.call(nr::__NR_read, &[peer, at, 1 << 20]).unwrap();
    assert_eq!(rest, sent - 1000 + moved);
    for (args, error) in [
        ([file, 0, out, 0, 1, 0], errno::EINVAL),
        ([reader, 0, writer, 0, 1, 0], errno::EINVAL),
        ([reader, DATA, out, 0, 1, 0], errno::ESPIPE),
        ([reader, 0, out, 0, 1, 16], errno::EINVAL),
    ] {
        assert_eq!(
            errno_of(run.call(nr::__NR_splice, &args)),
            Some(error),
            "{args:?}"
        );
    }
    run.put(
        DATA,
        &[&(DATA + 512).to_le_bytes()[..], &5u64.to_le_bytes()].concat(),
    );
    assert_eq!(run.call(nr::__NR_vmsplice, &[writer, DATA, 1, 0]), Ok(5));
    assert_eq!(run.whole(reader), [7; 5]);
    run.end();
}

#[test]
fn short_reads_and_writes_done_at_once_are_those_of_the_long_way() {
    let nodes: [&FakeNode; 2] = [node(64), node(64)];
    let mut runs = nodes.map(Run::new);
    let mut places = vec![DATA, DATA + 100, DATA + 4090, 0x10, u64::MAX - 7];
    let mut fds = vec![77];
    for run in &mut runs {
        let (reads, writes) = run.pipe_ends();
        let counter = run.call(nr::__NR_eventfd2, &[1, NONBLOCK]).unwrap();
        let file = run.made("/tmp/file", b"some text");
        let [untouched, fixed] = [3, 1].map(|rights| {
            let args = [0, 8192, rights, 0x22, u64::MAX, 0];
            run.call(nr::__NR_mmap, &args).unwrap()
        });
        fds.truncate(1);
        fds.extend([reads, reads, writes, writes, counter, counter, file]);
        places.truncate(5);
        places.extend([untouched, untouched + 4096, fixed]);
    }
    let mut state = 1u64;
    let mut below = |count: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        usize::try_from(state >> 33).unwrap() % count
    };
    let mut at_once = [0, 0];
    for _ in 0..6_000 {
        let fd = fds[below(fds.len())];
        let (at, len) = (
            places[below(places.len())],
            [0, 1, 8, 8, 50, 128, 129, 3000][below(8)],
        );
        let args = [fd, at, len, 0, 0, 0];
        let writes = below(2) == 0;
        let number = if writes {
            nr::__NR_write
        } else {
            nr::__NR_read
        };
        let slow = runs[0].call(number, &args[..3]);
        let now = if writes {
            runs[1].thread.call_now(number.into(), || args)
        } else {
            runs[1].thread.read_now(args)
        };
        at_once[usize::from(writes)] += u32::from(now.is_some());
        assert_eq!(
            now.map_or_else(|| runs[1].call(number, &args[..3]), Ok),
            slow,
            "{args:?}"
        );
        let [long, short] = runs.each_ref().map(|run| run.get(DATA, 4096));
        assert!(long == short, "{args:?}");
    }
    assert!(at_once.iter().all(|&count| count > 100), "{at_once:?}");
}

#[test]
fn bytes_that_were_taken_reach_the_program_when_its_page_is_back() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let (reads, _writes) = run.pipe_ends();
    let mut bytes = [0; SHORT];
    bytes[..4].copy_from_slice(b"kept");
    run.thread.taken = Some(Taken { bytes, len: 4 });
    assert_eq!(run.call(nr::__NR_read, &[reads, DATA + 64, 100]), Ok(4));
    assert_eq!(run.get(DATA + 64, 4), b"kept");
    let empty = run.call(nr::__NR_read, &[reads, DATA + 64, 100]);
    assert_eq!(errno_of(empty), Some(errno::EAGAIN), "only once");
}

#[test]
fn an_event_counter_takes_one_value_of_a_longer_write() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let counter = run.call(nr::__NR_eventfd2, &[0, NONBLOCK]).unwrap();
    run.put(DATA, &[3u64.to_le_bytes(), 5u64.to_le_bytes()].concat());
    assert_eq!(run.call(nr::__NR_write, &[counter, DATA, 16]), Ok(8));
    assert_eq!(run.call(nr::__NR_read, &[counter, DATA, 16]), Ok(8));
    assert_eq!(run.get(DATA, 8), 3u64.to_le_bytes());
}
