//! User mode in depth: each trap, all of a thread's state, and what page tables report. What fails
//! panics.

mod code;
mod entries;
mod exceptions;
mod memory;
mod state;

use alloc::sync::Arc;

use libos::{AddressSpace, FrameArray, PAGE_SIZE, PageFrame, Rights, Trap, UserContext};
use spin::Once;

/// Address of [`Program`]'s code, one page.
const CODE: u64 = 0x40_0000;
/// Its data, one page.
const DATA: u64 = 0x60_0000;
/// Its stack's end. The stack is one page, with nothing around it.
const STACK_END: u64 = 0x7000_0000_0000;
/// An address at which nothing is mapped.
const NOWHERE: u64 = 0x1234_5678_9000;
const PAGE: u64 = PAGE_SIZE as u64;

/// Runs all of them.
pub(crate) async fn run() {
    exceptions::run().await;
    libos::report("test", format_args!("user_exceptions\tok"));
    state::run().await;
    libos::report("test", format_args!("user_state\tok"));
    memory::run().await;
    libos::report("test", format_args!("user_memory\tok"));
    entries::run().await;
    libos::report("test", format_args!("user_entries\tok"));
}

/// Frames for the tests' pages. They are used again and again: one test's pages are gone when the
/// next begins.
fn frame(index: usize) -> PageFrame {
    static FRAMES: Once<&'static FrameArray> = Once::new();
    FRAMES
        .call_once(|| FrameArray::allocate(16).expect("memory for the tests' pages"))
        .frame(index)
}

/// Code, stack and data with one thread.
struct Program {
    space: Arc<AddressSpace>,
    thread: UserContext,
    code: PageFrame,
    data: PageFrame,
}

impl Program {
    /// In the first three frames.
    fn new(code: &[u8]) -> Self {
        Self::in_frames(code, 0)
    }

    /// In three frames from `first` on.
    fn in_frames(code: &[u8], first: usize) -> Self {
        let space = AddressSpace::new().expect("memory for an address space");
        let [text, stack, data] = [0, 1, 2].map(|n| frame(first + n));
        for page in [text, stack, data] {
            page.fill(0, PAGE_SIZE, 0);
        }
        text.write(0, code);
        libos::quirks::refresh_code(text);
        space
            .map(CODE, text, Rights::READ | Rights::EXECUTE)
            .expect("code");
        space
            .map(STACK_END - PAGE, stack, Rights::READ | Rights::WRITE)
            .expect("stack");
        space
            .map(DATA, data, Rights::READ | Rights::WRITE)
            .expect("data");
        Self {
            space,
            thread: UserContext::new(CODE, STACK_END),
            code: text,
            data,
        }
    }

    /// With `rdi` set.
    fn with(code: &[u8], rdi: u64) -> Self {
        let mut program = Self::new(code);
        program.thread.registers.rdi = rdi;
        program
    }

    /// Runs up to the next trap that is the program's own.
    async fn next(&mut self) -> Trap {
        loop {
            match self.thread.run(&self.space) {
                Trap::Preempted => libos::yield_now().await,
                trap => return trap,
            }
        }
    }

    async fn expect_syscall(&mut self) {
        assert_eq!(self.next().await, Trap::Syscall);
    }

    async fn expect_exception(&mut self, vector: u8, error: u64) {
        assert_eq!(self.next().await, Trap::Exception { vector, error });
    }
}

fn data_word(frame: PageFrame, offset: usize) -> u64 {
    let mut bytes = [0; 8];
    frame.read(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}
