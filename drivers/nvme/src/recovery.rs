//! Recovery from a command that is late and from a controller that makes no sense: abort, then
//! reset (sections 5.1 and 7.3.2). One task at a time does it; the others wait for it.

use hal::{Duration, Platform};
use nvme_hw::Command;

use crate::disk::{Disk, Lease};
use crate::error::{Error, Step};

/// The time from an abort until the aborted command must have ended.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);
/// Poll interval of who waits.
const PAUSE: Duration = Duration::from_millis(1);

/// State of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It takes requests.
    Ready,
    /// A task resets it.
    Recovering,
    /// A task was dropped while it reset it.
    Interrupted,
    /// It is not used any more.
    Dead(Error),
}

/// Reason to recover a controller.
pub(crate) enum Cause<'a, P: Platform> {
    /// A command was not completed in time.
    Late(&'a Lease<'a, P>),
    /// No slot became free in time.
    NoSlot,
    /// The controller has failed.
    Broken(Error),
    /// A recovery was interrupted.
    Interrupted,
}

/// A recovery under way; interrupted if dropped before its end.
struct Recovery<'a, P: Platform>(&'a Disk<P>);

impl<P: Platform> Drop for Recovery<'_, P> {
    fn drop(&mut self) {
        let mut life = self.0.life.lock();
        if *life == Life::Recovering {
            *life = Life::Interrupted;
        }
    }
}

impl<P: Platform> Disk<P> {
    /// Waits until the controller takes requests.
    ///
    /// # Errors
    ///
    /// If it is dead.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        loop {
            let life = *self.life.lock();
            match life {
                Life::Ready => return Ok(()),
                Life::Dead(error) => return Err(error),
                // Its waits have deadlines.
                Life::Recovering => self.admin.hardware.platform.sleep(PAUSE).await,
                Life::Interrupted => self.recover(Cause::Interrupted).await?,
            }
        }
    }

    /// Ends a command that is late, or resets the controller. If another task is at it, that counts
    /// for this one.
    ///
    /// # Errors
    ///
    /// If the controller is dead.
    pub(crate) async fn recover(&self, cause: Cause<'_, P>) -> Result<(), Error> {
        let mut waited = false;
        let recovery = loop {
            let mut life = self.life.lock();
            match *life {
                Life::Dead(error) => return Err(error),
                Life::Ready if waited => return Ok(()),
                Life::Ready | Life::Interrupted => {
                    *life = Life::Recovering;
                    break Recovery(self);
                }
                Life::Recovering => {}
            }
            drop(life);
            waited = true;
            self.admin.hardware.platform.sleep(PAUSE).await;
        };
        let result = self.abort_or_reset(cause).await;
        *self.life.lock() = match result {
            Ok(()) => Life::Ready,
            Err(error) => {
                log::error!(
                    "NVMe disk {}: {error}; it is not used any more",
                    self.serial()
                );
                Life::Dead(error)
            }
        };
        drop(recovery);
        for queue in &self.queues {
            self.wake(queue);
        }
        result
    }

    async fn abort_or_reset(&self, cause: Cause<'_, P>) -> Result<(), Error> {
        let gone = self.admin.hardware.status(Step::LookForFailure)?;
        match cause {
            Cause::Late(lease) if !gone.fatal() => {
                if self.abort(lease).await {
                    return Ok(());
                }
                log::warn!("NVMe disk {}: a command is stuck, reset", self.serial());
            }
            Cause::Broken(error) => {
                log::warn!("NVMe disk {}: {error}, reset", self.serial());
            }
            _ => log::warn!("NVMe disk {}: reset", self.serial()),
        }
        self.reset().await
    }

    /// Has a command aborted; returns whether it has ended.
    async fn abort(&self, lease: &Lease<'_, P>) -> bool {
        let (queue, id) = {
            let queue = lease.queue.lock();
            (queue.number(), queue.id(lease.index))
        };
        // A controller may ignore an abort: the command's own end is what counts.
        let _ = self
            .admin
            .command(Command::abort(queue, id), Step::Abort)
            .await;
        let platform = &self.admin.hardware.platform;
        let start = platform.now();
        while lease.answer().is_none() {
            let reaped = lease.queue.lock().reap(&self.admin.hardware);
            if reaped.is_err() || platform.now().since(start) > ABORT_PATIENCE {
                return false;
            }
            platform.sleep(PAUSE).await;
        }
        true
    }

    /// Stops the controller, after which no command is outstanding, and starts it again.
    async fn reset(&self) -> Result<(), Error> {
        self.admin.hardware.disable().await?;
        for queue in &self.queues {
            // The controller has stopped (CSTS.RDY is 0), so it holds no buffer any more: what was
            // lent is lost.
            queue.lock().rewind();
        }
        // A disk that was swapped meanwhile would get the other one's blocks.
        if self.admin.start().await? != self.facts {
            return Err(Error::Changed);
        }
        let wanted = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        if self.admin.ask_for_queues(wanted).await? < wanted {
            return Err(Error::Changed);
        }
        self.create_queues().await
    }
}
