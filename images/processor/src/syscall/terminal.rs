//! Terminals: ioctl, opening, and who of the background may read and write.

use alloc::sync::Arc;
use alloc::vec;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use console::Window;

use super::{Args, int};
use crate::device::Device;
use crate::error::{Error, Result, errno};
use crate::files::{Kind, O_NONBLOCK, OpenFile};
use crate::platform::Platform;
use crate::process::Node;
use crate::signals::{SIGTTIN, SIGTTOU};
use crate::terminal::pty::Master;
use crate::terminal::termios::{ICANON, TERMIOS_SIZE, TERMIOS2_SIZE, Termios};
use crate::terminal::{Jobs, Name, Side, Terminal, Tty};
use crate::thread::Thread;

/// Requests (Linux `include/uapi/asm-generic/ioctls.h`).
const TCGETS: u64 = 0x5401;
const TCSETS: u64 = 0x5402;
const TCSETSW: u64 = 0x5403;
const TCSETSF: u64 = 0x5404;
const TCSBRK: u64 = 0x5409;
const TCXONC: u64 = 0x540a;
const TCFLSH: u64 = 0x540b;
const TIOCEXCL: u64 = 0x540c;
const TIOCNXCL: u64 = 0x540d;
const TIOCSCTTY: u64 = 0x540e;
const TIOCGPGRP: u64 = 0x540f;
const TIOCSPGRP: u64 = 0x5410;
const TIOCOUTQ: u64 = 0x5411;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCSWINSZ: u64 = 0x5414;
const FIONREAD: u64 = 0x541b;
const TIOCNOTTY: u64 = 0x5422;
const TCSBRKP: u64 = 0x5425;
const TIOCGSID: u64 = 0x5429;
const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TCSETSW2: u64 = 0x402c_542c;
const TCSETSF2: u64 = 0x402c_542d;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGPTPEER: u64 = 0x5441;

const O_NOCTTY: u64 = 0o400;
const O_CLOEXEC: u64 = 0o2_000_000;
/// The longest wait of TCSETSW and the like for output that nobody takes.
const DRAIN: Duration = Duration::from_secs(30);

/// The way of a read's wait.
enum Waited {
    Got(usize),
    /// More has come, or the timer has run out.
    Again {
        late: bool,
    },
}

impl<N: Node> Thread<N> {
    /// Answers a request to a terminal.
    pub(super) async fn terminal_ioctl(
        &self,
        terminal: &Arc<Terminal>,
        side: Side,
        [_, request, arg, ..]: Args,
    ) -> Result<u64> {
        match request & 0xffff_ffff {
            TCGETS => {
                self.memory
                    .write(arg, &terminal.termios().encode()[..TERMIOS_SIZE])
                    .await?
            }
            TCGETS2 => self.memory.write(arg, &terminal.termios().encode()).await?,
            TCSETS | TCSETSW | TCSETSF | TCSETS2 | TCSETSW2 | TCSETSF2 => {
                self.set_termios(terminal, request & 0xffff_ffff, arg)
                    .await?;
            }
            TIOCGWINSZ => {
                let words = terminal.window().words().map(u16::to_le_bytes);
                self.memory.write(arg, words.as_flattened()).await?;
            }
            TIOCSWINSZ => {
                let mut bytes = [0; 8];
                self.memory.read(arg, &mut bytes).await?;
                let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                terminal.set_window(Window::from_words([word(0), word(2), word(4), word(6)]));
            }
            FIONREAD if side == Side::Program => self.put_int(arg, terminal.waiting().0).await?,
            FIONREAD | TIOCOUTQ => self.put_int(arg, terminal.unshown()).await?,
            TCSBRK | TCSBRKP => self.drain(terminal).await?,
            TCFLSH => match int(arg) {
                0 => terminal.flush(side, true, false),
                1 => terminal.flush(side, false, true),
                2 => terminal.flush(side, true, true),
                _ => return Err(errno::EINVAL.into()),
            },
            TCXONC => match int(arg) {
                0 | 1 => terminal.stop(arg & 1 == 0),
                2 | 3 => {}
                _ => return Err(errno::EINVAL.into()),
            },
            TIOCEXCL | TIOCNXCL => {}
            request => return self.job_ioctl(terminal, side, request, arg).await,
        }
        Ok(0)
    }

