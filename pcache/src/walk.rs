//! Changes of one entry with its address space: munmap, fork, mremap, mprotect.
//!
//! A walk of the page tables calls these for each entry that exists. An entry that is not
//! empty changes under the lock of its slot's set, but for rights, which change by themselves.

use mutants::Mutant;

use crate::batch::Batch;
use crate::set::{Set, State};
use crate::sync::MutexGuard;
use crate::{Access, Cache, Entry, Machine, Mapping, Pte, Rights, Slot};

/// An entry that is not empty, with its slot's set locked.
struct Held<'a, M: Machine> {
    set: MutexGuard<'a, Set<M::Entry>>,
    index: u32,
    pte: Pte,
    slot: Slot,
    /// The way of the line that a present entry maps.
    way: Option<usize>,
}

impl<M: Machine> Cache<M> {
    /// Locks the set of an entry's slot; `None` if the entry is empty.
    fn hold(&self, entry: M::Entry) -> Option<Held<'_, M>> {
        loop {
            let pte = entry.load();
            if pte.is_empty() {
                return None;
            }
            let (index, way) = if pte.is_present() {
                let (_, index, way) = self.place_of(pte.frame());
                (index, Some(way))
            } else {
                (self.geometry.set_of(pte.slot()), None)
            };
            let set = self.set(index);
            // Marks and rights may change at any time; frame and slot not any more.
            let now = entry.load();
            let same = now.is_present() == pte.is_present()
                && !now.is_empty()
                && if pte.is_present() {
                    now.frame() == pte.frame()
                } else {
                    now.slot() == pte.slot()
                };
            if !same {
                continue;
            }
            let slot = match way {
                Some(way) => set.slot(way)?,
                None => pte.slot(),
            };
            return Some(Held {
                set,
                index,
                pte: now,
                slot,
                way,
            });
        }
    }

    /// Empties an entry (munmap, `MADV_DONTNEED`, exit). The last user's slot and line are free
    /// when the batch is flushed and no transfer of the line is under way.
    pub fn drop_page(&self, at: Mapping<M::Entry>, batch: &mut Batch<'_, M>) {
        batch.make_room();
        let Some(mut held) = self.hold(at.entry) else {
            return;
        };
        let pte = replace(at.entry, held.pte, |_| Pte::EMPTY);
        if let Some(way) = held.way {
            let line = &mut held.set.lines[way];
            line.dirty |= pte.is_dirty() && !Mutant::DirtyMarkLost.on();
            self.remove_mapping(&mut held.set, way, at);
            batch.push(at.page);
            batch.hold(&mut held.set, held.index, way);
        } else {
            self.forget_pending(&mut held, at);
        }
        if !pte.is_object() {
            self.drop_user(&mut held.set, held.slot);
        }
        if let Some(way) = held.way {
            self.settle(&mut held.set, way);
        }
    }

    /// Makes a READ under way map nothing at `at` when it ends.
    fn forget_pending(&self, held: &mut Held<'_, M>, at: Mapping<M::Entry>) {
        let Some(way) = held.set.find(held.slot) else {
            return;
        };
        let line = &mut held.set.lines[way];
        if line.state == State::Reading && line.first.is_some_and(|first| first.page == at.page) {
            line.first = None;
        }
    }

    /// Copies an entry to a new address space (fork). With `private` both sides are marked
    /// copy-on-write. The child's entry is remote: its first touch finds the line.
    ///
    /// Nothing of the parent may run as before until the batch is flushed.
    pub fn share_page(
        &self,
        parent: Mapping<M::Entry>,
        child: M::Entry,
        private: bool,
        batch: &mut Batch<'_, M>,
    ) {
        batch.make_room();
        let Some(mut held) = self.hold(parent.entry) else {
            return;
        };
        let slot = held.slot;
        let pte = if private && !Mutant::ForkStaysWritable.on() {
            replace(parent.entry, held.pte, Pte::with_cow)
        } else {
            held.pte
        };
        if private && pte.permits(Access::Write) {
            batch.push(parent.page);
        }
        if !pte.is_object() {
            self.chunks.share(slot);
        }
        if let Some(way) = held.set.find(slot) {
            let line = &mut held.set.lines[way];
            if line.fresh {
                // The child's entry names the slot, so it must have its bytes once the line leaves.
                (line.fresh, line.dirty) = (false, !Mutant::SharedZeroForgotten.on());
            }
            held.set.update(way);
        }
        let remote = if pte.is_present() {
            pte.to_remote(slot)
        } else {
            pte
        };
        let remote = if private { remote.with_cow() } else { remote };
        let copied = child.exchange(Pte::EMPTY, remote);
        debug_assert!(copied.is_ok(), "the child's entry is empty");
    }

    /// Moves an entry to an empty one elsewhere (mremap).
    pub fn move_page(
        &self,
        from: Mapping<M::Entry>,
        to: Mapping<M::Entry>,
        batch: &mut Batch<'_, M>,
    ) {
        batch.make_room();
        let Some(mut held) = self.hold(from.entry) else {
            return;
        };
        let pte = replace(from.entry, held.pte, |_| Pte::EMPTY);
        let moved = to.entry.exchange(Pte::EMPTY, pte);
        debug_assert!(moved.is_ok(), "the target is empty");
        match held.way {
            Some(way) => {
                self.remove_mapping(&mut held.set, way, from);
                self.add_mapping(&mut held.set, way, to);
                batch.push(from.page);
            }
            None => self.forget_pending(&mut held, from),
        }
    }

    /// Changes the rights of an entry that is not empty (mprotect).
    pub fn protect_page(&self, at: Mapping<M::Entry>, rights: Rights, batch: &mut Batch<'_, M>) {
        batch.make_room();
        let mut pte = at.entry.load();
        while !pte.is_empty() {
            if rights.contains(Rights::EXEC) && pte.is_present() {
                let (line, index, way) = self.place_of(pte.frame());
                self.make_code(&mut self.set(index).lines[way], line);
            }
            match at.entry.exchange(pte, pte.with_rights(rights)) {
                Ok(()) => break,
                Err(there) => pte = there,
            }
        }
        if pte.is_present() {
            // A core that has narrower rights cached faults, which drops them; a wider one must be
            // told.
            if rights.contains(pte.rights()) || Mutant::ProtectionUntold.on() {
                self.machine.flush_own(at.page);
            } else {
                batch.push(at.page);
            }
        }
    }
}

/// Changes an entry whatever the CPU and changes of rights do to it meanwhile; returns what it was.
fn replace<E: Entry>(entry: E, mut pte: Pte, new: impl Fn(Pte) -> Pte) -> Pte {
    loop {
        match entry.exchange(pte, new(pte)) {
            Ok(()) => return pte,
            Err(there) => pte = there,
        }
    }
}
