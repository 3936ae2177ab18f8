//! POSIX message queues.

use super::*;
use crate::error::errno;

const CREATE: u64 = 0o102;
const NONBLOCK: u64 = 0o4000;
const NAME: u64 = DATA + 0x100;
const ATTRIBUTES: u64 = DATA + 0x200;
const SIGUSR1: u64 = 10;

impl Run {
    fn queue(&mut self, name: &str, flags: u64, bounds: [u64; 2]) -> Result<u64, Error> {
        self.put(NAME, format!("{name}\0").as_bytes());
        self.put(ATTRIBUTES, &words(&[0, bounds[0], bounds[1], 0]));
        self.call(nr::__NR_mq_open, &[NAME, flags, 0o600, ATTRIBUTES])
    }

    fn mq_send(&mut self, fd: u64, text: &[u8], priority: u64) -> Result<u64, Error> {
        let addr = self.put(DATA, text);
        let args = [fd, addr, text.len() as u64, priority, 0];
        self.call(nr::__NR_mq_timedsend, &args)
    }

    fn mq_receive(&mut self, fd: u64) -> Result<Vec<u8>, Error> {
        let args = [fd, DATA, 64, DATA + 64, 0];
        let len = self.call(nr::__NR_mq_timedreceive, &args)?;
        Ok(self.get(DATA, usize::try_from(len).unwrap()))
    }
}

#[test]
fn queues_are_found_by_name_and_live_as_long_as_they_are_open() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    assert_eq!(errno_of(run.queue("q", 2, [2, 8])), Some(errno::ENOENT));
    assert_eq!(
        errno_of(run.queue("a/b", CREATE, [2, 8])),
        Some(errno::EACCES)
    );
    assert_eq!(
        errno_of(run.queue("q", CREATE, [0, 8])),
        Some(errno::EINVAL)
    );
    let large = run.queue("q", CREATE, [65_536, 8192]);
    assert_eq!(errno_of(large), Some(errno::EMFILE), "RLIMIT_MSGQUEUE");
    let one = run.queue("q", CREATE, [2, 8]).unwrap();
    let two = run.queue("q", NONBLOCK, [0, 0]).unwrap();
    let exclusive = run.queue("q", CREATE | 0o200, [2, 8]);
    assert_eq!(errno_of(exclusive), Some(errno::EEXIST));
    assert_eq!(run.mq_send(one, b"low", 1), Ok(0));
    assert_eq!(run.mq_send(one, b"high", 9), Ok(0));
    assert_eq!(
        errno_of(run.mq_send(two, b"x", 0)),
        Some(errno::EBADF),
        "read only"
    );
    assert_eq!(
        errno_of(run.mq_send(one, b"x", 32_768)),
        Some(errno::EINVAL)
    );
    assert_eq!(
        errno_of(run.mq_send(one, &[0; 9], 0)),
        Some(errno::EMSGSIZE)
    );
    let small = run.call(nr::__NR_mq_timedreceive, &[one, DATA, 7, 0, 0]);
    assert_eq!(errno_of(small), Some(errno::EMSGSIZE));
    run.put(NAME, b"q\0");
    assert_eq!(run.call(nr::__NR_mq_unlink, &[NAME]), Ok(0));
    let gone = run.call(nr::__NR_mq_unlink, &[NAME]);
    assert_eq!(errno_of(gone), Some(errno::ENOENT));
    assert_eq!(run.mq_receive(two), Ok(b"high".to_vec()));
    assert_eq!(run.get(DATA + 64, 4), 9u32.to_le_bytes());
    assert_eq!(run.mq_receive(one), Ok(b"low".to_vec()));
    assert_eq!(errno_of(run.mq_receive(two)), Some(errno::EAGAIN));
    // The second's flag, and what the queue has.
    let attributes = [two, 0, ATTRIBUTES];
    assert_eq!(run.call(nr::__NR_mq_getsetattr, &attributes), Ok(0));
    assert_eq!(run.get(ATTRIBUTES, 32), words(&[NONBLOCK, 2, 8, 0]));
    run.end();
}

