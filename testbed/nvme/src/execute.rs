//! Commands.

use nvme_hw::command::{CONTIGUOUS, FEATURE_QUEUES, FORCE_UNIT_ACCESS, INTERRUPTS};
use nvme_hw::identify::{ACTIVE_NAMESPACES, CONTROLLER, LEN, NAMESPACE};
use nvme_hw::{Command, Opcode, Status};

use crate::controller::Controller;

const PAGE: u64 = 4096;

impl Controller {
    /// Carries a command out; gives its status and result.
    pub(crate) fn execute(&mut self, command: &Command, queue: u16) -> (Status, u32) {
        let faulty = queue != 0 && self.commands > self.facts.faults.after;
        if faulty && self.rng.happens(self.facts.faults.passing_error) {
            return (Status::NOT_READY, 0);
        }
        if queue == 0 {
            self.execute_admin(command)
        } else {
            (self.execute_io(command, faulty), 0)
        }
    }

    fn execute_admin(&mut self, command: &Command) -> (Status, u32) {
        let [first, second] = [0, 1].map(|index| command.dwords[index].get());
        let number = (first & 0xffff) as u16;
        let entries = (first >> 16) as u16;
        let size_is_right = entries >= 1 && entries <= self.facts.max_queue_entries;
        let memory = command.prp[0].get();
        match command.opcode {
            Opcode::IDENTIFY => (self.identify(command, first), 0),
            Opcode::SET_FEATURES if first == FEATURE_QUEUES => {
                let given = u32::from(self.facts.queues - 1);
                (Status::SUCCESS, given << 16 | given)
            }
            Opcode::CREATE_COMPLETION | Opcode::CREATE_SUBMISSION => {
                let creates_completion = command.opcode == Opcode::CREATE_COMPLETION;
                let exists = if creates_completion {
                    self.completions.contains_key(&number)
                } else {
                    self.submissions.contains_key(&number)
                };
                let right = (1..=self.facts.queues).contains(&number)
                    && size_is_right
                    && !exists
                    && second & CONTIGUOUS != 0
                    && memory.is_multiple_of(PAGE);
                if !right {
                    self.violation(format!("queue {number} of {entries} at {memory:#x}"));
                    return (Status::INVALID_FIELD, 0);
                }
                if creates_completion {
                    self.add_completion(number, memory, entries + 1, second & INTERRUPTS != 0);
                } else if second >> 16 != u32::from(number)
                    || !self.completions.contains_key(&number)
                {
                    self.violation(format!("submission queue {number} without completions"));
                    return (Status::INVALID_FIELD, 0);
                } else {
                    self.add_submission(number, memory, entries + 1);
                }
                (Status::SUCCESS, 0)
            }
            Opcode::ABORT => self.abort(number, (first >> 16) as u16),
            _ => (Status::INVALID_OPCODE, 0),
        }
    }

    /// Aborts a command: its completion comes before the abort's (section 5.1).
    fn abort(&mut self, queue: u16, id: u16) -> (Status, u32) {
        let is_it =
            |work: &crate::controller::Work| (work.queue, work.command.id.get()) == (queue, id);
        let found = self.work.iter().position(is_it);
        match found.filter(|_| !self.facts.faults.deaf) {
            Some(index) => {
                self.work.swap_remove(index);
                self.complete(queue, id, Status::ABORTED, 0);
                (Status::SUCCESS, 0)
            }
            None => (Status::SUCCESS, 1),
        }
    }

    fn identify(&mut self, command: &Command, kind: u32) -> Status {
        let mut data = vec![0; LEN];
        match u8::try_from(kind & 0xff).unwrap_or(0) {
            CONTROLLER => {
                data[4..24].copy_from_slice(b"MODEL-1             ");
                data[24..64].fill(b' ');
                data[24..34].copy_from_slice(b"Model NVMe");
                (data[77], data[111]) = (self.facts.max_transfer, 1);
                (data[512], data[513], data[516]) = (0x66, 0x44, 1);
                data[525] = u8::from(self.facts.write_cache);
            }
            ACTIVE_NAMESPACES => data[0] = 1,
            NAMESPACE if command.namespace.get() == 1 => {
                data[..8].copy_from_slice(&self.facts.blocks.to_le_bytes());
                (data[25], data[26]) = (1, 1);
                data[99] = u8::from(self.facts.read_only);
                data[130] = 9;
                data[134] = self.facts.block_shift;
            }
            _ => return Status::INVALID_FIELD,
        }
        for _ in 0..self.facts.faults.spoiled_bytes {
            // Half of them where the fields are that are used.
            let fields = [0, 7, 26, 29, 77, 99, 111, 128, 134, 512, 513, 516, 525];
            let at = match self.rng.below(2) {
                0 => fields[usize::try_from(self.rng.below(13)).unwrap_or(0)],
                _ => usize::try_from(self.rng.below(LEN as u64)).unwrap_or(0),
            };
            data[at] = self.rng.next().to_le_bytes()[0];
        }
        if u8::try_from(kind & 0xff) == Ok(NAMESPACE) {
            self.told_block_shift = data[130 + 4 * usize::from(data[26] & 0xf)];
        }
        let pages = command.prp[0].get();
        match pages.is_multiple_of(PAGE) && self.dma_write(pages, &data) {
            true => Status::SUCCESS,
            false => Status::INVALID_FIELD,
        }
    }