    /// Answers requests about sessions, groups and pseudo-terminals.
    async fn job_ioctl(
        &self,
        terminal: &Arc<Terminal>,
        side: Side,
        request: u64,
        arg: u64,
    ) -> Result<u64> {
        match (request, terminal.name) {
            (TIOCGPGRP | TIOCGSID, _) => {
                let jobs = terminal.jobs();
                if side == Side::Program && jobs.session != self.session()? || jobs.session == 0 {
                    return Err(errno::ENOTTY.into());
                }
                let of = if request == TIOCGSID {
                    jobs.session
                } else {
                    jobs.group
                };
                self.put_int(arg, of as usize).await?;
            }
            (TIOCSPGRP, _) => self.set_foreground(terminal, arg).await?,
            (TIOCSCTTY, _) if side == Side::Program => {
                self.take_terminal(terminal, int(arg) == 1)?
            }
            (TIOCNOTTY, _) => {
                let session = self.session()?;
                if terminal.jobs().session != session {
                    return Err(errno::ENOTTY.into());
                }
                if session == self.pid {
                    self.node.kernel().terminals.leave_session(session);
                }
            }
            (TIOCGPTN, Name::Pty(number)) if side == Side::Master => {
                self.put_int(arg, number as usize).await?
            }
            (TIOCSPTLCK, Name::Pty(_)) if side == Side::Master => {
                let mut locked = [0; 4];
                self.memory.read(arg, &mut locked).await?;
                terminal.lock(locked != [0; 4]);
            }
            (TIOCGPTLCK, Name::Pty(_)) if side == Side::Master => {
                self.put_int(arg, usize::from(terminal.is_locked())).await?;
            }
            (TIOCGPTPEER, Name::Pty(_)) if side == Side::Master => {
                let tty = Arc::new(Tty::open(terminal)?);
                let status = int(arg) & (3 | O_NONBLOCK);
                return self.add_object(tty, status, arg & O_CLOEXEC != 0);
            }
            _ => return Err(errno::ENOTTY.into()),
        }
        Ok(0)
    }

    async fn put_int(&self, addr: u64, value: usize) -> Result<()> {
        let value = i32::try_from(value).unwrap_or(i32::MAX);
        self.memory.write(addr, &value.to_le_bytes()).await
    }

    fn session(&self) -> Result<u32> {
        self.node.kernel().relation(self.pid, |own| own.session)
    }

    async fn set_termios(&self, terminal: &Arc<Terminal>, request: u64, arg: u64) -> Result<()> {
        let mut bytes = [0; TERMIOS2_SIZE];
        let len = if request > 0xffff {
            TERMIOS2_SIZE
        } else {
            TERMIOS_SIZE
        };
        self.memory.read(arg, &mut bytes[..len]).await?;
        self.may_change(terminal)?;
        if !matches!(request, TCSETS | TCSETS2) {
            self.drain(terminal).await?;
        }
        let bytes = bytes.first_chunk().expect("longer");
        let flush = matches!(request, TCSETSF | TCSETSF2);
        terminal.set_termios(Termios::decode(bytes), flush);
        Ok(())
    }

