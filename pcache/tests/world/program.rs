//! A program in an address space, and a reference that says what each of its pages must hold.
//!
//! Every value that is written carries the space, the page and a version, so a byte of another
//! page, of another space or of an earlier time shows.

use std::task::Waker;

use pcache::{Access, Batch, Cache, ChunkId, Content, FaultAnswer, Filled, Plan, Rights, Slot};

use super::{PAGES, Space, TABLE, WORDS, World};

/// A program's view of one of its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vma {
    pub rights: Rights,
    /// The page of the shared object that it maps, if any.
    pub object: Option<usize>,
}

/// The result of one access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Value(u64),
    /// A transfer must end first.
    Pending,
    /// SIGSEGV.
    Fault,
    /// A READ failed.
    Failed,
}

/// A shared object: its pages' slots, and what each must hold.
#[derive(Default)]
pub struct Object {
    pub slots: Vec<Option<Slot>>,
    pub expected: Vec<[u64; WORDS]>,
}

impl Object {
    pub fn new(pages: usize) -> Self {
        Self {
            slots: vec![None; pages],
            expected: vec![[0; WORDS]; pages],
        }
    }

    /// Frees the object's pages; nothing maps them any more.
    pub fn end(self, cache: &Cache<World>) {
        self.slots
            .into_iter()
            .flatten()
            .for_each(|slot| cache.drop_slot(slot));
    }
}

/// An address space with its reference.
pub struct Program {
    pub space: Space,
    pub vmas: Vec<Option<Vma>>,
    pub expected: Vec<[u64; WORDS]>,
    pub chunk: [ChunkId; 2],
    version: u64,
}

impl Program {
    pub fn new(space: Space, chunk: [ChunkId; 2]) -> Self {
        Self {
            space,
            vmas: vec![None; PAGES],
            expected: vec![[0; WORDS]; PAGES],
            chunk,
            version: 0,
        }
    }

    pub fn map(&mut self, vpn: usize, rights: Rights, object: Option<usize>) {
        assert!(self.vmas[vpn].is_none());
        self.vmas[vpn] = Some(Vma { rights, object });
        self.expected[vpn] = [0; WORDS];
    }

    fn next_value(&mut self, vpn: usize) -> u64 {
        self.version += 1;
        u64::from(self.space.id.0) << 48 | (vpn as u64) << 32 | self.version
    }

    fn expected(&self, vpn: usize, word: usize, object: Option<&Object>) -> u64 {
        match (self.vmas[vpn].and_then(|vma| vma.object), object) {
            (Some(page), Some(object)) => object.expected[page][word],
            _ => self.expected[vpn][word],
        }
    }

    /// Reads a word, or writes the next value to it, and checks what was there.
    ///
    /// Returns whether the access was done; if not, a transfer has to end first.
    pub fn access(
        &mut self,
        cache: &Cache<World>,
        (vpn, word): (usize, usize),
        write: bool,
        mut object: Option<&mut Object>,
        plan: Plan,
        waker: &Waker,
    ) -> Outcome {
        let value = write.then(|| self.next_value(vpn));
        let at = self.space.at(vpn);
        let mut first = true;
        loop {
            let access = match cache.machine().try_access(at, word, value) {
                Ok(seen) => {
                    let due = self.expected(vpn, word, object.as_deref());
                    assert_eq!(seen, due, "{} word {word}: {seen:#x} for {due:#x}", at.page);
                    let rights = self.vmas[vpn].map(|vma| vma.rights);
                    let access = if write { Access::Write } else { Access::Read };
                    assert!(
                        rights.is_some_and(|rights| rights.allow(access)),
                        "{}: {access:?} with {rights:?}",
                        at.page
                    );
                    self.wrote(vpn, word, value, object);
                    return Outcome::Value(seen);
                }
                Err(access) => access,
            };
            let touch = match cache.touch(at, access, first, plan, Some(waker)) {
                Ok(touch) => touch,
                Err(_) => return Outcome::Failed,
            };
            first = false;
            let filled = match touch {
                FaultAnswer::Done => Filled::Done,
                // Looks again, so that the waker is kept.
                FaultAnswer::Started => continue,
                FaultAnswer::Wait => return Outcome::Pending,
                FaultAnswer::Denied => {
                    let vma = self.vmas[vpn].expect("only mapped pages have entries");
                    assert!(!vma.rights.allow(access), "{}: denied {access:?}", at.page);
                    return Outcome::Fault;
                }
                FaultAnswer::Empty => {
                    match self.first_touch(cache, vpn, access, object.as_deref_mut(), waker) {
                        Some(filled) => filled,
                        None => return Outcome::Fault,
                    }
                }
                FaultAnswer::Copy => self.copy(cache, vpn, waker),
            };
            if filled == Filled::Wait {
                return Outcome::Pending;
            }
        }
    }