#[test]
fn a_full_queue_waits_until_the_time_is_over_or_there_is_room() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.queue("q", CREATE, [1, 8]).unwrap();
    assert_eq!(run.mq_send(fd, b"a", 0), Ok(0));
    run.put(DATA + 32, &words(&[1, 0]));
    let late = run.call(nr::__NR_mq_timedsend, &[fd, DATA, 1, 0, DATA + 32]);
    assert_eq!(errno_of(late), Some(errno::ETIMEDOUT));
    run.put(DATA + 32, &words(&[1, 1_000_000_000]));
    let wrong = run.call(nr::__NR_mq_timedsend, &[fd, DATA, 1, 0, DATA + 32]);
    assert_eq!(errno_of(wrong), Some(errno::EINVAL));
    run.call(nr::__NR_fork, &[]).unwrap();
    let mut child = node.started.borrow_mut().pop().unwrap();
    let send = SystemCall {
        number: nr::__NR_mq_timedsend.into(),
        args: [fd, DATA, 1, 0, 0, 0],
    };
    {
        let mut waiting = std::pin::pin!(child.system_call(send));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert_eq!(run.mq_receive(fd), Ok(b"a".to_vec()));
        assert_eq!(node.block_on(waiting), Ok(Outcome::Value(0)));
    }
    node.block_on(child.run());
    run.end();
}

#[test]
fn a_process_is_told_of_the_first_message() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.queue("q", CREATE, [4, 8]).unwrap();
    // Value, signal and SIGEV_SIGNAL.
    run.put(ATTRIBUTES, &words(&[77, SIGUSR1, 0]));
    let block = 1u64 << (SIGUSR1 - 1);
    run.put(DATA, &block.to_le_bytes());
    run.call(nr::__NR_rt_sigprocmask, &[0, DATA, 0, 8]).unwrap();
    assert_eq!(run.call(nr::__NR_mq_notify, &[fd, ATTRIBUTES]), Ok(0));
    let busy = run.call(nr::__NR_mq_notify, &[fd, ATTRIBUTES]);
    assert_eq!(errno_of(busy), Some(errno::EBUSY));
    assert_eq!(run.mq_send(fd, b"a", 0), Ok(0));
    let taken = run.thread.take_signal(block).unwrap();
    assert_eq!((u64::from(taken.signal), taken.code), (SIGUSR1, -3));
    assert_eq!(taken.fields[1], 77);
    assert_eq!(run.mq_send(fd, b"b", 0), Ok(0));
    assert!(run.thread.take_signal(block).is_none());
    run.end();
}

#[test]
fn closing_a_queue_takes_the_process_s_notice_back() {
    let node: &FakeNode = node(64);
    let mut run = Run::new(node);
    let fd = run.queue("q", CREATE, [4, 8]).unwrap();
    let again = run.queue("q", 2, [4, 8]).unwrap();
    run.put(ATTRIBUTES, &words(&[77, SIGUSR1, 0]));
    run.call(nr::__NR_fork, &[]).unwrap();
    let mut child = node.started.borrow_mut().pop().unwrap();
    assert_eq!(run.call(nr::__NR_mq_notify, &[fd, ATTRIBUTES]), Ok(0));
    let close = SystemCall {
        number: nr::__NR_close.into(),
        args: [fd, 0, 0, 0, 0, 0],
    };
    node.block_on(child.system_call(close)).unwrap();
    let notify = SystemCall {
        number: nr::__NR_mq_notify.into(),
        args: [again, ATTRIBUTES, 0, 0, 0, 0],
    };
    let busy = node.block_on(child.system_call(notify));
    assert_eq!(busy, Err(errno::EBUSY.into()), "another closed its number");
    assert_eq!(run.call(nr::__NR_close, &[again]), Ok(0));
    // Signal 0, which is none.
    run.put(ATTRIBUTES, &words(&[77, 0, 0]));
    node.block_on(child.memory().write(ATTRIBUTES, &words(&[77, 0, 0])))
        .unwrap();
    let free = node.block_on(child.system_call(notify));
    assert_eq!(free, Ok(Outcome::Value(0)));
    node.block_on(child.run());
    run.end();
}