    /// Waits until all output is shown.
    async fn drain(&self, terminal: &Arc<Terminal>) -> Result<()> {
        let shown = terminal
            .changed
            .until(|| (terminal.unshown() == 0).then_some(()));
        let end = self.now() + DRAIN;
        let mut late = pin!(self.node.platform().sleep_until(end));
        let mut shown = pin!(shown);
        let either = core::future::poll_fn(|context| match shown.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => late.as_mut().poll(context),
        });
        self.unless_called(either).await
    }

    async fn set_foreground(&self, terminal: &Arc<Terminal>, arg: u64) -> Result<()> {
        let mut bytes = [0; 4];
        self.memory.read(arg, &mut bytes).await?;
        let group = i32::from_le_bytes(bytes);
        let session = self.session()?;
        if terminal.jobs().session != session {
            return Err(errno::ENOTTY.into());
        }
        self.may_change(terminal)?;
        let group = u32::try_from(group).map_err(|_| errno::EINVAL)?;
        let of = {
            let tree = self.node.kernel().tree.lock();
            tree.processes
                .values()
                .find(|other| other.group == group)
                .map(|other| other.session)
        };
        if of.ok_or(errno::ESRCH)? != session {
            return Err(errno::EPERM.into());
        }
        terminal.set_jobs(Jobs { session, group });
        Ok(())
    }

    /// Makes a terminal the one that controls the session of the caller, which must lead it.
    fn take_terminal(&self, terminal: &Arc<Terminal>, steal: bool) -> Result<()> {
        let kernel = self.node.kernel();
        let (session, group) = kernel.relation(self.pid, |own| (own.session, own.group))?;
        let jobs = terminal.jobs();
        if jobs.session == session && session == self.pid {
            return Ok(());
        }
        let free = jobs.session == 0 || steal;
        if session != self.pid || kernel.terminals.of_session(session).is_some() || !free {
            return Err(errno::EPERM.into());
        }
        terminal.set_jobs(Jobs { session, group });
        Ok(())
    }

    /// Returns the caller's group if it is in the background of a terminal of its session.
    fn background_group(&self, terminal: &Terminal) -> Result<Option<u32>> {
        let jobs = terminal.jobs();
        let (session, group) = self
            .node
            .kernel()
            .relation(self.pid, |own| (own.session, own.group))?;
        let background = jobs.session == session && jobs.group != 0 && jobs.group != group;
        Ok(background.then_some(group))
    }

    /// Stops the caller's job if it reads from the background.
    fn may_read(&self, terminal: &Terminal) -> Result<()> {
        let Some(group) = self.background_group(terminal)? else {
            return Ok(());
        };
        let kernel = self.node.kernel();
        if self.shared.masks(SIGTTIN)
            || self.shared.ignores(SIGTTIN)
            || kernel.is_orphaned(self.pid)
        {
            return Err(errno::EIO.into());
        }
        kernel.signal_group(group, SIGTTIN);
        Err(errno::ERESTARTSYS.into())
    }

    /// Stops the caller's job if it changes the terminal from the background.
    pub(crate) fn may_change(&self, terminal: &Terminal) -> Result<()> {
        let Some(group) = self.background_group(terminal)? else {
            return Ok(());
        };
        if self.shared.masks(SIGTTOU) || self.shared.ignores(SIGTTOU) {
            return Ok(());
        }
        let kernel = self.node.kernel();
        if kernel.is_orphaned(self.pid) {
            return Err(errno::EIO.into());
        }
        kernel.signal_group(group, SIGTTOU);
        Err(errno::ERESTARTSYS.into())
    }

    /// Reads from a terminal, as its settings say.
    pub(crate) async fn read_terminal(
        &self,
        file: &OpenFile,
        terminal: &Arc<Terminal>,
        addr: u64,
        count: u64,
    ) -> Result<u64> {
        let count = self.memory.reachable(addr, count, true)?;
        let mut piece = vec![0; usize::try_from(count).map_or(4096, |count| count.min(4096))];
        let mut late = false;
        let got = loop {
            self.may_read(terminal)?;
            if file.nonblocking() {
                // What there is counts, however little.
                let raw = !terminal.termios().has_local(ICANON) && terminal.waiting().0 > 0;
                break terminal.read(&mut piece, raw).ok_or(errno::EAGAIN)?;
            }
            match self
                .unless_called(self.wait_for_typing(terminal, &mut piece, late))
                .await?
            {
                Waited::Got(got) => break got,
                Waited::Again { late: now } => late = now,
            }
        };
        self.memory.write(addr, &piece[..got]).await?;
        Ok(got as u64)
    }

    async fn wait_for_typing(
        &self,
        terminal: &Arc<Terminal>,
        piece: &mut [u8],
        late: bool,
    ) -> Waited {
        let (before, tenths) = terminal.waiting();
        let attempt = || {
            if let Some(got) = terminal.read(piece, late) {
                return Some(Waited::Got(got));
            }
            // The timer begins anew with each byte.
            let (now, timer) = terminal.waiting();
            (now != before || timer != tenths).then_some(Waited::Again { late: false })
        };
        let mut typed = pin!(terminal.changed.until(attempt));
        let Some(tenths) = tenths else {
            return typed.await;
        };
        let end = self.now() + Duration::from_millis(100) * tenths.into();
        let mut timer = pin!(self.node.platform().sleep_until(end));
        core::future::poll_fn(|context| match typed.as_mut().poll(context) {
            Poll::Ready(waited) => Poll::Ready(waited),
            Poll::Pending => timer
                .as_mut()
                .poll(context)
                .map(|()| Waited::Again { late: true }),
        })
        .await
    }

    /// Opens a terminal's device; one that controls nobody becomes that of a session without one.
    pub(super) fn open_terminal(&self, device: Device, flags: u64) -> Result<Kind> {
        let terminals = &self.node.kernel().terminals;
        let terminal = match device {
            Device::Ptmx => return Ok(Kind::Object(Arc::new(Master::new(terminals)?))),
            Device::Tty => terminals.of_session(self.session()?).ok_or(errno::ENXIO)?,
            Device::Console => terminals.console().ok_or(errno::ENXIO)?,
            Device::Pty(number) => terminals.pty(number).ok_or(errno::ENOENT)?,
            _ => return Err(errno::ENXIO.into()),
        };
        let tty = Tty::open(&terminal)?;
        if flags & O_NOCTTY == 0 && matches!(device, Device::Pty(_) | Device::Console) {
            match self.take_terminal(&terminal, false) {
                // It is somebody's, or this process leads no session, or has another.
                Ok(()) | Err(Error::Errno(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Kind::Object(Arc::new(tty)))
    }
}