    fn wrote(&mut self, vpn: usize, word: usize, value: Option<u64>, object: Option<&mut Object>) {
        let Some(value) = value else { return };
        match (self.vmas[vpn].and_then(|vma| vma.object), object) {
            (Some(page), Some(object)) => object.expected[page][word] = value,
            _ => self.expected[vpn][word] = value,
        }
    }

    fn allocate(&self, cache: &Cache<World>, vpn: usize) -> Slot {
        let chunk = self.chunk[vpn / TABLE];
        cache
            .chunks()
            .allocate(chunk, vpn as u64 % 512)
            .expect("a free slot")
    }

    fn first_touch(
        &mut self,
        cache: &Cache<World>,
        vpn: usize,
        access: Access,
        object: Option<&mut Object>,
        waker: &Waker,
    ) -> Option<Filled> {
        let vma = self.vmas[vpn].filter(|vma| vma.rights.allow(access))?;
        let at = self.space.at(vpn);
        if let (Some(page), Some(object)) = (vma.object, object) {
            if let Some(slot) = object.slots[page] {
                let entry = pcache::Pte::remote(slot, vma.rights).with_object();
                let put = pcache::Entry::exchange(at.entry, pcache::Pte::EMPTY, entry);
                return Some(if put.is_ok() {
                    Filled::Done
                } else {
                    Filled::Raced
                });
            }
            let slot = self.allocate(cache, vpn);
            let filled = cache.install(at, slot, vma.rights, Content::Zero, true, Some(waker));
            match filled {
                Filled::Done => object.slots[page] = Some(slot),
                _ => cache.chunks().cancel(slot),
            }
            return Some(filled);
        }
        let slot = self.allocate(cache, vpn);
        let filled = cache.install(at, slot, vma.rights, Content::Zero, false, Some(waker));
        if filled != Filled::Done {
            cache.chunks().cancel(slot);
        }
        Some(filled)
    }

    fn copy(&mut self, cache: &Cache<World>, vpn: usize, waker: &Waker) -> Filled {
        let at = self.space.at(vpn);
        match cache.reuse(at) {
            Filled::Wait => {}
            other => return other,
        }
        let slot = self.allocate(cache, vpn);
        let filled = cache.copy(at, slot, Some(waker));
        if filled != Filled::Done {
            cache.chunks().cancel(slot);
        }
        filled
    }

    /// Another thread of the program. Each thread writes words of its own.
    pub fn thread(&self) -> Self {
        Self {
            space: self.space,
            vmas: self.vmas.clone(),
            expected: self.expected.clone(),
            chunk: self.chunk,
            version: self.version + 1_000_000,
        }
    }

    /// munmap of one page.
    pub fn unmap(&mut self, cache: &Cache<World>, vpn: usize, batch: &mut Batch<'_, World>) {
        self.vmas[vpn] = None;
        cache.drop_page(self.space.at(vpn), batch);
    }

    /// `MADV_DONTNEED` of one page; one of an object keeps its contents.
    pub fn discard(&mut self, cache: &Cache<World>, vpn: usize) {
        cache.drop_page(self.space.at(vpn), &mut cache.batch(self.space.id));
        self.expected[vpn] = [0; WORDS];
    }

    /// mprotect of one page.
    pub fn protect(&mut self, cache: &Cache<World>, vpn: usize, rights: Rights) {
        if let Some(vma) = &mut self.vmas[vpn] {
            vma.rights = rights;
            cache.protect_page(self.space.at(vpn), rights, &mut cache.batch(self.space.id));
        }
    }

    /// mremap of one page to an unmapped one.
    pub fn remap(&mut self, cache: &Cache<World>, from: usize, to: usize) {
        if self.vmas[to].is_some() || self.vmas[from].is_none() {
            return;
        }
        self.vmas[to] = self.vmas[from].take();
        self.expected[to] = self.expected[from];
        cache.move_page(
            self.space.at(from),
            self.space.at(to),
            &mut cache.batch(self.space.id),
        );
    }

    /// fork.
    pub fn fork(&self, cache: &Cache<World>, space: Space, chunk: [ChunkId; 2]) -> Self {
        let mut batch = cache.batch(self.space.id);
        for (vpn, vma) in self.vmas.iter().enumerate() {
            if let Some(vma) = vma {
                let private = vma.object.is_none();
                let child = space.at(vpn).entry;
                cache.share_page(self.space.at(vpn), child, private, &mut batch);
            }
        }
        Self {
            space,
            vmas: self.vmas.clone(),
            expected: self.expected.clone(),
            chunk,
            version: self.version + 1_000_000,
        }
    }

    /// exit: every page goes.
    pub fn exit(mut self, cache: &Cache<World>) -> Space {
        let mut batch = cache.batch(self.space.id);
        for vpn in 0..PAGES {
            if self.vmas[vpn].is_some() {
                self.unmap(cache, vpn, &mut batch);
            }
        }
        self.space
    }
}
