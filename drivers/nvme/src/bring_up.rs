//! From a controller in any state to one with queues (section 7.6.1).

use alloc::boxed::Box;
use alloc::vec;

use hal::{DmaBuffer, Duration, Platform};
use nvme_hw::Command;
use nvme_hw::identify::{self, Controller, LEN, Namespace};
use spin::Mutex;

use crate::error::{Error, Step};
use crate::hardware::Hardware;
use crate::queue::{Answer, Queue};

/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 16;
/// Admin commands in flight: one, and one that a dropped task has left.
const ADMIN_SLOTS: usize = 4;
/// The time that an admin command may take.
const ADMIN_DEADLINE: Duration = Duration::from_secs(5);
/// Poll interval of an admin command.
const PAUSE: Duration = Duration::from_micros(100);

/// Facts that must be the same after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) controller: Controller,
    pub(crate) namespace: Namespace,
    pub(crate) number: u32,
}

/// A controller and its admin queues.
pub(crate) struct Admin<P: Platform> {
    // First, as its drop stops the device.
    pub(crate) hardware: Hardware<P>,
    queue: Mutex<Queue<P>>,
}

impl<P: Platform> Admin<P> {
    /// Stops the controller, which firmware or another kernel may have left at work, and allocates
    /// its admin queues.
    pub(crate) async fn new(platform: P) -> Result<Self, Error> {
        let hardware = Hardware::new(platform)?;
        let entries = ADMIN_ENTRIES.min(hardware.cap.max_queue_entries().saturating_add(1));
        hardware.disable().await?;
        let queue = Queue::new(&hardware.platform, 0, entries, ADMIN_SLOTS, LEN)?;
        Ok(Self {
            hardware,
            queue: Mutex::new(queue),
        })
    }

    /// Starts the stopped controller and learns what it is.
    pub(crate) async fn start(&self) -> Result<Facts, Error> {
        let (entries, [submission, completion]) = {
            let mut queue = self.queue.lock();
            // The controller counts from 0 again after it was disabled, with phase 1 (section
            // 7.3.2).
            queue.rewind();
            (queue.entries(), queue.addresses())
        };
        self.hardware
            .enable(entries, submission, completion)
            .await?;
        let controller = self.identify(identify::CONTROLLER, 0).await?;
        let controller = Controller::parse(&controller).map_err(Error::Unusable)?;
        // Controllers before revision 1.1 have no list, and begin with namespace 1.
        let number = match self.identify(identify::ACTIVE_NAMESPACES, 0).await {
            Ok(list) => identify::first_namespace(&list),
            Err(Error::Refused { .. }) => Some(1),
            Err(error) => return Err(error),
        };
        let number = number
            .filter(|&number| number <= controller.namespaces)
            .ok_or(Error::NoNamespace)?;
        let namespace = self.identify(identify::NAMESPACE, number).await?;
        let namespace = Namespace::parse(&namespace).map_err(Error::Unusable)?;
        Ok(Facts {
            controller,
            namespace,
            number,
        })
    }

    /// Asks for pairs of I/O queues; returns how many the controller gives, at least one and at
    /// most as many as were asked for (section 5.21.1.7).
    pub(crate) async fn ask_for_queues(&self, wanted: u16) -> Result<u16, Error> {
        let wanted = wanted.clamp(1, self.hardware.queue_pairs() - 1);
        let command = Command::ask_for_queues(wanted);
        let given = self.command(command, Step::AskForQueues).await?;
        let [a, b, c, d] = given.to_le_bytes();
        let given = u16::from_le_bytes([a, b]).min(u16::from_le_bytes([c, d]));
        Ok(given.saturating_add(1).min(wanted))
    }

    /// Creates a pair of I/O queues in the controller.
    pub(crate) async fn create(
        &self,
        queue: &Mutex<Queue<P>>,
        vector: Option<u16>,
    ) -> Result<(), Error> {
        let (number, entries, [submission, completion]) = {
            let queue = queue.lock();
            (queue.number(), queue.entries(), queue.addresses())
        };
        // First the completion queue, which the submission queue's command names (section 5.4).
        let command = Command::create_completion(number, entries, completion, vector);
        self.command(command, Step::CreateCompletionQueue).await?;
        let command = Command::create_submission(number, entries, submission);
        self.command(command, Step::CreateSubmissionQueue).await?;
        Ok(())
    }

    async fn identify(&self, kind: u8, namespace: u32) -> Result<Box<[u8; LEN]>, Error> {
        let slot = self.take()?;
        let page = self.queue.lock().prp(slot.index, LEN)[0];
        let command = Command::identify(kind, namespace, page);
        self.run(&slot, command, Step::Identify).await?;
        let mut bytes = vec![0; LEN];
        self.queue.lock().data(slot.index).read(0, &mut bytes);
        // The length is the array's.
        Ok(bytes.try_into().unwrap_or_else(|_| Box::new([0; LEN])))
    }

    /// Runs a command without data; returns its result.
    pub(crate) async fn command(&self, command: Command, step: Step) -> Result<u32, Error> {
        let slot = self.take()?;
        self.run(&slot, command, step).await
    }

    fn take(&self) -> Result<AdminSlot<'_, P>, Error> {
        let index = self.queue.lock().take().ok_or(Error::Timeout {
            step: Step::AwaitEarlierCommand,
            waited: ADMIN_DEADLINE,
        })?;
        Ok(AdminSlot { admin: self, index })
    }

    async fn run(
        &self,
        slot: &AdminSlot<'_, P>,
        command: Command,
        step: Step,
    ) -> Result<u32, Error> {
        self.queue
            .lock()
            .submit(&self.hardware, slot.index, command);
        let platform = &self.hardware.platform;
        let start = platform.now();
        loop {
            let answer = {
                let mut queue = self.queue.lock();
                queue.reap(&self.hardware)?;
                queue.answer(slot.index)
            };
            match answer {
                Some(Answer::Completed { status, result }) if status.is_success() => {
                    return Ok(result);
                }
                Some(Answer::Completed { status, .. }) => {
                    return Err(Error::Refused { step, status });
                }
                Some(Answer::Lost) | None => {}
            }
            if self.hardware.status(step)?.fatal() {
                return Err(Error::Fatal);
            }
            let waited = platform.now().since(start);
            if waited > ADMIN_DEADLINE {
                return Err(Error::Timeout { step, waited });
            }
            platform.sleep(PAUSE).await;
        }
    }
}

/// A slot of the admin queue; given up when dropped.
struct AdminSlot<'a, P: Platform> {
    admin: &'a Admin<P>,
    index: usize,
}

impl<P: Platform> Drop for AdminSlot<'_, P> {
    fn drop(&mut self) {
        self.admin.queue.lock().release(self.index);
    }
}