    fn execute_io(&mut self, command: &Command, faulty: bool) -> Status {
        if command.namespace.get() != 1 {
            self.violation(format!("namespace {}", command.namespace.get()));
            return Status::INVALID_FIELD;
        }
        match command.opcode {
            Opcode::FLUSH => {
                self.medium.flush();
                Status::SUCCESS
            }
            Opcode::READ | Opcode::WRITE => self.transfer(command, faulty),
            _ => Status::INVALID_OPCODE,
        }
    }

    fn transfer(&mut self, command: &Command, faulty: bool) -> Status {
        let (first, count) = (command.first_block(), u64::from(command.blocks()));
        let end = first.checked_add(count);
        if end.is_none_or(|end| end > self.facts.blocks) {
            self.violation(format!("{count} blocks from {first} on"));
            return Status::OUT_OF_RANGE;
        }
        if self.told_block_shift != self.facts.block_shift {
            // By a length that it did not tell, it would reach memory that no command names: no
            // driver can keep it from that.
            return Status::INVALID_FIELD;
        }
        let len = count << self.facts.block_shift;
        if self.facts.max_transfer != 0 && len > PAGE << self.facts.max_transfer {
            self.violation(format!("a transfer of {len} bytes"));
            return Status::INVALID_FIELD;
        }
        let Some(pieces) = self.pieces(command.prp.map(|entry| entry.get()), len) else {
            return Status::INVALID_FIELD;
        };
        let fails = faulty && self.rng.happens(self.facts.faults.media_error);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let writes = command.opcode == Opcode::WRITE;
        if fails {
            return if writes {
                Status::WRITE_FAULT
            } else {
                Status::UNRECOVERED_READ
            };
        }
        if !writes {
            self.medium.read(first, &mut bytes);
        }
        let mut left = &mut bytes[..];
        for (at, len) in pieces {
            let (piece, rest) = left.split_at_mut(len);
            let done = if writes {
                self.dma_read(at, piece)
            } else {
                self.dma_write(at, piece)
            };
            if !done {
                return Status::INVALID_FIELD;
            }
            left = rest;
        }
        if writes {
            if self.facts.read_only {
                self.violation("a write to a protected namespace");
                return Status::INVALID_FIELD;
            }
            let durable =
                !self.facts.write_cache || command.dwords[2].get() & FORCE_UNIT_ACCESS != 0;
            self.medium.write(first, &bytes, durable);
        }
        Status::SUCCESS
    }

    /// Takes PRP entries apart (section 4.3): the first may begin within a page, a list's may not,
    /// and a list that fills a page goes on at its last entry.
    fn pieces(&mut self, [first, second]: [u64; 2], len: u64) -> Option<Vec<(u64, usize)>> {
        let in_first = (PAGE - first % PAGE).min(len);
        let mut pieces = vec![(first, in_first)];
        let mut left = len - in_first;
        if first % 4 != 0 {
            self.violation(format!("a PRP at {first:#x}"));
            return None;
        }
        if left > 0 && left <= PAGE {
            pieces.push((second, left));
            left = 0;
        }
        let mut list = second;
        while left > 0 {
            let mut entry = [0; 8];
            if list % 8 != 0 || !self.dma_read(list, &mut entry) {
                self.violation(format!("a PRP list at {list:#x}"));
                return None;
            }
            let entry = u64::from_le_bytes(entry);
            if list % PAGE == PAGE - 8 && left > PAGE {
                list = entry;
                continue;
            }
            pieces.push((entry, left.min(PAGE)));
            left -= left.min(PAGE);
            list += 8;
        }
        if pieces[1..].iter().any(|(at, _)| at % PAGE != 0) {
            self.violation("a PRP within a page");
            return None;
        }
        let pieces = pieces.into_iter();
        Some(
            pieces
                .map(|(at, len)| (at, usize::try_from(len).unwrap_or(0)))
                .collect(),
        )
    }
}
